"""Which values the tuple of weights holds: those that are needed, within a budget.

Definition
----------
A function *needs* a value that something uses which is not made from weights alone. What it needs
is *stored*. It computes a value itself that is not stored, and then needs the operands: one that no
weight goes into, a number, the result of a ``match_cast``, which is its operand again; what is not
selected (:mod:`.selection`); and what would make the stored values larger than the budget.

Over budget, what is dearest per byte saved is stored no more. Storing a value costs the bytes that
the tuple is larger by. It saves those that its computation reads and writes, each time, in each
function that needs it. For a price L, the cheapest choice of

    bytes that are stored + L * bytes that are moved by what functions compute themselves

is a minimum cut of the graph of values, between what functions use and the weights. L falls, from
where all is stored, until the stored bytes are within the budget. So no other choice that moves as
little stores less, and if there is no choice within the budget, the least is known.
"""

from __future__ import annotations

import dataclasses
import itertools
import numbers
from collections.abc import Hashable, Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType

from tvm import relax

from ..inplace.schedule import bounds_of
from ..ir.byte_size import nominal_size
from ..ir.table import shown
from .min_cut import source_side
from .selection import Reason
from .shared_weights import LiftError
from .user import bound_after
from .weight_values import Computation, Value, ValueGraph, leaves

__all__ = ["StoredValues", "choose_stored"]


@dataclasses.dataclass(eq=False)
class StoredValues:
    """What the tuple of weights holds.

    Attributes
    ----------
    needed_by : dict of Value to dict of str to None
        The functions that need each stored value.
    left : dict of Computation to Reason
        What functions compute themselves though it could be lifted, and why.
    """

    needed_by: dict[Value, dict[str, None]]
    left: dict[Computation, Reason]


def choose_stored(
    graph: ValueGraph,
    max_resident: int | float | None,
    not_selected: Mapping[Computation, Reason] = MappingProxyType({}),
) -> StoredValues:
    """Choose what is stored.

    Raises
    ------
    LiftError
        It takes more than ``max_resident`` if nothing is stored that makes it larger.
    ValueError
        ``max_resident`` is not a number above 0.
    """
    choice = _Choice(graph, not_selected)
    if max_resident is not None:
        limit = choice.bytes_of_limit(max_resident)
        choice.limit(limit, max_resident)
    return StoredValues(choice.needed_by, choice.left)


@dataclasses.dataclass
class _Option:
    """What may be stored for some values that are made from each other.

    Attributes
    ----------
    stored, moved : int
        Bytes.
    left : set of Computation
        What the functions compute themselves.
    """

    stored: int
    moved: int
    left: set[Computation]


class _Choice:
    def __init__(self, graph: ValueGraph, not_selected: Mapping[Computation, Reason]):
        self.graph = graph
        self.needed_by: dict[Value, dict[str, None]] = {}
        self.left: dict[Computation, Reason] = {}
        self.bounds: Mapping[str, int] = {}
        for numbered in graph.users:
            self.bounds = {**self.bounds, **bounds_of(numbered.user.function)}
        self.known_bytes: dict[Value, int] = {}
        self.why_not: dict[Computation, Reason] = dict(not_selected)
        self.over_budget: set[Computation] = set()
        self.read_functions()

    def read_functions(self) -> None:
        """Find what the functions need, and what they compute, as they will be written."""
        self.needed_by, self.left = {}, {}
        for numbered in self.graph.users:
            for var, kept in bound_after(numbered, self.graph, self.is_stored).items():
                for value in leaves(numbered.holds[var]):
                    if kept is None:
                        self.needed_by.setdefault(value, {})[numbered.user.name] = None
                    elif value.made_by in self.why_not:
                        self.left[value.made_by] = self.why_not[value.made_by]

    def is_stored(self, value: Value) -> bool:
        """Whether a function that needs a value reads it, and does not compute it."""
        made = value.made_by
        if made is None:
            return True
        if made in self.why_not or not made.needs_weight or made.is_cast:
            return False
        if isinstance(value.var.ty, (relax.TensorType, relax.ShapeType)):
            return True
        self.why_not[made] = Reason("no tensor", f"`{value.name}` is no tensor")
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
            known = self.known_bytes[value] = nominal_size(value.size, self.bounds)
        return known

    def limit(self, limit: int, given: int | float) -> None:
        """Store less, until it is at most so many bytes."""
        while self.total(self.needed_by) > limit:
            left = len(self.over_budget)
            least = self.leave_dearest(limit, given)
            if least > limit or len(self.over_budget) == left:
                raise LiftError.of(
                    functions=self.graph.shared.listed,
                    reason=f"max_resident={given!r} is {shown(limit)} bytes, but the weights that "
                    f"they need take {shown(least)} bytes, even if nothing is lifted that makes "
                    "them larger",
                )
            # Rarely a function needs more than the values say: another field of a tuple.
            self.read_functions()

    def leave_dearest(self, limit: int, given: int | float) -> int:
        """Leave computations to the functions, the dearest first; the bytes that are stored."""
        steps: list[tuple[Fraction, int, int, set[Computation]]] = []
        total = 0
        for values in self.components():
            options = _options(_Network(self, values))
            total += options[0].stored
            for one, other in itertools.pairwise(options):
                saved, more = one.stored - other.stored, other.moved - one.moved
                dearness = Fraction(saved, more)
                steps.append((-dearness, len(steps), saved, other.left - one.left))
        for _, _, saved, left in sorted(steps, key=lambda step: step[:2]):
            if total <= limit:
                break
            total -= saved
            new = left.difference(self.why_not)
            self.over_budget |= new
            rule = f"max_resident={given!r}"
            text = f"storing it would take {shown(saved)} bytes more; {rule}"
            self.why_not.update(dict.fromkeys(new, Reason(rule, text)))
        return total

    def components(self) -> list[dict[Value, set[str]]]:
        """What the functions need, and what it is made from, in parts that share nothing.

        With each value the functions that need it, or what is made from it.
        """
        users: dict[Value, set[str]] = {
            value: set(needed_by) for value, needed_by in self.needed_by.items()
        }
        for made in reversed(self.graph.computations):
            needed_by = set().union(*(users.get(value, ()) for value in leaves(made.result)))
            if needed_by and made.needs_weight:
                for value in (*leaves(made.result), *made.operands):
                    if value.made_by is None or value.made_by.needs_weight:
                        users.setdefault(value, set()).update(needed_by)
        parts = {value: [value] for value in users}
        for made in self.graph.computations:
            if made.needs_weight:
                together = [v for v in (*leaves(made.result), *made.operands) if v in parts]
                lists = {id(parts[value]): parts[value] for value in together}
                largest, *others = sorted(lists.values(), key=len, reverse=True) or [[]]
                for other in others:
                    largest += other
                    parts.update(dict.fromkeys(other, largest))
        return [
            {value: users[value] for value in part}
            for part in {id(part): part for part in parts.values()}.values()
        ]


