"""Simpler indices, and the same arithmetic on elements.

TVM's simplifier makes no difference between the two: it would also rewrite what is computed from
elements, and does not know what rounding and infinity are.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm_ffi
from tvm import ir, tirx

from .te_block import loads_in

__all__ = ["with_simple_indices"]

_IF = ir.Op.get("prim.if_then_else")


def with_simple_indices(value: ir.Expr, simplify: Callable[[ir.Expr], ir.Expr]) -> ir.Expr:
    """An expression with simplified indices; a choice by index that is always the same is made.

    Parameters
    ----------
    value : tvm.ir.Expr
        Of elements, or of indices alone.
    simplify : Callable[[tvm.ir.Expr], tvm.ir.Expr]
        Of an index or a condition: an analyzer's, which knows the ranges of variables.
    """

    def choice(expr: ir.Expr) -> ir.Expr:
        if isinstance(expr, tirx.Select):
            condition, *sides = expr.condition, expr.true_value, expr.false_value
        elif expr.op.same_as(_IF):
            condition, *sides = expr.args[:]
        else:
            return expr
        if loads_in(condition):
            return expr
        condition = simplify(condition)
        if isinstance(condition, tirx.IntImm):
            return sides[0] if int(condition) else sides[1]
        if isinstance(expr, tirx.Select):
            return tirx.Select(condition, *sides)
        return tirx.if_then_else(condition, *sides)

    def number(expr: tirx.Cast) -> ir.Expr:
        of_indices = "float" not in f"{expr.ty}{expr.value.ty}" and not loads_in(expr)
        return simplify(expr.value).astype(str(expr.ty)) if of_indices else expr

    def load(expr: ir.TensorLoad) -> ir.Expr:
        return tirx.BufferLoad(expr.source, [simplify(index) for index in expr.indices[:]])

    # Choices first: what is not chosen has no index.
    value = tvm_ffi.structural_map(value, ((tirx.Select, ir.Call), choice))
    value = tvm_ffi.structural_map(value, (tirx.Cast, number))
    return tvm_ffi.structural_map(value, (ir.TensorLoad, load))
