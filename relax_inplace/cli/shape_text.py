"""Dimensions that are written as strings: ``R.Tensor(("n", "n * 2"), "float16")``.

TVM evaluates them, so what is in them is checked: arithmetic of names and numbers.
"""

from __future__ import annotations

import ast

__all__ = ["check_shape_text"]

_FUNCTIONS = {"int32", "int64", "min", "max", "ceildiv", "floordiv", "floormod", "truncdiv"}
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.USub)
_OTHERS = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Load)


def check_shape_text(text: str) -> None:
    """Raise ValueError if a string is no dimension."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"the dimension {text!r} is no expression") from None
    functions: set[ast.AST] = set()
    for node in ast.walk(tree):  # a call is met before what it is of
        if isinstance(node, ast.Call) and _is_function(node.func) and not node.keywords:
            functions.update(ast.walk(node.func))
        elif node not in functions and not _is_arithmetic(node):
            raise ValueError(f"the dimension {text!r} is not arithmetic of names and numbers")


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    return isinstance(node, (*_OPERATORS, *_OTHERS))


def _is_function(func: ast.expr) -> bool:
    return (
        isinstance(func, ast.Attribute)
        and func.attr in _FUNCTIONS
        and isinstance(func.value, ast.Name)
        and func.value.id == "T"
    )
