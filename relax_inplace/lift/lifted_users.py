"""Writes the functions that take weights, once these are what a lift plan describes.

A variable that held a stored value is read from its field where it was computed before, so nothing
that uses it changes; what only led there goes.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import ir, relax, tirx

from ..ir.binding_rewriter import rewrite_bindings, with_blocks
from .plan import LiftPlan
from .shared_weights import WeightUser
from .transform import read_field, variable_in
from .user import called_user
from .weight_values import NumberedUser, Tree, Value, is_stop

__all__ = ["without_stops", "write_users"]


def write_users(plan: LiftPlan) -> dict[ir.GlobalVar, relax.Function]:
    """Write the functions that take the new tuple in the place of their weights.

    A global variable has the type of its function, so they get new ones, of the same names.
    """
    users = plan.graph.users
    renamed = {one.user.gvar: ir.GlobalVar(one.user.name) for one in users}
    written = {renamed[one.user.gvar]: _written(plan, one, renamed) for one in users}
    for gvar, function in written.items():
        relax.expr._update_type(gvar, function.ty)
    return written


def _written(
    plan: LiftPlan, numbered: NumberedUser, renamed: Mapping[ir.GlobalVar, ir.GlobalVar]
) -> relax.Function:
    user, function = numbered.user, numbered.user.function
    types = [_type(slot) for slot in plan.slots]
    if plan.dimensions:
        types.append(relax.ShapeType(plan.dimensions))
    params = relax.Var(user.tuple_name, relax.TupleType(types))
    place = _places(plan)
    bound = plan.values.bound[numbered]

    def read(var: relax.Var, tree: Tree, in_dataflow: bool) -> list[relax.Binding]:
        if isinstance(tree, Value):
            return read_field(var, params, place[tree], in_dataflow)
        assert isinstance(tree, list)
        bindings, fields = [], []
        for field in tree:
            fields.append(variable_in(in_dataflow)("field", _type(field)))
            bindings += read(fields[-1], field, in_dataflow)
        return [*bindings, relax.VarBinding(var, relax.Tuple(fields))]

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        var, value = binding.var, binding.value
        if var in numbered.holds:
            if var not in bound:
                return []
            kept = bound[var]
            if kept is None:
                return read(var, numbered.holds[var], isinstance(var, relax.DataflowVar))
            return [binding if kept.same_as(value) else relax.VarBinding(var, kept)]
        called = called_user(value, numbered, plan.graph)
        if called is not None:
            call = _with_params(value, renamed[called.gvar], called, params)
            return [relax.VarBinding(var, call)]
        return [binding]

    body = rewrite_bindings(function, lambda sequence: rewrite).body
    blocks = [block for block in body.blocks[:] if len(block.bindings)]
    given = [b for w in user.weights if w in bound for b in read(w, numbered.holds[w], False)]
    if given:
        blocks.insert(0, relax.BindingBlock(given))
    inputs = user.inputs
    written = relax.Function(
        [*inputs[: user.position], params, *inputs[user.position :]],
        relax.BlockBuilder().normalize(with_blocks(body, blocks)),
        function.ret_ty,
        function.is_pure,
        function.attrs,
        function.span,
    )
    # The transform has the dimensions of the weights, and no two functions may have the same.
    own = {
        var: tirx.Var(var.name, var.ty)
        for var in relax.analysis.defined_symbolic_vars(written)[:]
        if var in plan.graph.dimensions
    }
    return written.bind_symbolic_vars(own) if own else written


def without_stops(function: relax.Function) -> relax.Function:
    """Remove ``R.builtin.stop_lift_params``, which nothing in TVM lowers."""

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        if is_stop(binding.value):
            return [relax.VarBinding(binding.var, binding.value.args[0])]
        return [binding]

    return rewrite_bindings(function, lambda sequence: rewrite)


def _type(slot: Tree) -> ir.Type:
    if isinstance(slot, list):
        return relax.TupleType([_type(field) for field in slot])
    assert isinstance(slot, Value)
    return slot.var.ty


def _places(plan: LiftPlan) -> dict[Value, tuple[int, ...]]:
    """Where each stored value is in the tuple."""
    places: dict[Value, tuple[int, ...]] = {}

    def visit(slot: Tree, path: tuple[int, ...]) -> None:
        if isinstance(slot, list):
            for index, field in enumerate(slot):
                visit(field, (*path, index))
        else:
            assert isinstance(slot, Value)
            places[slot] = path

    for index, slot in enumerate(plan.slots):
        visit(slot, (index,))
    return places


def _with_params(
    call: ir.Call, gvar: ir.GlobalVar, called: WeightUser, params: relax.Var
) -> ir.Call:
    """A call of another function that takes the weights, which hands the new tuple on."""
    args = list(call.args[:])
    count = len(called.weights)
    args[called.position : called.position + count] = [params]
    return relax.Call(gvar, args, call.attrs, call.ty_args, call.span, ret_ty=call.ty)
