"""A schedule within a limit: where its order is not enough, steps are run slice by slice.

Definition
----------
The limit bounds the live memory of :mod:`.schedule`, the weights included. A step that is above it
is split (:mod:`.cones`), by itself or with the steps that its result is used for: the first way
that is within the limit, or else the one that needs least. So it goes on until all is within the
limit, or nothing helps. At first there are as many slices as there may be, then as few as the limit
allows: a step may have as many rows at a time as there is room for where it runs.

Groups of steps that share no buffer do not see each other (:mod:`.step_order`). What a way needs is
known when the steps of its group have been ordered again by themselves, beside what others have in
memory where the group runs. Then all are ordered again, where the groups that have not changed keep
their moves. So the work is that of a few schedules, whatever the number of weights.

If it does not fit, all steps are split where that helps. If that does not fit either, the error
says what it needs, so that this limit will do.
"""

from __future__ import annotations

import numbers
from collections.abc import Collection, Iterable, Mapping

from ..errors import StructuredError
from ..ir.byte_size import Size, at_bounds, largest
from ..ir.kernels import Kernels
from .cones import Cones, SlicedStep
from .schedule import Schedule, bounds_of, least_order, plan_graph
from .slicing import Slicing
from .step_order import KnownMoves, Live
from .steps import Step
from .transform_graph import TransformGraph, UnsupportedTransformError

__all__ = ["MemoryLimitError", "bytes_of_limit", "plan_within"]


_LARGEST = (1 << 63) - 1  # a prim value of the check
_MOST_ROUNDS = 8  # each with a schedule within the limit


class MemoryLimitError(StructuredError):
    """No schedule of a transform fits into a memory limit.

    Attributes
    ----------
    function : str
        The function's name.
    limit : str
        The limit, in bytes.
    least : str
        The least limit that would do, in bytes.
    factor : str
        The least limit as a factor of the weights' bytes; ``?`` if these are not known.
    step : str
        The step that needs it.
    remedy : str
        What to do.
    """

    template = (
        "function `{function}` does not fit into memory_limit={limit} bytes: the least that would "
        "do is {least} bytes, {factor} times the weights, for step `{step}`; {remedy}"
    )


def bytes_of_limit(
    graph: TransformGraph, limit: int | float, bounds: Mapping[str, int] | None = None
) -> int:
    """A limit in bytes; a float is a factor of the weights' bytes.

    Raises
    ------
    ValueError
        It is not a number between 0 and 2**63, or a factor of weights whose bytes are not known.
    """
    is_number = isinstance(limit, numbers.Real) and not isinstance(limit, bool)
    if not is_number or not 0 < limit <= _LARGEST:
        raise ValueError(
            f"memory_limit={limit!r}: expected bytes (an int), or a factor of the weights' bytes "
            "(a float), above 0 and below 2**63"
        )
    if isinstance(limit, numbers.Integral):
        return int(limit)
    weights = _bytes_of_weights(graph, bounds)
    if not isinstance(weights, int):
        raise ValueError(
            f"memory_limit={limit!r} is a factor of the weights' bytes, which are {weights}: give "
            "bytes, or give the function the attribute tir_var_upper_bound"
        )
    return min(int(float(limit) * weights), _LARGEST)


def _bytes_of_weights(graph: TransformGraph, bounds: Mapping[str, int] | None) -> Size:
    known = bounds_of(graph.function) if bounds is None else bounds
    sizes = (at_bounds(weight.buffer.size, known) for weight in graph.root.weights())
    return sum(sizes, start=0)


