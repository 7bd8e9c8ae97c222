"""What a transform is given: inputs, and weights of which it may modify some."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import ir, relax

from ..ir.byte_size import tensors_in
from ..weight_names import GivenNames, given_names, is_made_up, own_names
from .steps import Load
from .transform_graph import TransformGraph, UnsupportedTransformError, number_of_inputs
from .weights import Buffer, Container, Weight

__all__ = ["called_fields", "names_of_weights", "read_signature"]


def read_signature(
    name: str,
    function: relax.Function,
    selected: Sequence[str | int] | None,
    lazy: bool,
    names: GivenNames | None = None,
) -> TransformGraph:
    """The graph of a function of which nothing but the parameters has been read.

    Parameters
    ----------
    name : str
    function : relax.Function
    selected : sequence of str or int, optional
        The weights that may be modified, by name or by their index in the tuple; all by default.
    lazy : bool
        Whether it is streamed.
    names : mapping, sequence, callable or path, optional
        Of the fields of the tuple: see :mod:`..weight_names`.
    """
    params = list(function.params[:])
    count = number_of_inputs(function)
    leading, trailing = params[:count], params[count:]
    if not trailing:
        raise UnsupportedTransformError.of(
            function=name,
            reason=f"it takes no weights: num_input={count} of its {len(params)} parameters "
            "are inputs",
        )
    is_tuple = _is_tuple(trailing)
    if is_tuple:
        bundle, ty = trailing[0], trailing[0].ty
    else:
        ty = relax.TupleType([param.ty for param in trailing])
        bundle = relax.Var("params", ty)
    root = Container(None, -1, ty)
    called = given_names(names, names_of_weights(function), f"`{name}`")
    modifiable = _selected(name, selected, called, len(ty.fields))
    for index, field in enumerate(ty.fields[:]):
        root.fields.append(_field(root, index, field, called[index], index in modifiable, lazy))
    graph = TransformGraph(name, function, leading, bundle, root, root)
    if lazy:
        _stream(graph)
    graph._known[bundle] = root
    if not is_tuple:
        graph._known.update(zip(trailing, root.fields, strict=True))
    for param in leading:
        if any(tensors_in(param.ty)):
            graph._layout[param] = frozenset([Buffer(param.name, 0)])
    return graph


def names_of_weights(function: relax.Function) -> list[str]:
    """What a function calls the fields of its weights, or the parameters that they are."""
    trailing = list(function.params[number_of_inputs(function) :])
    if _is_tuple(trailing):
        return own_names(called_fields(function, trailing[0]), trailing[0].name)
    return own_names([param.name for param in trailing], "params")


def called_fields(function: relax.Function, bundle: relax.Var) -> list[str]:
    """For each field of a tuple the variable that it is read into first; "" if none has a name."""
    names = [""] * len(bundle.ty.fields)
    for block in function.body.blocks[:]:
        for binding in block.bindings[:]:
            value = binding.value
            if isinstance(value, relax.TupleGetItem) and value.tuple_value.same_as(bundle):
                name, index = str(binding.var.name), value.index
                if not names[index] and not is_made_up(name):
                    names[index] = name
    return names


def _is_tuple(trailing: Sequence[relax.Var]) -> bool:
    return len(trailing) == 1 and isinstance(trailing[0].ty, relax.TupleType)


def _stream(graph: TransformGraph) -> None:
    """Let a callable take the place of the weights, and an empty tuple that of their slots."""
    ret_ty = graph.function.ret_ty
    if not isinstance(ret_ty, relax.TupleType):
        return  # which is refused
    slots = Container(None, -1, relax.TupleType([relax.AnyType()] * len(ret_ty.fields)))
    for index in range(len(ret_ty.fields)):
        slots.fields.append(Container(slots, index, relax.TupleType([])))
    ty = relax.FuncType([ir.PrimType("int64")], relax.AnyType(), purity=False)
    get_weight = relax.Var("get_weight", ty)
    graph.slots, graph.get_weight = slots, get_weight
    graph.params = relax.Var("params", slots.ty)
    for index, weight in enumerate(graph.root.weights()):
        load = graph.loads[weight] = Load.of(weight, index, get_weight)
        graph._step_of[load.kernels[0].binding.var] = load


def _field(
    parent: Container, index: int, ty: ir.Type, name: str, is_modifiable: bool, lazy: bool
) -> Container | Weight:
    if not isinstance(ty, relax.TupleType):
        return Weight(parent, index, name, ty, is_modifiable, lazy)
    container = Container(parent, index, ty)
    for i, field in enumerate(ty.fields[:]):
        container.fields.append(_field(container, i, field, f"{name}[{i}]", is_modifiable, lazy))
    return container


def _selected(
    function: str, selected: Sequence[str | int] | None, names: list[str], count: int
) -> set[int]:
    """The indices of the weights that may be modified."""
    if selected is None:
        return set(range(count))
    indices = set()
    for wanted in selected:
        if isinstance(wanted, str) and wanted in names:
            indices.add(names.index(wanted))
        elif type(wanted) is int and -count <= wanted < count:
            indices.add(wanted % count)
        else:
            known = [name for name in names if name]
            raise UnsupportedTransformError.of(
                function=function,
                reason=f"params={list(selected)!r}: it has no weight {wanted!r}; expected indices "
                f"below {count}, or names among {known}",
            )
    return indices
