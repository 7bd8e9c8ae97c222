"""What is lifted out of the functions that share weights, and where it is put.

Definition
----------
A function *needs* a value that something uses which is not computed from weights alone. Every value
that a function needs is *stored*: the transform computes it, the tuple holds it. A weight that no
function needs, and that nothing that a function computes itself is made from, is dropped.

A value that is not stored is computed in the functions that need it, which then need its operands:
one that is not made from any weight, a number, the result of a ``match_cast``, which is its operand
again; and what would make the stored values larger than a budget.

*Over budget.* The value that is dearest per byte saved goes first. Storing a value costs the bytes
that the tuple is larger by, and saves those that its computation reads and writes in each function
that needs it, each time. If its operands are no smaller, their computations are counted with it,
until less is stored.

*Places.* A value goes to the slot of the first weight that it is made from, if that weight is not
stored itself and nothing went there before; else to a new slot at the end.
"""

from __future__ import annotations

import dataclasses
import heapq
import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from tvm import ir, relax, tirx

from .byte_size import at_bounds
from .schedule import NOMINAL_DIMENSION, bounds_of
from .shared_weights import LiftError, WeightUser
from .updates import bindings_of
from .weight_values import Computation, NumberedUser, Tree, Value, ValueGraph, leaves

__all__ = ["LiftPlan", "Slot", "bound_after", "is_stored", "plan_lift", "users_called"]

# The fields of the new tuple: values, or tuples of them where the old one had a tuple.
Slot: TypeAlias = Value | list["Slot"]


@dataclasses.dataclass(eq=False)
class LiftPlan:
    """What the transform computes, and what the tuple holds after it.

    Attributes
    ----------
    graph : ValueGraph
    needed_by : dict of Value to dict of str to None
        The functions that need each stored value.
    left : dict of Computation to str
        What is not lifted though it could be, and why.
    first_weight : dict of Computation to Value
        Of those that it is made from.
    placed : dict of Value to Value
        For a weight that nothing needs, the value that is in its slot.
    slots : list of Slot
        The fields of the tuple that the functions take.
    dimensions : list of tirx.Var
        Symbolic dimensions that functions need and can read off no field: the last field holds
        them, if there are any.
    """

    graph: ValueGraph
    needed_by: dict[Value, dict[str, None]]
    left: dict[Computation, str]
    first_weight: dict[Computation, Value]
    placed: dict[Value, Value] = dataclasses.field(default_factory=dict)
    slots: list[Slot] = dataclasses.field(default_factory=list)
    dimensions: list[tirx.Var] = dataclasses.field(default_factory=list)

    def stored(self) -> Iterator[Value]:
        """The values in the tuple, in order."""
        for slot in self.slots:
            yield from leaves(slot)

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


def plan_lift(graph: ValueGraph, max_resident: int | float | None = None) -> LiftPlan:
    """Decide what is lifted, and where it is put.

    Parameters
    ----------
    graph : ValueGraph
    max_resident : int or float, optional
        The most bytes that the tuple may hold; a float is a factor of the weights' bytes. Symbolic
        dimensions count as ``tir_var_upper_bound`` of the functions says, else as 1024.

    Raises
    ------
    LiftError
        The weights take more than ``max_resident`` if nothing is lifted that makes them larger.
    ValueError
        ``max_resident`` is not a number above 0.
    """
    storage = _Storage(graph)
    if max_resident is not None:
        storage.limit(_bytes_of(graph, max_resident, storage), max_resident)
    plan = LiftPlan(graph, storage.needed_by, storage.left, _first_weights(graph))
    plan.slots = _slots(plan)
    plan.dimensions = _missing_dimensions(plan)
    return plan


def bound_after(numbered: NumberedUser, plan: LiftPlan) -> dict[relax.Var, relax.Expr | None]:
    """What variables of a function are bound to afterwards, of those that weights alone make.

    None for one that is read from the tuple. One that is not there is not used any more.
    """
    function, holds = numbered.user.function, numbered.holds
    names = {
        var: value
        for binding, var, value in numbered.bindings
        if type(binding) is relax.VarBinding and type(value) in _NAMES and var in holds
    }
    bound: dict[relax.Var, relax.Expr | None] = {}
    used = set(_used_by(numbered, function.body.body, plan.graph))
    for binding, var, value in reversed(numbered.bindings):
        if var not in holds:
            used.update(_used_by(numbered, value, plan.graph))
        elif var in used:
            if is_stored(holds[var], plan):
                bound[var] = None
            else:
                bound[var] = (
                    value if isinstance(binding, relax.MatchCast) else _resolve(value, names)
                )
                used.update(relax.analysis.free_vars(bound[var])[:])
    bound.update((var, None) for var in numbered.user.weights if var in used)
    return bound


_NAMES = (ir.Var, relax.DataflowVar, relax.Tuple, relax.TupleGetItem)


