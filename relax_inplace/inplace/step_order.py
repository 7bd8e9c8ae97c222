"""The order of steps with the least peak of live memory.

Definition
----------
Buffers have sizes. Some are there at the start. A step allocates buffers, then reads some; a buffer
is freed when the last step that reads it has run, and never if it is *kept*. Live memory after a
set of steps depends on the set alone: call it ``f(set)``. A step needs ``f(set)`` and its *rise* on
top of it while it runs. What it allocates may lie in a buffer that it reads last: then that takes
bounded scratch, and not its size. The peak of an order is the most that is needed at any time.

Algorithm
---------
``f`` is submodular: a buffer that several steps read is freed by whichever comes last. From that
follows that these moves are safe, which is to say that some order of least peak begins with them:

    Of all sets that can be reached from here and have no more live memory than here, go to one that
    is reached with the least rise.

For if ``P`` is any order and ``S`` such a set, then ``f(A | S) <= f(A) + f(S) - f(A & S) <= f(A)``
for every set ``A`` that ``P`` goes through, and the more has run, the more of what a step reads it
reads last: running ``S`` first makes nothing worse. When no such set is left, the same is done from
the end backwards, where what a step frees takes the place of what it allocates. What both leave
untouched is nothing. Groups of steps that share no buffer do not see each other: each makes its
moves by itself, and the moves of all are merged by their rise.

A step that is a group by itself and leaves as much as there was may run at any time; it runs where
least is live, between what shrinks memory and what grows it, the one of largest rise first, which
leaves its storage to the next (:mod:`..lower.spare_storage`).

For independent steps this is the known rule: those that shrink memory first, by what they need at
their worst; then those that grow it, by the reverse of what they give back (Abdel-Wahab and Kameda,
"Scheduling to minimize maximum cumulative cost subject to series-parallel precedence constraints",
1978; Liu, "An application of generalized tree pebbling to sparse matrix factorization", 1987). The
moves of a connected group are found by best-first search over the sets of its steps. A group whose
search tries more than ``SEARCH_LIMIT`` steps is ordered by a heuristic instead: always the step
that is ready and frees most, of those the one of least rise.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Any, Generic, TypeAlias, TypeVar

__all__ = [
    "SEARCH_LIMIT",
    "KnownMoves",
    "Live",
    "Problem",
    "StepCost",
    "groups_of",
    "least_peak_order",
]

SEARCH_LIMIT = 1 << 16  # from all sets that it visits, together

_Step = TypeVar("_Step", bound=Hashable)
_Buffer = TypeVar("_Buffer", bound=Hashable)


@dataclasses.dataclass
class StepCost(Generic[_Step, _Buffer]):
    """What a step does to memory.

    Attributes
    ----------
    kernels : list of (set of buffers, list of buffers, int)
        For each kernel in turn the buffers it reads, those it allocates, and its scratch bytes.
    after : set of steps
        Those that run before it.
    over : mapping of buffers to sequences of buffers
        Of what it allocates, what may lie in one of which it reads last, and which is not smaller.
    """

    kernels: list[tuple[set[_Buffer], list[_Buffer], Any]]
    after: set[_Step]
    over: Mapping[_Buffer, Sequence[_Buffer]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Live:
    """Bytes before a step, at its worst, and after it."""

    before: Any
    worst: Any
    after: Any


class Problem(Generic[_Step, _Buffer]):
    """Steps and buffers, and what each step does to them.

    Parameters
    ----------
    sizes : mapping of buffers to int or ByteSize
        Bytes of each. Only numbers can be ordered; an order can be simulated with any.
    at_start : collection of buffers
        Those that are there before the first step.
    kept : set of buffers
        Those that are never freed.
    steps : mapping of steps to StepCost
        Of orders that are as good, the one that comes first here is taken.
    fused : bool or None
        Whether the kernels of a step run as one, or each by itself; None for the worse of both.
    number : callable, optional
        What stands for a size that is no number, where the larger of two is asked for.
    most_scratch : int or None
        The most that a result in an operand's memory takes besides; None if none lies there.
    """

    def __init__(
        self,
        sizes: Mapping[_Buffer, Any],
        at_start: Collection[_Buffer],
        kept: Collection[_Buffer],
        steps: Mapping[_Step, StepCost[_Step, _Buffer]],
        fused: bool | None = None,
        number: Callable[[Any], int] | None = None,
        most_scratch: int | None = None,
    ):
        self.number = number
        self.most_scratch = most_scratch
        self.sizes = sizes
        self.at_start = at_start
        self.kept = kept
        self.steps = steps
        self.fused = fused
        self.position = {step: number for number, step in enumerate(steps)}
        self.uses: dict[_Step, list[_Buffer]] = {}  # what it has not allocated itself
        self.allocates: dict[_Step, list[_Buffer]] = {}
        self.readers: dict[_Buffer, set[_Step]] = {buffer: set() for buffer in sizes}
        self.rank = {buffer: number for number, buffer in enumerate(sizes)}
        for step, cost in steps.items():
            allocated = [buffer for _, buffers, _ in cost.kernels for buffer in buffers]
            read = {buffer for buffers, _, _ in cost.kernels for buffer in buffers}
            uses = sorted(read.difference(allocated), key=self.rank.__getitem__)
            self.uses[step], self.allocates[step] = uses, allocated
            for buffer in uses:
                self.readers[buffer].add(step)

    @property
    def live_at_start(self) -> Any:
        """Bytes of what is there at the start, read by a step or not."""
        return sum(self.sizes[buffer] for buffer in self.at_start)

    @property
    def live_at_end(self) -> Any:
        """Bytes of what is kept."""
        return sum(self.sizes[buffer] for buffer in self.kept)

    def rise(self, step: _Step, dying: Iterable[_Buffer]) -> Any:
        """What a step needs at its worst on top of what is live before it.

        ``dying`` are the buffers that it reads last.
        """
        kernels = self.steps[step].kernels
        if len(kernels) == 1:
            ((_, allocates, scratch),) = kernels
            over = self.in_place(step, dying)
            return sum(self._taken(buffer, buffer in over) for buffer in allocates) + scratch
        worst = 0
        if self.fused is not False:
            # What is seen inside only is not allocated; of a kernel with several results, all are.
            worst = self._larger(*(scratch for _, _, scratch in kernels)) + sum(
                self.sizes[buffer]
                for _, allocates, _ in kernels
                if any(b in self.kept or self.readers[b] for b in allocates)
                for buffer in allocates
            )
        if self.fused is not True:
            worst = self._larger(worst, self._rise_unfused(step, set(dying)))
        return worst

    def in_place(self, step: _Step, dying: Iterable[_Buffer]) -> Mapping[_Buffer, _Buffer]:
        """What lies in an operand's memory, if a step of one kernel reads that last."""
        cost = self.steps[step]
        if self.most_scratch is None or not cost.over or len(cost.kernels) > 1:
            return {}
        read_last = set(dying)
        found = {
            new: next((b for b in old if b in read_last), None) for new, old in cost.over.items()
        }
        return {new: donor for new, donor in found.items() if donor is not None}

    def _taken(self, buffer: _Buffer, is_in_place: bool) -> Any:
        """Bytes that a result takes while it is computed."""
        size = self.sizes[buffer]
        if not is_in_place or self.most_scratch is None:
            return size
        return min(size, self.most_scratch) if isinstance(size, int) else self.most_scratch

    def _larger(self, *sizes: Any) -> Any:
        return max(sizes, key=self.number)

    def _rise_unfused(self, step: _Step, freed: set[_Buffer]) -> Any:
        kernels = self.steps[step].kernels
        freed |= {b for b in self.allocates[step] if b not in self.kept and not self.readers[b]}
        last: dict[_Buffer, int] = {}
        for index, (reads, allocates, _) in enumerate(kernels):
            last.update(dict.fromkeys(reads, index))
            last.update(dict.fromkeys(allocates, index))
        over = {} if self.most_scratch is None else self.steps[step].over
        live: Any = 0
        worst: Any = 0
        for index, (reads, allocates, scratch) in enumerate(kernels):
            grown = sum(
                self._taken(b, any(d in freed and last[d] == index for d in over.get(b, ())))
                for b in allocates
            )
            worst = self._larger(worst, live + grown + scratch)
            live += sum(self.sizes[buffer] for buffer in allocates)
            live -= sum(
                self.sizes[buffer]
                for buffer in sorted(reads.union(allocates), key=self.rank.__getitem__)
                if buffer in freed and last[buffer] == index
            )
        return worst

    def delta(self, step: _Step, dying: Iterable[_Buffer]) -> Any:
        """How much more is live after a step than before it."""
        stay = sum(self.sizes[b] for b in self.allocates[step] if b in self.kept or self.readers[b])
        return stay - sum(self.sizes[buffer] for buffer in dying)

    def dying(self, step: _Step, done: Collection[_Step]) -> list[_Buffer]:
        """The buffers that a step reads last, when those in ``done`` have run."""
        return [
            buffer
            for buffer in self.uses[step]
            if buffer not in self.kept
            and all(other in done or other == step for other in self.readers[buffer])
        ]

    def deaths(self, order: Iterable[_Step]) -> Iterator[tuple[_Step, list[_Buffer]]]:
        """Each step of an order, with the buffers that it reads last."""
        left = dict(zip(self.readers, map(len, self.readers.values()), strict=True))
        for step in order:
            dying = []
            for buffer in self.uses[step]:
                left[buffer] -= 1
                if not left[buffer] and buffer not in self.kept:
                    dying.append(buffer)
            yield step, dying

    def simulate(self, order: Sequence[_Step]) -> list[Live]:
        """Live bytes around each step of an order; what no step reads is freed before the first."""
        live = self.live_at_start - sum(
            self.sizes[b] for b in self.at_start if not self.readers[b] and b not in self.kept
        )
        result = []
        for step, dying in self.deaths(order):
            after = live + self.delta(step, dying)
            result.append(Live(live, live + self.rise(step, dying), after))
            live = after
        return result

    def peak(self, order: Sequence[_Step]) -> int:
        """The most that is live at any time, the start and the end included."""
        bounds = (self.live_at_start, self.live_at_end)
        return max([*bounds, *(live.worst for live in self.simulate(order))])