def plan_within(
    graph: TransformGraph, limit: int, kernels: Kernels, bounds: Mapping[str, int] | None = None
) -> Schedule:
    """Order the steps of a graph; split those that need more than the limit.

    A peak that is symbolic is not compared here, but when the function runs.

    Raises
    ------
    MemoryLimitError
        Nothing fits.
    UnsupportedTransformError
        The bytes of a tensor are not known, at run time neither.
    """
    splitting = _Splitting(graph, kernels, bounds)
    schedule = splitting.below(limit)
    peak = schedule.peak()
    if not isinstance(peak, int):
        if peak.unknown():
            raise UnsupportedTransformError.of(
                function=graph.name,
                reason=f"memory_limit={limit}: the bytes of `{peak.unknown()[0]}` are not known; "
                "its type has to say its shape and dtype",
            )
        return schedule
    if peak > limit:
        schedule = splitting.below(0)
        peak = schedule.peak()
        assert isinstance(peak, int)
        if peak > limit:
            weights = _bytes_of_weights(graph, bounds)
            factor = "?"
            if isinstance(weights, int) and weights > 0:
                factor = str(-(-1000 * peak // weights) / 1000)  # rounded up: it has to do
            remedy = "raise the limit"
            if graph.get_weight is None:
                remedy += ", or read the weights one by one (lazy=True)"
            raise MemoryLimitError.of(
                function=graph.name,
                limit=str(limit),
                least=str(peak),
                factor=factor,
                step=_step_at_peak(schedule, peak),
                remedy=remedy,
            )
    return splitting.in_fewer_slices(schedule, limit)


def _step_at_peak(schedule: Schedule, peak: int) -> str:
    for live, step in zip(schedule.lives(), schedule.steps, strict=True):
        if live.worst == peak:
            return step.name
    return "none: what goes in or comes out takes as much"


class _Splitting:
    """Schedules of a graph with steps that are split."""

    def __init__(self, graph: TransformGraph, kernels: Kernels, bounds: Mapping[str, int] | None):
        self.graph = graph
        self.kernels = kernels
        self.bounds = bounds
        self.known: KnownMoves[Step] = {}

    def planned(self, sliced: Collection[SlicedStep]) -> Schedule:
        """The schedule with these steps in the places of their cones."""
        return plan_graph(self.graph, self.bounds, sliced, self.known)

    def below(self, limit: int) -> Schedule:
        """The schedule with steps split until the peak is within the limit, or nothing helps."""
        sliced: list[SlicedStep] = []
        hopeless: set[Step] = set()
        while True:
            schedule = self.planned(sliced)
            peak = schedule.peak()
            if not isinstance(peak, int) or peak <= limit:
                return schedule
            found = self._found(schedule, limit, hopeless)
            if not found:
                return schedule
            sliced += found

    def _found(self, schedule: Schedule, limit: int, hopeless: set[Step]) -> list[SlicedStep]:
        """What takes the place of steps above the limit; what nothing helps becomes hopeless."""
        lives = schedule.problem.simulate(schedule.steps)
        live = dict(zip(schedule.steps, lives, strict=True))
        position = {step: number for number, step in enumerate(schedule.steps)}
        cones = Cones(schedule.graph, self.kernels, schedule.steps)
        found = []
        for group in schedule.groups():
            above = [step for step in group if live[step].worst > limit and step not in hopeless]
            ways = _ways(cones, sorted(above, key=lambda step: -live[step].worst))
            order = sorted(group, key=position.__getitem__) if ways else []
            better = self._better(schedule, {step: live[step] for step in order}, ways, limit)
            if not better:
                hopeless.update(above)
            found += better
        return found

    def _better(
        self, schedule: Schedule, lives: Mapping[Step, Live], ways: list[list[Slicing]], limit: int
    ) -> list[SlicedStep]:
        """The steps of slices with which a group needs less than it does; none if there are none.

        ``lives`` says what it needs, in order.
        """
        if not ways:
            return []
        group = sorted(lives, key=schedule.problem.position.__getitem__)
        alone = schedule.part(group).simulate(list(lives))
        # What other groups have in memory while a step runs.
        others = {
            step: live.before - own.before
            for (step, live), own in zip(lives.items(), alone, strict=True)
        }
        need = max(live.worst for live in lives.values())
        best: list[SlicedStep] = []
        for number in range(max(map(len, ways))):
            slicings = [slicings[min(number, len(slicings) - 1)] for slicings in ways]
            trial = [SlicedStep.of(slicing, slicing.least_rows) for slicing in slicings]
            others.update({step: max(others[one] for one in step.cone) for step in trial})
            part = schedule.part(group, trial)
            order, _ = least_order(self.graph, part, known=self.known)
            alone = part.simulate(order)
            needed = max(others[step] + own.worst for step, own in zip(order, alone, strict=True))
            if needed < need:
                best, need = trial, needed
            if needed <= limit:
                break
        return best

    def in_fewer_slices(self, schedule: Schedule, limit: int) -> Schedule:
        """The schedule with as many rows at a time as there is room for where they are sliced.

        Larger slices may run later, where there is more room: it is done again, a few times.
        """
        for _ in range(_MOST_ROUNDS):
            room = {
                step: limit - live.worst
                for step, live in zip(schedule.steps, schedule.lives(), strict=True)
                if isinstance(step, SlicedStep)
            }
            sliced = [_with_room(step, bytes_left) for step, bytes_left in room.items()]
            if all(step in room for step in sliced):
                break
            wider = self.planned(sliced)
            if largest([limit, wider.peak()]) != limit:
                break
            schedule = wider
        return schedule


def _with_room(step: SlicedStep, room: int) -> SlicedStep:
    """The step with as many rows at a time as so many bytes more are enough for."""
    wider = SlicedStep.of(step.slicing, step.rows + room // max(1, step.slicing.bytes_of_row))
    return wider if wider.rows > step.rows else step


def _ways(cones: Cones, steps: Iterable[Step]) -> list[list[Slicing]]:
    """The ways to split some steps, the first ones rather; those of one share none with others'."""
    taken: set[Step] = set()
    found = []
    for step in steps:
        if step not in taken:
            slicings = cones.slicings(step)
            around = {one for slicing in slicings for one in slicing.steps}
            if slicings and taken.isdisjoint(around):
                taken |= around
                found.append(slicings)
    return found
