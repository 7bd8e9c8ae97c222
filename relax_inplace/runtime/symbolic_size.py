"""Sizes with symbolic dimensions, which a compiled module gives as text.

They are sums of products, or the largest of several: ``max(16*n + 128, 4*n*m)``.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["size_at"]

_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def size_at(size: int | str | None, dimensions: Mapping[str, int]) -> int | None:
    """A size in bytes, for values of the dimensions.

    Returns
    -------
    int or None
        None if the text has a dimension without a value, or another form.
    """
    if not isinstance(size, str):
        return size
    try:  # the parser raises MemoryError for what is nested too deeply
        return _value(ast.parse(size, mode="eval").body, dimensions)
    except (SyntaxError, KeyError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(node: Any, dimensions: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return dimensions[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = (_value(one, dimensions) for one in (node.left, node.right))
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "max":
        return max(_value(one, dimensions) for one in node.args)
    raise ValueError(ast.dump(node))