@dataclasses.dataclass
class _Move(Generic[_Step]):
    """Steps that are run together, and what they need on top of what is live before (or after)."""

    rise: int
    steps: list[_Step]


@dataclasses.dataclass
class _Moves(Generic[_Step]):
    """The moves of a group: from the start, from the end backwards, and at any time."""

    ahead: list[_Move[_Step]]
    behind: list[_Move[_Step]]
    neutral: list[_Move[_Step]]
    is_exact: bool = True


KnownMoves: TypeAlias = MutableMapping[tuple[_Step, ...], _Moves[_Step]]


def least_peak_order(
    problem: Problem[_Step, _Buffer],
    first: Sequence[_Step] = (),
    known: KnownMoves[_Step] | None = None,
) -> tuple[list[_Step], bool]:
    """An order of least peak memory.

    Parameters
    ----------
    problem : Problem
    first : sequence of steps
        Those that run before all others, in this order.
    known : dict, optional
        The moves of groups whose steps cost what they cost when they were found. Those that are
        found now are added.

    Returns
    -------
    order : list of steps
    is_exact : bool
        Whether no other order is better; False if a group of steps was too large to be searched.
    """
    known = {} if known is None else known
    done = set(first)
    found = []
    for group in groups_of(problem, done):
        key = tuple(group)
        if key not in known:
            known[key] = _moves(problem, group, done)
        found.append(known[key])
    order = list(first)
    position = problem.position
    for move in _merged([moves.ahead for moves in found], position):
        order += move.steps
    neutral = [move for moves in found for move in moves.neutral]
    for move in sorted(neutral, key=lambda move: (-move.rise, position[move.steps[0]])):
        order += move.steps
    for move in reversed(list(_merged([moves.behind for moves in found], position))):
        order += move.steps
    return order, all(moves.is_exact for moves in found)


