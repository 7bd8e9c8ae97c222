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
    functions = set()
    for node in ast.walk(tree):  # a call is met before what it is of
        if isinstance(node, ast.Call) and _is_function(node.func) and not node.keywords:
            assert isinstance(node.func, ast.Attribute)
            functions.update((node.func, node.func.value))
        elif node in functions or isinstance(node, (*_OPERATORS, *_OTHERS)):
            pass
        elif isinstance(node, ast.Name) and "__" not in node.id:
            pass
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            pass
        else:
            raise ValueError(f"the dimension {text!r} is not arithmetic of names and numbers")


def _is_function(func: ast.expr) -> bool:
    return (
        isinstance(func, ast.Attribute)
        and func.attr in _FUNCTIONS
        and isinstance(func.value, ast.Name)
        and func.value.id == "T"
    )
