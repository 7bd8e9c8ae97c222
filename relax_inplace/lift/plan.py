"""What is lifted out of the functions that share weights, and where it is put.

Definition
----------
The transform computes each stored value (:mod:`.stored_values`), and what it is made from. The
tuple holds the stored values, and no others: a weight that no function needs is dropped. A value
goes to the slot of the first weight that it is made from, if that weight is not stored itself and
nothing went there before; else to a new slot at the end.

Where nothing is computed, and no weights are tied, nothing is lifted: the tuple stays as it is, with
weights that no function needs.

A symbolic dimension that a function needs, and can read off none of its parameters any more, is in
a shape in the last slot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeAlias

from tvm import ir, relax, tirx

from ..ir.updates import bindings_of
from .selection import Selected, Selection, select
from .stored_values import StoredValues, choose_stored
from .user import bound_after
from .weight_values import Computation, NumberedUser, Tree, Value, ValueGraph, leaves

__all__ = ["LiftPlan", "Slot", "plan_lift"]

# The fields of the new tuple: values, or tuples of them where the old one had a tuple.
Slot: TypeAlias = Value | list["Slot"]


@dataclasses.dataclass(eq=False)
class LiftPlan:
    """What the transform computes, and what the tuple holds after it.

    Attributes
    ----------
    graph : ValueGraph
    values : StoredValues
    first_weight : dict of Computation to Value
        Of those that it is made from.
    selected : Selected
    placed : dict of Value to Value
        For a weight that nothing needs, the value that is in its slot.
    slots : list of Slot
        The fields of the tuple that the functions take.
    dimensions : list of tirx.Var
        Symbolic dimensions that functions need and can read off no field: the last field holds
        them, if there are any.
    """

    graph: ValueGraph
    values: StoredValues
    first_weight: dict[Computation, Value]
    selected: Selected
    placed: dict[Value, Value] = dataclasses.field(default_factory=dict)
    slots: list[Slot] = dataclasses.field(default_factory=list)
    dimensions: list[tirx.Var] = dataclasses.field(default_factory=list)

    def stored(self) -> Iterator[Value]:
        """The values in the tuple, in order."""
        for slot in self.slots:
            yield from leaves(slot)

    def bound_after(self, numbered: NumberedUser) -> dict[relax.Var, relax.Expr | None]:
        """What a function binds its variables to: see :mod:`.user`."""
        return bound_after(numbered, self.graph, self.values.needed_by.__contains__)

    def computations(self) -> list[Computation]:
        """What the transform computes, operands first."""
        pending = [value.made_by for value in self.stored()]
        pending += [made for made in self.graph.computations if self._defines_dimension(made)]
        needed: set[Computation] = set()
        while pending:
            made = pending.pop()
            if made is not None and made not in needed:
                needed.add(made)
                pending += [value.made_by for value in made.operands]
        return [made for made in self.graph.computations if made in needed]

    def hands_on(self) -> bool:
        """Whether the tuple stays as it is."""
        return not self.dimensions and self.slots == self.graph.weights

    def _defines_dimension(self, made: Computation) -> bool:
        if not self.dimensions or not made.is_cast:
            return False
        defined = relax.analysis.definable_tir_vars_in_type(made.binding.ty)[:]
        return any(var in self.dimensions for var in defined)


def plan_lift(
    graph: ValueGraph,
    max_resident: int | float | None = None,
    selection: Selection = Selection(),  # noqa: B008  frozen
) -> LiftPlan:
    """Decide what is lifted, and where it is put.

    Parameters
    ----------
    graph : ValueGraph
    max_resident : int or float, optional
        The most bytes that the tuple may hold; a float is a factor of the weights' bytes. Symbolic
        dimensions count as ``tir_var_upper_bound`` of the functions says, else as 1024.
    selection : Selection
        What is to be lifted.

    Raises
    ------
    LiftError
        The weights take more than ``max_resident`` if nothing is lifted that makes them larger.
    ValueError
        ``max_resident`` is not a number above 0.
    """
    selected = select(graph, selection)
    values = choose_stored(graph, max_resident, selected.left)
    plan = LiftPlan(graph, values, _first_weights(graph), selected)
    is_whole = graph.shared.transform is None and not graph.tied
    if is_whole and all(value.made_by is None for value in values.needed_by):
        plan.slots = list(graph.weights)
        return plan
    plan.slots = _slots(plan)
    plan.dimensions = _missing_dimensions(plan)
    return plan


# -- places -------------------------------------------------------------------------------------


def _first_weights(graph: ValueGraph) -> dict[Computation, Value]:
    """For each computation the first weight that it is made from."""
    first: dict[Computation, Value] = {}
    for made in graph.computations:
        for operand in made.operands:
            weight = operand if operand.made_by is None else first.get(operand.made_by)
            if weight is not None:
                first[made] = weight
                break
    return first


def _slots(plan: LiftPlan) -> list[Slot]:
    """The fields of the tuple; places values in the slots of weights that nothing needs."""
    new: list[Slot] = []
    stored = plan.values.needed_by
    for made, weight in plan.first_weight.items():
        for value in leaves(made.result):
            if value not in stored:
                continue
            if weight in stored or weight in plan.placed:
                new.append(value)
            else:
                plan.placed[weight] = value

    def slot(tree: Tree) -> Slot | None:
        if isinstance(tree, list):
            fields = [field for field in map(slot, tree) if field is not None]
            return fields if fields or not tree else None
        assert isinstance(tree, Value)
        return tree if tree in stored else plan.placed.get(tree)

    kept = (slot(tree) for tree in plan.graph.weights)
    return [*(one for one in kept if one is not None), *new]


def _missing_dimensions(plan: LiftPlan) -> list[tirx.Var]:
    """The symbolic dimensions that a function needs and can read off none of its parameters."""
    graph = plan.graph
    if not graph.dimensions:
        return []
    stored = relax.TupleType([value.var.ty for value in plan.stored()])
    missing: dict[tirx.Var, None] = {}
    for numbered in graph.users:
        bound = plan.bound_after(numbered)
        params = relax.TupleType([stored, *(var.ty for var in numbered.user.inputs)])
        known = set(relax.analysis.definable_tir_vars_in_type(params)[:])
        used = list(relax.analysis.tir_vars_in_type(params)[:])
        for binding, var, value, _ in numbered.bindings:
            if var not in numbered.holds or bound.get(var) is not None:
                if type(binding) is relax.MatchCast:
                    known.update(relax.analysis.definable_tir_vars_in_type(binding.ty)[:])
                used += (dim for dim in _dimensions_in(var, value) if dim not in known)
        used += relax.analysis.tir_vars_in_type(numbered.user.function.ret_ty)[:]
        missing.update((dim, None) for dim in used if dim in graph.dimensions and dim not in known)
    return list(missing)


def _dimensions_in(var: relax.Var, value: relax.Expr) -> Iterator[tirx.Var]:
    yield from relax.analysis.tir_vars_in_type(var.ty)[:]
    pending = [value]
    while pending:
        value = pending.pop()
        if type(value) is relax.Tuple:
            pending += value.fields[:]
        elif type(value) is relax.Function:
            for ty in (value.ret_ty, *(param.ty for param in value.params[:])):
                yield from relax.analysis.tir_vars_in_type(ty)[:]
            for binding in bindings_of(value):
                yield from _dimensions_in(binding.var, binding.value)
        elif isinstance(value.ty, ir.PrimType):
            yield from tirx.analysis.undefined_vars(value)
        elif type(value) is ir.Call:
            pending += [arg for arg in value.args[:] if type(arg) is not ir.GlobalVar]
            for ty in value.ty_args[:]:
                yield from relax.analysis.tir_vars_in_type(ty)[:]
        elif isinstance(value, relax.ShapeExpr):
            yield from relax.analysis.tir_vars_in_type(value.ty)[:]