def groups_of(problem: Problem[_Step, _Buffer], first: Collection[_Step] = ()) -> list[list[_Step]]:
    """The steps that share a buffer or an order, group by group."""
    parent = {step: step for step in problem.steps}

    def find(step: _Step) -> _Step:
        while parent[step] is not step:
            parent[step] = parent[parent[step]]
            step = parent[step]
        return step

    for buffer, readers in problem.readers.items():
        if len(readers) > 1 and buffer not in problem.kept and problem.sizes[buffer]:
            steps = [step for step in readers if step not in first]
            for step in steps[1:]:
                parent[find(step)] = find(steps[0])
    for step, cost in problem.steps.items():
        if step not in first:
            for other in cost.after:
                if other not in first:
                    parent[find(other)] = find(step)
    groups: dict[_Step, list[_Step]] = collections.defaultdict(list)
    for step in problem.steps:
        if step not in first:
            groups[find(step)].append(step)
    return list(groups.values())


def _moves(
    problem: Problem[_Step, _Buffer], group: list[_Step], first: set[_Step]
) -> _Moves[_Step]:
    """The moves of one group."""
    if len(group) == 1:
        (step,) = group
        dying = problem.dying(step, first)
        rise, delta = problem.rise(step, dying), problem.delta(step, dying)
        if delta == 0:
            return _Moves([], [], [_Move(rise, group)])
        if delta < 0:
            return _Moves([_Move(rise, group)], [], [])
        return _Moves([], [_Move(rise - delta, group)], [])
    try:
        return _Moves(*_Search(problem, group, first).moves(), [])
    except _TooLargeError:
        order = _greedy(problem, group, first)
        return _Moves(*_moves_of(problem, order, first), [], is_exact=False)


