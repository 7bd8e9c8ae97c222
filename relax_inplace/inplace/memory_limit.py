"""A schedule within a limit: where its order is not enough, steps are run slice by slice.

Definition
----------
The limit bounds the live memory of :mod:`.schedule`, the weights included. A step that is above it
is split (:mod:`.cones`), by itself or with the steps that its result is used for: what brings these
steps below the limit, or else what helps most. So it goes on until all is within the limit, or
nothing helps. At first there are as many slices as there may be, then as few as the limit allows: a
step may have as many rows at a time as there is room for where it runs.

All steps that do not see each other are tried at once, and each time the steps are ordered again;
groups of steps that have not changed keep their moves (:mod:`.step_order`). So the work is that of
a few schedules, whatever the number of weights.

If it does not fit, all steps are split where that helps. If that does not fit either, the error
says what it needs, so that this limit will do.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Collection, Mapping, Sequence

from ..errors import StructuredError
from ..ir.byte_size import Size, at_bounds
from ..ir.kernels import Kernels
from .cones import Cones, SlicedStep
from .schedule import Schedule, bounds_of, plan_graph
from .slicing import Slicing
from .step_order import KnownMoves
from .transform_graph import Step, TransformGraph, UnsupportedTransformError

__all__ = ["MemoryLimitError", "bytes_of_limit", "plan_within"]


_LARGEST = (1 << 63) - 1  # a prim value of the check
_MOST_ROUNDS = 8  # each with a schedule within the limit


class MemoryLimitError(StructuredError):
    """No schedule of a transform fits into a memory limit.

    Attributes
    ----------
    function : str
    limit : str
        Bytes that were allowed.
    least : str
        Bytes of the least limit that would do.
    step : str
        The step in the way.
    """

    template = (
        "function `{function}` does not fit into memory_limit={limit} bytes: the least that would "
        "do is {least} bytes, for step `{step}`; raise the limit, or convert fewer weights at once"
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
    known = bounds_of(graph.function) if bounds is None else bounds
    sizes = (at_bounds(weight.buffer.size, known) for weight in graph.root.weights())
    weights: Size = sum(sizes, start=0)
    if not isinstance(weights, int):
        raise ValueError(
            f"memory_limit={limit!r} is a factor of the weights' bytes, which are {weights}: give "
            "bytes, or give the function the attribute tir_var_upper_bound"
        )
    return min(int(float(limit) * weights), _LARGEST)


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
            raise MemoryLimitError.of(
                function=graph.name,
                limit=str(limit),
                least=str(peak),
                step=_step_at_peak(schedule, peak),
            )
    return splitting.in_fewer_slices(schedule, limit)


def _step_at_peak(schedule: Schedule, peak: int) -> str:
    for live, step in zip(schedule.lives(), schedule.steps, strict=True):
        if live.worst == peak:
            return step.name
    return "none: what goes in or comes out takes as much"


@dataclasses.dataclass
class _Chance:
    """Ways to split some steps.

    Attributes
    ----------
    slicings : list of Slicing
        From the smallest cone to the largest.
    need : int
        The most that is live while one of the steps of any cone runs; with ``best``, if there is.
    best : SlicedStep, optional
    """

    slicings: list[Slicing]
    need: int
    best: SlicedStep | None = None

    @property
    def around(self) -> set[Step]:
        """The steps of all cones: a smaller one leaves temporaries around it as large as they are."""
        return {step for slicing in self.slicings for step in slicing.steps}


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
            chances = self._chances(schedule, limit, hopeless)
            if not chances:
                return schedule
            self._try(chances, sliced, limit)
            for chance in chances:
                if chance.best is None:
                    hopeless |= chance.around
                else:
                    sliced.append(chance.best)

    def _chances(self, schedule: Schedule, limit: int, hopeless: set[Step]) -> list[_Chance]:
        """The ways to split what is above the limit, the worst first; none share a step."""
        worst = _worst(schedule)
        cones = Cones(schedule.graph, self.kernels, schedule.steps)
        above = [step for step in schedule.steps if worst[step] > limit and step not in hopeless]
        taken: set[Step] = set()
        chances = []
        for step in sorted(above, key=lambda step: -worst[step]):
            if step in taken or isinstance(step, SlicedStep):
                continue
            slicings = cones.slicings(step)
            chance = _Chance(slicings, worst[step])
            if not slicings:
                hopeless.add(step)
            elif taken.isdisjoint(chance.around):
                chance.need = max(worst[step] for step in chance.around)
                taken |= chance.around
                chances.append(chance)
        return chances

    def _try(self, chances: Sequence[_Chance], sliced: Sequence[SlicedStep], limit: int) -> None:
        """Find the best way of each, all at once: the first within the limit, or the least."""
        for number in range(max(len(chance.slicings) for chance in chances)):
            trial = [
                (chance, SlicedStep.of(slicing, slicing.least_rows))
                for chance in chances
                if chance.need > limit
                for slicing in chance.slicings[number : number + 1]
            ]
            settled = [chance.best for chance in chances if chance.best and chance.need <= limit]
            worst = _worst(self.planned([*sliced, *settled, *(step for _, step in trial)]))
            for chance, step in trial:
                need = max(worst[one] for one in (step, *chance.around.difference(step.cone)))
                if need < chance.need:
                    chance.need, chance.best = need, step

    def in_fewer_slices(self, schedule: Schedule, limit: int) -> Schedule:
        """The schedule with as many rows at a time as there is room for where they are sliced.

        Larger slices may run later, where there is more room: it is done again, a few times.
        """
        for _ in range(_MOST_ROUNDS):
            worst = _worst(schedule)
            sliced = [
                SlicedStep.of(
                    step.slicing, step.rows + (limit - worst[step]) // step.slicing.bytes_of_row
                )
                for step in schedule.sliced
            ]
            if all(new.rows <= old.rows for new, old in zip(sliced, schedule.sliced, strict=True)):
                break
            wider = self.planned(sliced)
            if wider.peak() > limit:
                break
            schedule = wider
        return schedule


def _worst(schedule: Schedule) -> dict[Step, int]:
    """The most live bytes while each step runs."""
    lives = schedule.problem.simulate(schedule.steps)
    return {step: live.worst for step, live in zip(schedule.steps, lives, strict=True)}