def _resolve(expr: relax.Expr, names: Mapping[relax.Var, relax.Expr]) -> relax.Expr:
    """Past second names and the fields of tuples, so that no more of a tuple is used."""
    while True:
        if type(expr) is relax.TupleGetItem:
            source = _resolve(expr.tuple_value, names)
            if type(source) is not relax.Tuple:
                same = source.same_as(expr.tuple_value)
                return expr if same else relax.TupleGetItem(source, expr.index)
            expr = source.fields[expr.index]
        elif expr in names:
            expr = names[expr]
        else:
            return expr


def is_stored(tree: Tree, plan: LiftPlan) -> bool:
    """Whether all of it is in the tuple of weights."""
    if isinstance(tree, list):
        return all(is_stored(field, plan) for field in tree)
    return tree in plan.needed_by


def users_called(value: relax.Expr, numbered: NumberedUser, graph: ValueGraph) -> WeightUser | None:
    """The function that is called, if it shares the weights and is handed them as they are.

    Raises
    ------
    LiftError
        It is handed other weights.
    """
    if type(value) is not ir.Call or type(value.op) is not ir.GlobalVar:
        return None
    called = next((user for user in graph.shared.users if value.op.same_as(user.gvar)), None)
    if called is None:
        return None
    args = value.args[called.position : called.position + len(called.weights)]
    handed = [numbered.holds.get(arg) for arg in args]
    own: list[Tree] = [numbered.holds[weight] for weight in numbered.user.weights]
    if numbered.user.is_bundled and not called.is_bundled:
        own = list(own[0])  # type: ignore[arg-type]
    if len(handed) != len(own) or any(one is not two for one, two in zip(handed, own, strict=True)):
        raise LiftError.of(
            functions=graph.shared.listed,
            reason=f"`{numbered.user.name}` calls `{called.name}` with other weights than its own",
        )
    return called


def _used_by(numbered: NumberedUser, value: relax.Expr, graph: ValueGraph) -> list[relax.Var]:
    """The variables that an expression uses itself, not in the bindings that are inside it."""
    if type(value) is relax.If:
        parts = [value.cond, value.true_branch.body, value.false_branch.body]
    else:
        called = users_called(value, numbered, graph)
        if called is None:
            return relax.analysis.free_vars(value)[:]
        first, last = called.position, called.position + len(called.weights)
        parts = [*value.args[:first], *value.args[last:]]
    return [var for part in parts for var in relax.analysis.free_vars(part)[:]]