def _merged(moves: list[list[_Move[_Step]]], place: Mapping[_Step, int]) -> Iterator[_Move[_Step]]:
    """The moves of all groups, each time the one of least rise among the next of each group."""
    heap = [
        (queue[0].rise, place[queue[0].steps[0]], which, 0)
        for which, queue in enumerate(moves)
        if queue
    ]
    heapq.heapify(heap)
    while heap:
        _, _, which, position = heapq.heappop(heap)
        queue = moves[which]
        yield queue[position]
        if position + 1 < len(queue):
            after = queue[position + 1]
            heapq.heappush(heap, (after.rise, place[after.steps[0]], which, position + 1))


class _TooLargeError(Exception):
    """The search tries too many steps."""


class _Search(Generic[_Step, _Buffer]):
    """The moves of one connected group. Sets of its steps are bit masks."""

    def __init__(self, problem: Problem[_Step, _Buffer], group: list[_Step], first: set[_Step]):
        self.problem = problem
        self.group = group
        self.full = (1 << len(group)) - 1
        bit = {step: 1 << i for i, step in enumerate(group)}

        def mask(steps: Iterable[_Step]) -> int:
            return sum(bit[step] for step in steps if step not in first)

        self.after = [mask(problem.steps[step].after) for step in group]
        before: dict[_Step, list[_Step]] = {step: [] for step in group}
        for step in group:
            for other in problem.steps[step].after - first:
                before[other].append(step)
        self.before = [mask(before[step]) for step in group]
        used = {b for step in group for b in problem.uses[step] if problem.sizes[b]}
        readers = {b: mask(problem.readers[b]) for b in used.difference(problem.kept)}
        self.freeable = [
            [(b, readers[b]) for b in problem.uses[step] if b in readers] for step in group
        ]
        self.costs: dict[tuple[int, tuple[_Buffer, ...]], tuple[int, int]] = {}
        self.left = SEARCH_LIMIT

    def moves(self) -> tuple[list[_Move[_Step]], list[_Move[_Step]]]:
        """From the start, and from the end backwards."""
        forward, done = [], 0
        while (found := self._next(done, self._successors)) is not None:
            rise, done, steps = found
            forward.append(_Move(rise, steps))
        bottom, done = done, self.full
        backward = []
        while done != bottom:
            found = self._next(done, lambda mask: self._predecessors(mask, bottom))
            assert found is not None  # the bottom itself is such a set
            rise, done, steps = found
            backward.append(_Move(rise, steps[::-1]))
        return forward, backward

    def _cost(self, i: int, done: int) -> tuple[int, int]:
        """(rise, delta) of a step when the set ``done`` has run."""
        after = done | 1 << i
        dying = tuple(b for b, readers in self.freeable[i] if readers & ~after == 0)
        cost = self.costs.get((i, dying))
        if cost is None:
            step = self.group[i]
            cost = self.problem.rise(step, dying), self.problem.delta(step, dying)
            self.costs[i, dying] = cost
        return cost

    def _successors(self, done: int) -> Iterator[tuple[int, int, int, int]]:
        """(step, the set with it, rise, delta)."""
        for i, needed in enumerate(self.after):
            if not done >> i & 1 and needed & ~done == 0:
                rise, delta = self._cost(i, done)
                yield i, done | 1 << i, rise, delta

    def _predecessors(self, done: int, bottom: int) -> Iterator[tuple[int, int, int, int]]:
        """The same backwards: rises and deltas are towards the smaller set."""
        for i, later in enumerate(self.before):
            if done >> i & 1 and not bottom >> i & 1 and later & done == 0:
                rise, delta = self._cost(i, done & ~(1 << i))
                yield i, done & ~(1 << i), rise - delta, -delta

    def _next(self, start: int, neighbours) -> tuple[int, int, list[_Step]] | None:  # type: ignore
        """Of the sets with no more live memory the one of least rise: (rise, set, steps to it)."""
        heap: list[tuple[int, int, tuple[int, ...], int]] = [(0, 0, (), start)]
        seen: set[int] = set()
        while heap:
            rise, level, path, mask = heapq.heappop(heap)
            if mask in seen:
                continue
            seen.add(mask)
            if mask != start and level <= 0:
                return rise, mask, [self.group[i] for i in path]
            for i, reached, step_rise, delta in neighbours(mask):
                self.left -= 1
                if self.left < 0:
                    raise _TooLargeError
                if reached not in seen:
                    higher = max(rise, level + step_rise)
                    heapq.heappush(heap, (higher, level + delta, (*path, i), reached))
        return None


