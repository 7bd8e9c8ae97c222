"""Which values the tuple of weights holds: those that are needed, within a budget.

Definition
----------
A function *needs* a value that something uses which is not made from weights alone. What it needs
is *stored*. It computes a value itself that is not stored, and then needs the operands: one that no
weight goes into, a number, the result of a ``match_cast``, which is its operand again; and what
would make the stored values larger than the budget.

Over budget, the value that is dearest per byte saved goes first. Storing a value costs the bytes
that the tuple is larger by, and saves those that its computation reads and writes, each time, in
each function that needs it. Where its operands are no smaller, their computations are counted with
it, until less is stored.
"""

from __future__ import annotations

import dataclasses
import heapq
import numbers
from collections.abc import Iterable, Iterator, Mapping

from tvm import relax

from .byte_size import at_bounds
from .lifted_user import values_read
from .schedule import NOMINAL_DIMENSION, bounds_of
from .shared_weights import LiftError
from .table import shown
from .weight_values import Computation, Value, ValueGraph, leaves

__all__ = ["StoredValues", "choose_stored"]


@dataclasses.dataclass(eq=False)
class StoredValues:
    """What the tuple of weights holds.

    Attributes
    ----------
    needed_by : dict of Value to dict of str to None
        The functions that need each stored value.
    left : dict of Computation to str
        What functions compute themselves though it could be lifted, and why.
    """

    needed_by: dict[Value, dict[str, None]]
    left: dict[Computation, str]


def choose_stored(graph: ValueGraph, max_resident: int | float | None) -> StoredValues:
    """Choose what is stored.

    Raises
    ------
    LiftError
        It takes more than ``max_resident`` if nothing is stored that makes it larger.
    ValueError
        ``max_resident`` is not a number above 0.
    """
    choice = _Choice(graph)
    if max_resident is not None:
        limit = choice.bytes_of_limit(max_resident)
        choice.limit(limit, max_resident)
    return StoredValues(choice.needed_by, choice.left)


@dataclasses.dataclass
class _Retreat:
    """Computations that are left to the functions, so that less is stored."""

    computations: list[Computation]
    saved: int  # bytes
    dearness: float  # these, for each byte that the computations read and write


