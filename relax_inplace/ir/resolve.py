"""What an expression is, through second names, tuples, and reads of fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import ir, relax

__all__ = ["resolve"]


def resolve(expr: relax.Expr, value_of: Callable[[relax.Var], Any]) -> Any:
    """Follow names and fields as far as they are known.

    Parameters
    ----------
    expr : relax.Expr
    value_of : callable
        What a variable stands for: an expression, or anything else that has ``fields`` if it is a
        tuple; None if that is not known.

    Returns
    -------
    relax.Expr or what ``value_of`` has returned
        The same object as ``expr`` if there is nothing to follow.
    """
    while True:
        kind = type(expr)  # the classes of tvm-ffi are abstract base classes: isinstance is slow
        if kind is ir.Var or kind is relax.DataflowVar:
            known = value_of(expr)
            if known is None:
                return expr
            expr = known
        elif kind is relax.TupleGetItem:
            source = resolve(expr.tuple_value, value_of)
            if isinstance(source, relax.Expr) and type(source) is not relax.Tuple:
                if source is expr.tuple_value or source.same_as(expr.tuple_value):
                    return expr
                return relax.TupleGetItem(source, expr.index, expr.span)
            expr = source.fields[expr.index]
        else:
            return expr
