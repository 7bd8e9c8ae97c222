"""The transform that a lift plan describes, out of place: what is planned, and rewritten in place.

It is a dataflow block: the weights that are read, what is computed from them, and the tuple of what
is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import ir, relax

from ..inplace.inplace_transform_params import inplace_name
from ..inplace.schedule import UPPER_BOUND, bounds_of
from ..inplace.transform_graph import TRANSFORM
from .plan import LiftPlan
from .weight_values import Tree, Value, leaves

__all__ = ["read_field", "variable_in", "write_transform"]


def write_transform(plan: LiftPlan, mod: ir.IRModule) -> relax.Function:
    """Write the function that makes the new tuple of weights from the old one.

    Where it cannot put a transform of the module back, it takes what that takes, and calls it.
    """
    shared = plan.graph.shared
    attrs: dict[str, object] = {"global_symbol": TRANSFORM}
    named = shared.users[0].function if shared.transform is None else mod[shared.transform]
    if bounds := bounds_of(named):  # its dimensions have the names that they have there
        attrs[UPPER_BOUND] = dict(bounds)
    bindings: list[relax.Binding] = []
    if not shared.is_called:
        params = [source := relax.Var(shared.tuple_name, shared.type)]
    else:
        assert shared.transform is not None
        attrs["global_symbol"] = inplace_name(TRANSFORM)  # not that of what it calls
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
            bindings += read_field(weight.var, source, weight.path, in_dataflow=True)
    for made in computations:
        bindings.append(made.binding)
        for value in leaves(made.result):
            if value.path and value in used:
                bindings += read_field(value.var, made.binding.var, value.path, in_dataflow=True)

    fields = [_expression(slot) for slot in plan.slots]
    if plan.dimensions:
        fields.append(relax.ShapeExpr(plan.dimensions))
    builder = relax.BlockBuilder()
    result = builder.normalize(relax.Tuple(fields))
    out = relax.Var("new_params", result.ty)
    bindings.append(relax.VarBinding(out, result))
    body = builder.normalize(relax.SeqExpr([relax.DataflowBlock(bindings)], out))
    return relax.Function(params, body, result.ty, attrs=ir.make_node("ir.DictAttrs", **attrs))


def read_field(
    var: relax.Var, source: relax.Var, path: Sequence[int], in_dataflow: bool
) -> list[relax.Binding]:
    """Bindings of a variable to a field at any depth of a tuple."""
    bindings = []
    for index in path[:-1]:
        inner = relax.TupleGetItem(source, index)
        source = variable_in(in_dataflow)("field", inner.ty)
        bindings.append(relax.VarBinding(source, inner))
    return [*bindings, relax.VarBinding(var, relax.TupleGetItem(source, path[-1]))]


def variable_in(in_dataflow: bool) -> type[relax.Var]:
    """The kind of variable that is seen there, and no further than it has to."""
    return relax.DataflowVar if in_dataflow else relax.Var


def _expression(slot: Tree) -> relax.Expr:
    if isinstance(slot, list):
        return relax.Tuple([_expression(field) for field in slot])
    assert isinstance(slot, Value)
    return slot.var