class _Choice:
    def __init__(self, graph: ValueGraph):
        self.graph = graph
        self.needed_by: dict[Value, dict[str, None]] = {}
        self.left: dict[Computation, str] = {}
        self.bounds: Mapping[str, int] = {}
        for numbered in graph.users:
            self.bounds = {**self.bounds, **bounds_of(numbered.user.function)}
        self.known_bytes: dict[Value, int] = {}
        self.is_over_budget: set[Computation] = set()
        self.read_functions()

    def read_functions(self) -> None:
        """Find what the functions need, as they will be written."""
        self.needed_by = {}
        for numbered in self.graph.users:
            for value in values_read(numbered, self.graph, self.is_stored):
                self.needed_by.setdefault(value, {})[numbered.user.name] = None

    def is_stored(self, value: Value) -> bool:
        """Whether a function that needs a value reads it, and does not compute it."""
        made = value.made_by
        if made is None:
            return True
        if made in self.is_over_budget or not made.needs_weight or made.is_cast:
            return False
        if isinstance(value.var.ty, (relax.TensorType, relax.ShapeType)):
            return True
        self.left.setdefault(made, f"`{value.name}` is no tensor")
        return False

    # -- the budget ---------------------------------------------------------------------------

    def bytes_of_limit(self, given: int | float) -> int:
        is_number = isinstance(given, numbers.Real) and not isinstance(given, bool)
        if not is_number or not 0 < given < float("inf"):
            raise ValueError(
                f"max_resident={given!r}: expected bytes (an int), or a factor of the weights' "
                "bytes (a float), above 0"
            )
        if isinstance(given, numbers.Integral):
            return int(given)
        return int(given * self.total(leaves(self.graph.weights)))

    def total(self, values: Iterable[Value]) -> int:
        return sum(map(self.bytes, values))

    def bytes(self, value: Value) -> int:
        """Of a value, or about as many where its dimensions are symbolic."""
        known = self.known_bytes.get(value)
        if known is None:
            size = at_bounds(value.size, self.bounds, NOMINAL_DIMENSION)
            assert isinstance(size, int)
            known = self.known_bytes[value] = size
        return known

    def limit(self, limit: int, given: int | float) -> None:
        """Store less, until it is at most so many bytes."""
        target = limit
        while (total := self.total(self.needed_by)) > limit:
            # Rarely a function needs more than the values say: another field of a tuple.
            target -= 0 if total > target else total - limit
            if not self.retreat_to(target, given):
                raise LiftError.of(
                    functions=self.graph.shared.listed,
                    reason=f"max_resident={given!r} is {shown(limit)} bytes, but the weights that "
                    f"they need take {shown(self.total(self.needed_by))} bytes, even if nothing "
                    "is lifted that makes them larger",
                )
            self.read_functions()

    def retreat_to(self, limit: int, given: int | float) -> bool:
        """Leave computations to the functions, the dearest first; False if not enough are left."""
        computations = self.graph.computations
        readers: dict[Value, list[Computation]] = {}
        for made in computations:
            for value in made.operands:
                readers.setdefault(value, []).append(made)
        number = {made: i for i, made in enumerate(computations)}
        heap: list[tuple[float, int]] = []

        def push(made: Computation) -> None:
            retreat = self.retreat(made)
            if retreat is not None:
                heapq.heappush(heap, (-retreat.dearness, number[made]))

        for computed in {value.made_by: None for value in self.needed_by}:
            if computed is not None:
                push(computed)
        total = self.total(self.needed_by)
        while total > limit:
            if not heap:
                return False
            dearness, index = heapq.heappop(heap)
            retreat = self.retreat(computations[index])
            if retreat is None:
                continue
            if -retreat.dearness > dearness:  # it was dearer when it was looked at
                heapq.heappush(heap, (-retreat.dearness, index))
                continue
            for value in self.leave(retreat, given):
                if value.made_by is not None:
                    push(value.made_by)
                for reader in readers.get(value, ()):  # its operand is stored by now
                    push(reader)
            total -= retreat.saved
        return True

    def retreat(self, made: Computation) -> _Retreat | None:
        """What to leave to the functions so that less is stored; None if nothing would do."""
        if not any(value in self.needed_by for value in leaves(made.result)):
            return None
        left = {made: None}
        while True:
            freed = [v for one in left for v in leaves(one.result) if v in self.needed_by]
            users = {user: None for value in freed for user in self.needed_by[value]}
            taken = {
                value: None
                for one in left
                for operand in one.operands
                for value in self.stored_for(operand)
                if value not in self.needed_by and value.made_by not in left
            }
            saved = self.total(freed) - self.total(taken)
            if saved > 0:
                moved = len(users) * sum(map(self.moved, left))
                return _Retreat(list(left), saved, saved / max(1, moved))
            earlier = [value.made_by for value in taken if value.made_by is not None]
            if not earlier:
                return None
            left.update(dict.fromkeys(earlier))

    def stored_for(self, value: Value) -> Iterator[Value]:
        """What a function reads that needs a value: it, or what it computes it from."""
        pending = [value]
        while pending:
            value = pending.pop()
            if self.is_stored(value):
                yield value
            elif value.made_by is not None:
                pending += value.made_by.operands[::-1]

    def moved(self, made: Computation) -> int:
        """Bytes that a computation reads and writes."""
        return self.total((*made.operands, *leaves(made.result)))

    def leave(self, retreat: _Retreat, given: int | float) -> list[Value]:
        """Leave computations to the functions; what is stored for that."""
        for made in retreat.computations:
            self.is_over_budget.add(made)
            self.left[made] = (
                f"storing it would take {shown(retreat.saved)} bytes more; max_resident={given!r}"
            )
        new = []
        for made in retreat.computations:
            for value in leaves(made.result):
                users = self.needed_by.pop(value, None)
                for operand in made.operands if users is not None else ():
                    for stored in self.stored_for(operand):
                        if stored not in self.needed_by:
                            new.append(stored)
                        self.needed_by.setdefault(stored, {}).update(users or {})
        return new
