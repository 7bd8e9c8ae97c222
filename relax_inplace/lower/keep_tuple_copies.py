"""KeepTupleCopies: a tuple that copies another field by field stays a tuple of its own.

TVM's tuples are values: ``CanonicalizeBindings`` (src/relax/transform/canonicalize_bindings.cc,
UnwrapKnownValue), which ``KillAfterLastUse`` runs, replaces

    a = params[0]
    b = params[1]
    copy = (a, b)

by ``copy = params``. Where one of the two is updated, the other would change with it.

Definition: in a function that updates a tuple, a tuple expression of which each field ``i`` is a
read of a field ``i`` is made with its first slot empty, which is then filled in place:

    nothing = R.null_value()
    unfilled = (nothing, b)
    copy = R.inplace_update_tuple(unfilled, 0, a, ty_args=(...,))
"""

from __future__ import annotations

from tvm import ir, relax

from ..ir.binding_rewriter import rewrite_bindings
from ..ir.updates import bindings_of
from ..op import the_op

__all__ = ["filled_in_place", "keep_tuple_copies"]


def keep_tuple_copies(mod: ir.IRModule, updating: set[ir.GlobalVar]) -> ir.IRModule:
    """What it does to the functions that update, before TVM's pipeline."""
    copying = [gvar for gvar in updating if _copies(mod[gvar])]
    if not copying:
        return mod
    mod = mod.clone()
    # An update may not stand in a dataflow block. Rare enough to give up fusion for.
    without_dataflow = relax.transform.ToNonDataflow()(mod)
    for gvar in copying:
        mod[gvar] = _without_copies(without_dataflow[gvar])
    return mod


def _without_copies(function: relax.Function) -> relax.Function:
    copies = _copies(function)

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        if binding.var in copies:
            return filled_in_place(binding.var, binding.value)
        return [binding]

    return rewrite_bindings(function, lambda _sequence: rewrite)


def _copies(function: relax.Function) -> set[relax.Var]:
    """The variables that are bound to a tuple which TVM would take for another one."""
    values = {binding.var: binding.value for binding in bindings_of(function)}
    return {
        var
        for var, value in values.items()
        if isinstance(value, relax.Tuple) and _is_copy(value, values)
    }


def _is_copy(expr: relax.Tuple, values: dict[relax.Var, relax.Expr]) -> bool:
    fields = expr.fields[:]
    return bool(fields) and all(
        isinstance(read := _known(field, values), relax.TupleGetItem) and read.index == index
        for index, field in enumerate(fields)
    )


def _known(expr: relax.Expr, values: dict[relax.Var, relax.Expr]) -> relax.Expr:
    """What TVM can see that a value is, through names and through tuples that are made here."""
    while True:
        if isinstance(expr, relax.Var) and expr in values:
            expr = values[expr]
        elif isinstance(expr, relax.TupleGetItem):
            source = _known(expr.tuple_value, values)
            if not isinstance(source, relax.Tuple):
                return expr
            expr = source.fields[expr.index]
        else:
            return expr


def filled_in_place(var: relax.Var, value: relax.Tuple) -> list[relax.Binding]:
    """Bindings of a variable to a tuple that is made with its first slot empty, and filled."""
    normalize = relax.BlockBuilder().normalize
    nothing = relax.Var("nothing", relax.AnyType())
    first, *others = value.fields[:]
    unfilled_value = normalize(relax.Tuple([nothing, *others]))
    unfilled = relax.Var("unfilled", unfilled_value.ty)
    fill = relax.Call(the_op(), [unfilled, relax.prim_value(0), first], None, [var.ty], value.span)
    return [
        relax.VarBinding(nothing, normalize(relax.op.null_value())),
        relax.VarBinding(unfilled, unfilled_value),
        relax.VarBinding(var, normalize(fill)),
    ]
