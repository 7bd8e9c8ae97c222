"""HideTupleTypes: what is updated n times is used by a name that does not have n types.

TVM's visitors visit the type of a name wherever it is used (src/relax/ir/expr_functor.cc,
``VisitExpr_`` for ``VarNode``): n reads and n updates of a tuple of n fields take each of its
passes n² steps. So

    w0 = params[0]
    R.inplace_update_tuple(params, 0, w0, ty_args=(R.Tuple,))
    w1 = params[1]
    R.inplace_update_tuple(params, 1, w1, ty_args=(R.Tuple,))

becomes

    w0 = params[0]
    untyped = R.match_cast(params, R.Any)
    R.inplace_update_tuple(untyped, 0, w0, ty_args=(R.Tuple,))
    w1 = R.call_pure_packed("vm.builtin.tuple_getitem", untyped, 1, ty_args=(R.Tensor(...),))
    R.inplace_update_tuple(untyped, 1, w1, ty_args=(R.Tuple,))

Definition: from the first statement on that updates a tuple, statements and reads in the same
sequence of bindings use a name of it that has no type. The value that is read keeps its type.

Right because the types have been checked, and a read stays a pure call: what passes may do to it
they may do to a ``TupleGetItem``.
"""

from __future__ import annotations

import functools

from tvm import ir, relax

from ..ir.binding_rewriter import Rewrite, rewrite_bindings
from ..op import VOID, is_statement, is_update

__all__ = ["hide_tuple_types"]


def hide_tuple_types(mod: ir.IRModule, updating: set[ir.GlobalVar]) -> ir.IRModule:
    """What it does to the functions that update, before TVM's pipeline."""
    mod = mod.clone()
    for gvar in updating:
        mod[gvar] = rewrite_bindings(mod[gvar], _hiding)
    return mod


def _hiding(_sequence: relax.SeqExpr) -> Rewrite:
    untyped: dict[relax.Expr, relax.Var] = {}

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        var, value = binding.var, binding.value
        if isinstance(value, relax.TupleGetItem):
            source = untyped.get(value.tuple_value)
            if source is None:
                return [binding]
            read = _read(source, value)
            if isinstance(binding, relax.MatchCast):
                return [relax.MatchCast(var, read, binding.ty)]
            return [relax.VarBinding(var, read)]
        if is_update(value) and is_statement(var):
            source, index, new = value.args[:]
            cast = []
            if not isinstance(source.ty, relax.TupleType):
                return [binding]
            if source not in untyped:
                untyped[source] = relax.Var("untyped", relax.AnyType())
                cast = [relax.MatchCast(untyped[source], source, relax.AnyType())]
            operands = [untyped[source], index, new]
            call = relax.Call(value.op, operands, None, [VOID], value.span, ret_ty=VOID)
            return [*cast, relax.VarBinding(var, call)]
        return [binding]

    return rewrite


def _read(source: relax.Var, value: relax.TupleGetItem) -> relax.Call:
    operands = [_tuple_getitem(), source, relax.prim_value(value.index)]
    return relax.Call(_pure(), operands, None, [value.ty], value.span, ret_ty=value.ty)


@functools.cache
def _pure() -> ir.Op:
    return ir.Op.get("relax.call_pure_packed")


@functools.cache
def _tuple_getitem() -> relax.ExternFunc:
    return relax.ExternFunc("vm.builtin.tuple_getitem")