class _Storage:
    """Which values are stored."""

    def __init__(self, graph: ValueGraph):
        self.graph = graph
        self.needed_by: dict[Value, dict[str, None]] = {}
        self.left: dict[Computation, str] = {}
        self.bounds: Mapping[str, int] = {}
        self.bytes_of: dict[Value, int] = {}
        self.is_left_to_users: set[Computation] = set()
        for numbered in graph.users:
            self.bounds = {**self.bounds, **bounds_of(numbered.user.function)}
        for numbered in graph.users:
            for value in self._used_outside(numbered):
                self._need(value, [numbered.user.name])

    def _used_outside(self, numbered: NumberedUser) -> Iterator[Value]:
        """The values that a function uses in something that is not made from weights alone."""
        holds = numbered.holds
        expressions = [value for _, var, value in numbered.bindings if var not in holds]
        for expression in [*expressions, numbered.user.function.body.body]:
            for var in _used_by(numbered, expression, self.graph):
                if var in holds:
                    yield from leaves(holds[var])

    def _need(self, value: Value, users: Iterable[str]) -> list[Value]:
        """Note who needs a value; what is stored for that and was not before."""
        new = []
        for stored in self._stored_for(value):
            if stored not in self.needed_by:
                new.append(stored)
            self.needed_by.setdefault(stored, {}).update(dict.fromkeys(users))
        return new

    def _stored_for(self, value: Value) -> Iterator[Value]:
        """What a function reads that uses a value: it, or what it computes it from itself."""
        pending = [value]
        while pending:
            value = pending.pop()
            made = value.made_by
            if made is None or (made not in self.is_left_to_users and self._is_storable(value)):
                yield value
            else:
                pending += made.operands[::-1]

    def _is_storable(self, value: Value) -> bool:
        made = value.made_by
        assert made is not None
        if not made.needs_weight or made.is_cast:
            return False
        if isinstance(value.var.ty, (relax.TensorType, relax.ShapeType)):
            return True
        self.left.setdefault(made, f"`{value.name}` is no tensor")
        return False

    # -- the budget ---------------------------------------------------------------------------

    def bytes(self, value: Value) -> int:
        """Of a value, or about as many where its dimensions are symbolic."""
        known = self.bytes_of.get(value)
        if known is None:
            known = self.bytes_of[value] = self._bytes(value)
        return known

    def _bytes(self, value: Value) -> int:
        size = at_bounds(value.size, self.bounds, NOMINAL_DIMENSION)
        assert isinstance(size, int)
        return size

    def total(self) -> int:
        """Of all that is stored."""
        return sum(map(self.bytes, self.needed_by))

    def limit(self, limit: int, given: int | float) -> None:
        """Store less, until it is at most so many bytes."""
        total = self.total()
        if total <= limit:
            return
        made_from: dict[Value, list[Computation]] = {}
        for made in self.graph.computations:
            for value in made.operands:
                made_from.setdefault(value, []).append(made)
        number = {made: i for i, made in enumerate(self.graph.computations)}
        heap: list[tuple[float, int]] = []

        def push(made: Computation) -> None:
            retreat = self._retreat(made)
            if retreat is not None:
                heapq.heappush(heap, (-retreat.dearness, number[made]))

        for computed in {value.made_by: None for value in self.needed_by}:
            if computed is not None:
                push(computed)
        while total > limit:
            if not heap:
                raise LiftError.of(
                    functions=self.graph.shared.listed,
                    reason=f"max_resident={given!r} is {limit} bytes, but the weights that they "
                    f"need take {total} bytes, even if nothing is lifted that makes them larger",
                )
            dearness, index = heapq.heappop(heap)
            made = self.graph.computations[index]
            retreat = self._retreat(made)
            if retreat is None:
                continue
            if -retreat.dearness > dearness:  # it was dearer when it was looked at
                heapq.heappush(heap, (-retreat.dearness, index))
                continue
            for value in self._leave(retreat, given):
                if value.made_by is not None:
                    push(value.made_by)
                for reader in made_from.get(value, ()):  # its operand is stored by now
                    push(reader)
            total -= retreat.saved

    def _retreat(self, made: Computation) -> _Retreat | None:
        """What to leave to the functions so that less is stored; None if nothing would do."""
        if not any(value in self.needed_by for value in leaves(made.result)):
            return None
        left = {made: None}
        while True:
            freed = [v for one in left for v in leaves(one.result) if v in self.needed_by]
            users = {user: None for value in freed for user in self.needed_by[value]}
            taken: dict[Value, None] = {}
            for one in left:
                for operand in one.operands:
                    for value in self._stored_for(operand):
                        if value not in self.needed_by and value.made_by not in left:
                            taken[value] = None
            saved = sum(map(self.bytes, freed)) - sum(map(self.bytes, taken))
            if saved > 0:
                moved = sum(self._moved(one) for one in left) * len(users)
                return _Retreat(list(left), saved, saved / max(1, moved))
            earlier = [v.made_by for v in taken if v.made_by is not None]
            if not earlier:
                return None
            left.update(dict.fromkeys(earlier))

    def _moved(self, made: Computation) -> int:
        """Bytes that a computation reads and writes."""
        return sum(map(self.bytes, (*made.operands, *leaves(made.result))))

    def _leave(self, retreat: _Retreat, given: int | float) -> list[Value]:
        """Leave computations to the functions that need them; what is stored for that."""
        new = []
        for made in retreat.computations:
            self.is_left_to_users.add(made)
            self.left[made] = (
                f"storing it would take {retreat.saved:,} bytes more; max_resident={given!r}"
            )
        for made in retreat.computations:
            for value in leaves(made.result):
                users = self.needed_by.pop(value, None)
                if users is not None:
                    new += self._need(value, users)
        return new


@dataclasses.dataclass
class _Retreat:
    computations: list[Computation]
    saved: int  # bytes that are stored no more
    dearness: float  # these, for each byte that the computations read and write


def _bytes_of(graph: ValueGraph, given: int | float, storage: _Storage) -> int:
    is_number = isinstance(given, numbers.Real) and not isinstance(given, bool)
    if not is_number or not 0 < given < float("inf"):
        raise ValueError(
            f"max_resident={given!r}: expected bytes (an int), or a factor of the weights' bytes "
            "(a float), above 0"
        )
    if isinstance(given, numbers.Integral):
        return int(given)
    return int(given * sum(map(storage.bytes, leaves(graph.weights))))


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
    for made, weight in plan.first_weight.items():
        for value in leaves(made.result):
            if value not in plan.needed_by:
                continue
            if weight in plan.needed_by or weight in plan.placed:
                new.append(value)
            else:
                plan.placed[weight] = value

    def slot(tree: Tree) -> Slot | None:
        if isinstance(tree, list):
            fields = [field for field in map(slot, tree) if field is not None]
            return fields if fields or not tree else None
        assert isinstance(tree, Value)
        return tree if tree in plan.needed_by else plan.placed.get(tree)

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
        function, bound = numbered.user.function, bound_after(numbered, plan)
        inputs = relax.TupleType([var.ty for var in numbered.user.inputs])
        used = list(relax.analysis.tir_vars_in_type(relax.TupleType([stored, inputs]))[:])
        used += relax.analysis.tir_vars_in_type(function.ret_ty)[:]
        params = relax.TupleType([stored, inputs])
        defined = list(relax.analysis.definable_tir_vars_in_type(params)[:])
        for binding, var, value in numbered.bindings:
            if var not in numbered.holds or bound.get(var) is not None:
                used += _dimensions_in(var, value)
                if type(binding) is relax.MatchCast:
                    defined += relax.analysis.definable_tir_vars_in_type(binding.ty)[:]
        known = set(defined)
        missing.update((var, None) for var in used if var in graph.dimensions and var not in known)
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