def _greedy(problem: Problem[_Step, _Buffer], group: list[_Step], first: set[_Step]) -> list[_Step]:
    """Always the ready step that frees most, of those the one of least rise."""
    done = set(first)
    order: list[_Step] = []
    left: dict[_Buffer, set[_Step]] = {}  # of each buffer the readers that have not run
    waits_for = {step: len(problem.steps[step].after - first) for step in group}
    later: dict[_Step, list[_Step]] = {step: [] for step in group}
    for step in group:
        for buffer in problem.uses[step]:
            left.setdefault(buffer, set()).add(step)
        for other in problem.steps[step].after - first:
            later[other].append(step)
    heap: list[tuple[int, int, int, _Step]] = []

    def offer(step: _Step) -> None:
        dying = [b for b in problem.uses[step] if len(left[b]) == 1 and b not in problem.kept]
        delta, rise = problem.delta(step, dying), problem.rise(step, dying)
        heapq.heappush(heap, (delta, rise, problem.position[step], step))

    for step in group:
        if not waits_for[step]:
            offer(step)
    while heap:
        step = heapq.heappop(heap)[3]
        if step in done:
            continue  # offered again since, when it became the last to read a buffer
        done.add(step)
        order.append(step)
        changed: dict[_Step, None] = {}
        for other in later[step]:
            waits_for[other] -= 1
            changed[other] = None
        for buffer in problem.uses[step]:
            left[buffer].remove(step)
            if len(left[buffer]) == 1:
                changed.update(dict.fromkeys(left[buffer]))
        for other in changed:
            if not waits_for[other]:
                offer(other)
    return order


def _moves_of(
    problem: Problem[_Step, _Buffer], order: list[_Step], first: Collection[_Step]
) -> tuple[list[_Move[_Step]], list[_Move[_Step]]]:
    """The moves of a group whose order is given."""
    lives = problem.simulate([*first, *order])[len(first) :]
    rises = [live.worst for live in lives]
    levels = [lives[0].before, *(live.after for live in lives)]
    bottom = max(i for i, level in enumerate(levels) if level == min(levels))
    forward, start = [], 0
    for end in range(1, bottom + 1):
        if levels[end] <= levels[start]:
            rise = max(rises[start:end]) - levels[start]
            forward.append(_Move(rise, order[start:end]))
            start = end
    backward, end = [], len(order)
    for start in range(len(order) - 1, bottom - 1, -1):
        if levels[start] <= levels[end]:
            rise = max(rises[start:end]) - levels[end]
            backward.append(_Move(rise, order[start:end]))
            end = start
    return forward, backward