class _Network:
    """The values of a component as a flow network.

    A value has two nodes, and the edge between them costs its bytes: if it is cut, it is stored. If
    it is not, its computation is reached, which costs what it moves, and so are its operands.
    """

    def __init__(self, choice: _Choice, users: Mapping[Value, set[str]]):
        self.choice = choice
        self.users = users
        made = (value.made_by for value in users)
        self.computations = list(dict.fromkeys(m for m in made if m is not None))
        self.stored = {value: choice.bytes(value) for value in users}
        self.moved = {made: self._moved(made) for made in self.computations}

    def _moved(self, made: Computation) -> int:
        functions = set().union(*(self.users.get(value, ()) for value in leaves(made.result)))
        values = (*made.operands, *leaves(made.result))
        # At least 1: what is computed for nothing is rather stored.
        return max(1, len(functions) * self.choice.total(values))

    def cheapest(self, stored_price: int, moved_price: int) -> _Option:
        """The option that costs least, and of these, the one that leaves least."""
        unlimited = (
            1 + stored_price * sum(self.stored.values()) + moved_price * sum(self.moved.values())
        )
        edges: dict[tuple[Hashable, Hashable], int] = {}
        for value, size in self.stored.items():
            is_stored = self.choice.is_stored(value)
            edges[value, (value, "used")] = stored_price * size if is_stored else unlimited
            if value in self.choice.needed_by:
                edges["source", value] = unlimited
            if value.made_by is None:
                edges[(value, "used"), "sink"] = unlimited
            else:
                edges[(value, "used"), value.made_by] = unlimited
        for made, size in self.moved.items():
            edges[made, "sink"] = moved_price * size
            for operand in made.operands:
                if operand in self.stored:
                    edges[made, operand] = unlimited
        reached = source_side(edges, "source", "sink")
        left = {made for made in self.computations if made in reached}
        stored = sum(
            size
            for value, size in self.stored.items()
            if value in reached and (value, "used") not in reached
        )
        return _Option(stored, sum(self.moved[made] for made in left), left)


def _options(network: _Network) -> list[_Option]:
    """The options that are cheapest at some price, from all that is stored to the least."""
    dear = 1 + sum(network.stored.values())
    most = network.cheapest(1, dear)
    least = network.cheapest(1 + sum(network.moved.values()), 1)
    options = [most]
    pending = [(most, least)]
    while pending:
        one, other = pending.pop()
        saved, more = one.stored - other.stored, other.moved - one.moved
        if saved == 0:
            continue
        between = network.cheapest(more, saved)
        cost = more * between.stored + saved * between.moved
        if cost < more * one.stored + saved * one.moved:
            pending += [(between, other), (one, between)]
        else:
            options.append(other)
    return options
