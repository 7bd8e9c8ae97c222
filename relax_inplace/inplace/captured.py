"""What a branch or a local function captures.

Definition
----------
An ``R.If`` and a local function *capture* the variables that are bound outside of them and used
inside. One that reads a field of a tuple captures the tuple, and all that it holds. So reads of
what is outside are moved out: what is captured then is what is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm_ffi
from tvm import relax

from ..ir.binding_rewriter import rewrite_bindings
from ..ir.resolve import resolve

__all__ = ["reads_moved_out", "with_captures"]


def reads_moved_out(
    expr: relax.If | relax.Function,
) -> tuple[relax.If | relax.Function, dict[relax.Var, relax.Expr]]:
    """The expression without bindings of outside variables and of fields of them.

    Returns
    -------
    relax.If or relax.Function
        It captures the variables that were bound so.
    dict of relax.Var to relax.Expr
        What they are bound to: a variable, or a field of one.
    """
    outside = set(relax.analysis.free_vars(expr)[:])
    moved: dict[relax.Var, relax.Expr] = {}

    def is_outside(value: relax.Expr) -> bool:
        while type(value) is relax.TupleGetItem:
            value = value.tuple_value
        return value in outside

    def kept(binding: relax.Binding) -> list[relax.Binding]:
        var, value = binding.var, resolve(binding.value, moved.get)
        if not is_outside(value):
            return [binding]
        if type(binding) is relax.VarBinding:
            moved[var] = value
            return []
        read = relax.Var(var.name, value.ty)  # of a match_cast
        moved[read] = value
        return [relax.MatchCast(var, read, binding.ty)]

    return _value(rewrite_bindings(_returning(expr), lambda _: kept)), moved


def with_captures(
    expr: relax.If | relax.Function, names: Mapping[relax.Var, relax.Var]
) -> relax.If | relax.Function:
    """The expression with other names for what it captures."""
    return tvm_ffi.structural_map(expr, (relax.Var, lambda var: names.get(var, var)))


def _returning(expr: relax.Expr) -> relax.Function:
    """A function that returns the value of an expression: what TVM can rewrite."""
    result = relax.Var("result", expr.ty)
    block = relax.BindingBlock([relax.VarBinding(result, expr)])
    body = relax.BlockBuilder().normalize(relax.SeqExpr([block], result))
    return relax.Function([], body, expr.ty, is_pure=False)


def _value(function: relax.Function) -> relax.Expr:
    return function.body.blocks[0].bindings[0].value
