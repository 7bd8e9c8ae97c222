"""What the parameter map says of a transform: an entry of :mod:`..lower.param_map`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, relax

from ..ir.names import unused
from ..ir.tuple_tree import slot_text
from ..ir.updates import bindings_of
from ..lower.param_map import Entry
from .schedule import Schedule
from .steps import Load, Step
from .transform_graph import Known, TransformGraph
from .weights import Container, Weight

__all__ = ["entry_of", "restoring_entry"]


def entry_of(schedule: Schedule, mod: ir.IRModule) -> Entry:
    """What the map says of a transform that is carried out by a schedule."""
    graph = schedule.graph
    weights = list(graph.root.weights())
    made_from = _made_from(graph)
    params: list[Entry] = []
    taken: set[str] = set()
    for index, (output, ty) in enumerate(
        zip(graph.outputs, graph.function.ret_ty.fields[:], strict=True)
    ):
        sources = made_from[index]
        for slot, leaf_ty, weight in _leaves(output, ty, str(index)):
            mine = [weight] if weight is not None else sources
            name = unused(_name(slot, mine), taken)
            taken.add(name)
            params.append({**_typed(name, slot, leaf_ty), "from": [one.name for one in mine]})
    lives = schedule.lives()
    steps = [
        {
            "computes": step.name,
            "writes": [str(i) for i in written],
            "frees": [_slot(b.weight) for b in frees if b.weight and b in step.kernels[-1].uses],
            "before": live.before,
            "worst": live.worst,
        }
        for step, written, frees, live in zip(
            schedule.steps, schedule.finished()[1:], schedule.frees, lives, strict=True
        )
    ]
    return {
        "layout": _layout(graph.function, mod),
        "restores": None,
        "reference": None,
        "streamed": graph.get_weight is not None,
        "loads": [step.index for step in schedule.steps if isinstance(step, Load)],
        "target": None,
        "tied": [],
        "peak": schedule.peak(),
        "weights": [_typed(one.name, _slot(one), one.ty) for one in weights],
        "params": params,
        "steps": steps,
    }


def restoring_entry(entry: Entry, undoes: str, undone: Entry) -> Entry:
    """The entry of what restores the weights of another transform, which it names as that does."""

    def named(mine: Sequence[Entry], others: Sequence[Entry]) -> list[Entry]:
        return [{**one, "name": other["name"]} for one, other in zip(mine, others, strict=True)]

    return {
        **entry,
        "restores": undoes,
        "weights": named(entry["weights"], undone["params"]),
        "params": named(entry["params"], undone["weights"]),
    }


def _typed(name: str, slot: str, ty: ir.Type) -> Entry:
    """A tensor's shape and dtype; both null where they are not known, or it is none."""
    shape, dtype = None, None
    if isinstance(ty, relax.TensorType):
        dtype = str(ty.dtype.dtype) if ty.dtype is not None else None
        if isinstance(ty.shape, relax.ShapeExpr):
            shape = [
                int(size.value) if isinstance(size, tvm.tirx.IntImm) else str(size)
                for size in ty.shape.values[:]
            ]
    return {"name": name, "slot": slot, "shape": shape, "dtype": dtype}


def _slot(weight: Weight) -> str:
    return slot_text(weight.path)


def _leaves(output: Known, ty: ir.Type, slot: str) -> Iterator[tuple[str, ir.Type, Weight | None]]:
    """The places and types of what an output consists of, and the weights that it holds as such."""
    if isinstance(ty, relax.TupleType):
        fields: Sequence[Any] = [None] * len(ty.fields)
        if isinstance(output, Container):
            fields = output.fields
        elif isinstance(output, relax.Tuple):
            fields = output.fields[:]
        for index, (field, field_ty) in enumerate(zip(fields, ty.fields[:], strict=True)):
            yield from _leaves(field, field_ty, f"{slot}.{index}")
    else:
        yield slot, ty, output if isinstance(output, Weight) else None


def _name(slot: str, sources: Sequence[Weight]) -> str:
    """That of the weight whose slot it is in, if it is made from it; else of the first."""
    for weight in sources:
        if _slot(weight) == slot:
            return weight.name
    return sources[0].name if sources else f"output{slot}"


def _made_from(graph: TransformGraph) -> list[list[Weight]]:
    """The weights that each output is made from, in order."""
    cones: dict[Step, dict[Weight, None]] = {}
    for step in graph.steps:  # operands come first
        cone: dict[Weight, None] = {}
        for operand in step.operands:
            cone.update(cones[operand])
        cones[step] = {**cone, **step.reads}
    loaded = {load: weight for weight, load in graph.loads.items()}
    result = []
    for output in graph.outputs:
        steps, weights = graph.needs(output)
        cone = dict(weights)
        for step in steps:
            cone.update({loaded[step]: None} if step in loaded else cones[step])
        result.append(list(cone))
    return result


def _layout(function: relax.Function, mod: ir.IRModule) -> str:
    """A digest: the same for functions that compute the same, with the same kernels."""
    hashes: dict[str, str] = {}

    def visit(name: str, function: ir.BaseFunc) -> None:
        attrs = function.attrs
        if attrs and "global_symbol" in attrs:
            function = function.without_attr("global_symbol")
        hashes[name] = f"{tvm_ffi.structural_hash(function, map_free_vars=True) % 2**64:x}"
        if not isinstance(function, relax.Function):
            return
        for binding in bindings_of(function):
            value = binding.value
            if isinstance(value, ir.Call):
                for one in (value.op, *value.args[:]):
                    if isinstance(one, ir.GlobalVar) and one.name_hint not in hashes:
                        visit(one.name_hint, mod[one])

    visit("", function)
    text = json.dumps(hashes, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
