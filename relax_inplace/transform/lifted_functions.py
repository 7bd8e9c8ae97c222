"""Writes the functions that a lift plan describes: the transform, and those that use its result.

The transform is a dataflow block: the weights that it reads, what is computed from them, and the
tuple of what is stored. In a function that uses the weights, a variable that held a stored value is
read from its field where it was computed before; what only led there goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm import ir, relax, tirx

from ..analysis.lift_plan import LiftPlan
from ..analysis.lifted_user import users_called
from ..analysis.shared_weights import WeightUser
from ..analysis.weight_values import NumberedUser, Tree, Value, is_stop, leaves
from .binding_rewriter import rewrite_bindings, with_blocks

__all__ = ["without_stops", "write_transform", "write_users"]


def write_transform(plan: LiftPlan, mod: ir.IRModule) -> relax.Function:
    """Write the function that makes the new tuple of weights from the old one.

    Where a transform of the module makes the old one, it takes what that takes, and calls it.
    """
    shared = plan.graph.shared
    attrs: dict[str, object] = {}
    bindings: list[relax.Binding] = []
    if shared.transform is None:
        params = [source := relax.Var(_name_of_tuple(shared.users), shared.type)]
    else:
        called = mod[shared.transform]
        params = [relax.Var(var.name, var.ty) for var in called.params[:]]
        source = relax.DataflowVar("made", shared.type)
        call = relax.Call(shared.transform, params, ret_ty=shared.type)
        bindings.append(relax.VarBinding(source, call))
        if called.attrs and "num_input" in called.attrs:
            attrs["num_input"] = called.attrs["num_input"]

    computations, stored = plan.computations(), set(plan.stored())
    used = stored.union(value for made in computations for value in made.operands)
    for weight in leaves(plan.graph.weights):
        if weight in used:
            bindings += _read(weight.var, source, weight.path, in_dataflow=True)
    for made in computations:
        bindings.append(made.binding)
        for value in leaves(made.result):
            if value.path and value in used:
                bindings += _read(value.var, made.binding.var, value.path, in_dataflow=True)

    fields = [_expression(slot) for slot in plan.slots]
    if plan.dimensions:
        fields.append(relax.ShapeExpr(plan.dimensions))
    builder = relax.BlockBuilder()
    result = builder.normalize(relax.Tuple(fields))
    out = relax.Var("new_params", result.ty)
    bindings.append(relax.VarBinding(out, result))
    body = builder.normalize(relax.SeqExpr([relax.DataflowBlock(bindings)], out))
    return relax.Function(params, body, result.ty, attrs=ir.make_node("ir.DictAttrs", **attrs))


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
    params = relax.Var(_name_of_tuple([user]), relax.TupleType(types))
    place = _places(plan)
    bound = plan.bound_after(numbered)

    def read(var: relax.Var, tree: Tree, in_dataflow: bool) -> list[relax.Binding]:
        if isinstance(tree, Value):
            return _read(var, params, place[tree], in_dataflow)
        assert isinstance(tree, list)
        bindings, fields = [], []
        for field in tree:
            fields.append(_variable(in_dataflow)("field", _type(field)))
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
        if is_stop(value):
            return [relax.VarBinding(var, value.args[0])]
        called = users_called(value, numbered, plan.graph)
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


def _read(
    var: relax.Var, source: relax.Var, path: Sequence[int], in_dataflow: bool
) -> list[relax.Binding]:
    """Bind a variable to a field at any depth of a tuple."""
    bindings = []
    for index in path[:-1]:
        inner = relax.TupleGetItem(source, index)
        source = _variable(in_dataflow)("field", inner.ty)
        bindings.append(relax.VarBinding(source, inner))
    return [*bindings, relax.VarBinding(var, relax.TupleGetItem(source, path[-1]))]


def _variable(in_dataflow: bool) -> type[relax.Var]:
    return relax.DataflowVar if in_dataflow else relax.Var


def _name_of_tuple(users: Sequence[WeightUser]) -> str:
    return next((str(user.weights[0].name) for user in users if user.is_bundled), "params")


def _expression(slot: Tree) -> relax.Expr:
    if isinstance(slot, list):
        return relax.Tuple([_expression(field) for field in slot])
    assert isinstance(slot, Value)
    return slot.var


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
