"""Simpler indices, and the same arithmetic on elements.

TVM's simplifier makes no difference between the two: it would also rewrite what is computed from
elements, and does not know what rounding and infinity are.
"""

from __future__ import annotations

import tvm_ffi
from tvm import ir, sym, tirx

from ..analysis.te_block import loads_in

__all__ = ["with_simple_indices"]

_IF = ir.Op.get("prim.if_then_else")


def with_simple_indices(value: ir.Expr, analyzer: sym.Analyzer) -> ir.Expr:
    """An expression with simplified indices; a choice by index that is always the same is made.

    Parameters
    ----------
    value : tvm.ir.Expr
        Of elements, or of indices alone.
    analyzer : tvm.sym.Analyzer
        Knows the ranges of variables.
    """

    def load(expr: ir.TensorLoad) -> ir.Expr:
        return tirx.BufferLoad(expr.source, [analyzer.simplify(i) for i in expr.indices[:]])

    def number(expr: tirx.Cast) -> ir.Expr:
        of_indices = "float" not in f"{expr.ty}{expr.value.ty}" and not loads_in(expr)
        return analyzer.simplify(expr) if of_indices else expr

    def choice(expr: ir.Expr) -> ir.Expr:
        if isinstance(expr, tirx.Select):
            condition, *sides = expr.condition, expr.true_value, expr.false_value
        elif expr.op.same_as(_IF):
            condition, *sides = expr.args[:]
        else:
            return expr
        if loads_in(condition):
            return expr
        condition = analyzer.simplify(condition)
        if isinstance(condition, tirx.IntImm):
            return sides[0] if int(condition) else sides[1]
        if isinstance(expr, tirx.Select):
            return tirx.Select(condition, *sides)
        return tirx.if_then_else(condition, *sides)

    callbacks = [(ir.TensorLoad, load), (tirx.Cast, number), ((tirx.Select, ir.Call), choice)]
    return tvm_ffi.structural_map(value, callbacks)
