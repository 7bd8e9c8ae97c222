"""The order in which the steps of a transform run, and what is freed after each.

Definition
----------
Live memory at a step is every original with a use still to come, every output that is finished,
every temporary with a use still to come, and what the step itself allocates. An original is freed
after its last read, a temporary after its last use; one that nothing reads is freed before the
first step. A result that lies in the memory of what its step reads last (:mod:`.moves_in_place`)
takes no more than 4 MB of scratch, and not its size, while it is computed. Constants and the
``num_input`` leading parameters are not counted: they are not the transform's. Bytes on all devices
are counted together.

The order is one of least peak (:mod:`.step_order`). Among those, one in which least would be
allocated if spent storages were donated (:mod:`..lower.spare_storage`): steps of one size follow
each other, the largest first, where that makes a difference of some MB. Among those, the first of:
output by output; as the function was written; what the search found. Weights that are loaded are
asked for output by output, as they lie in their files.

Of a streamed transform nothing is live at the start: a load allocates its weight. It runs right
before the first step that waits for it. No order is worse for that: a load frees nothing.

A step of several bindings runs as one kernel where the pipeline fuses, as several where it does not
(``tvm.compile`` for a CPU). It is ordered by the worse of both.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tvm import relax

from ..ir.byte_size import LargestOf, Size, at_bounds, largest, nominal_size
from ..lower.spare_storage import Moment, take_spare
from .cones import SlicedStep
from .step_order import KnownMoves, Live, Problem, StepCost, groups_of, least_peak_order
from .steps import Load, Step
from .transform_graph import TransformGraph
from .weights import Buffer, buffers_of

__all__ = ["MOST_SCRATCH", "UPPER_BOUND", "Schedule", "bounds_of", "least_order", "plan_graph"]

UPPER_BOUND = "tir_var_upper_bound"  # an attribute of functions that TVM's planner knows
MOST_SCRATCH = 4 << 20  # bytes that a move within a weight takes besides: cpp/in_place_move.cc
_WORTH_REORDERING = 1 << 20  # bytes; for less, steps stay in the order in which they are read


@dataclasses.dataclass
class Schedule:
    """The order of a graph's steps, and what is freed after each.

    Attributes
    ----------
    graph : TransformGraph
    steps : list of Step
        Of the graph, and :class:`.cones.SlicedStep` in the place of those that they run.
    freed_first : list of Buffer
        What is there at the start, and nothing reads.
    frees : list of (list of Buffer)
        What each step reads last.
    is_exact : bool
        Whether no other order has a lower peak.
    bounds : mapping of str to int
        Values of symbolic dimensions, for figures.
    problem : Problem
        What was ordered; all buffers have numbers for sizes.
    runs_in : mapping of Step to SlicedStep
        For each step of a cone that runs slice by slice what runs in its place.
    """

    graph: TransformGraph
    steps: list[Step]
    freed_first: list[Buffer]
    frees: list[list[Buffer]]
    is_exact: bool
    bounds: Mapping[str, int]
    problem: Problem[Step, Buffer]
    runs_in: Mapping[Step, SlicedStep]

    def finished(self) -> list[list[int]]:
        """For each step the outputs that are finished after it; first, those that need none."""
        position = {step: number for number, step in enumerate(self.steps, 1)}
        position.update({step: position[sliced] for step, sliced in self.runs_in.items()})
        finished: list[list[int]] = [[] for _ in range(len(self.steps) + 1)]
        for index, output in enumerate(self.graph.outputs):
            steps = self.graph.needs(output)[0]
            finished[max((position[step] for step in steps), default=0)].append(index)
        return finished

    def peak(self, in_place: bool = True) -> Size | LargestOf:
        """The most that is live at any time: see :meth:`with_sizes`."""
        problem = self.with_sizes(in_place=in_place)
        lives = problem.simulate(self.steps)
        ends = [problem.live_at_start, problem.live_at_end]
        return largest([*ends, *(live.worst for live in lives)])

    def lives(self, fused: bool | None = None) -> list[Live]:
        """The bytes around each step: see :meth:`with_sizes`."""
        return self.with_sizes(fused).simulate(self.steps)

    def moves_in_place(self) -> bool:
        """Whether the peak counts on a result in the memory of what its step reads."""
        return any(kernel.over for step in self.steps for kernel in step.kernels)

    def groups(self) -> list[list[Step]]:
        """The steps that see each other, group by group, but for those that run first of all."""
        return groups_of(self.problem, set(_first(self.problem)))

    def part(
        self, group: Iterable[Step], sliced: Iterable[SlicedStep] = ()
    ) -> Problem[Step, Buffer]:
        """The problem of a group alone, with some steps in the places of their cones."""
        own = {step: one for one in sliced for step in one.cone}
        costs = _costs(self.graph, group, ChainMap(own, self.runs_in))  # type: ignore[arg-type]
        sizes: dict[Buffer, Any] = {}
        for step, cost in costs.items():
            cost.after &= costs.keys()
            for kernel in step.kernels:
                for buffer in (*kernel.allocates, *kernel.uses):
                    sizes[buffer] = self.problem.sizes[buffer]
        at_start = [buffer for buffer in sizes if buffer in self.problem.at_start]
        scratch = self.problem.most_scratch
        return Problem(sizes, at_start, self.problem.kept, costs, most_scratch=scratch)

    def with_sizes(self, fused: bool | None = None, in_place: bool = True) -> Problem[Step, Buffer]:
        """The problem with sizes as they are, which may be symbolic.

        ``fused`` says whether the kernels of a step run as one; None is the worse of both.
        ``in_place`` is false where no memory can be taken over, such as that of imported weights.
        """
        problem = copy.copy(self.problem)
        problem.fused = fused
        if not in_place:
            problem.most_scratch = None
        if not all(isinstance(buffer.size, int) for buffer in problem.sizes):
            problem.sizes = {b: at_bounds(b.size, self.bounds) for b in problem.sizes}
            problem.number = functools.partial(nominal_size, bounds=self.bounds)
        return problem


def plan_graph(
    graph: TransformGraph,
    tir_var_upper_bound: Mapping[str, int] | None = None,
    sliced: Collection[SlicedStep] = (),
    known: KnownMoves[Step] | None = None,
) -> Schedule:
    """Order the steps of a graph.

    Parameters
    ----------
    graph : TransformGraph
    tir_var_upper_bound : mapping of str to int, optional
        Values of symbolic dimensions that make numbers of the figures; those of the function by
        default. Steps are ordered by those of the function in any case.
    sliced : collection of SlicedStep
        What runs in the place of the steps of their cones.
    known : dict, optional
        What was found when other schedules of the graph were: see :func:`.least_peak_order`.
    """
    own_bounds = bounds_of(graph.function)
    bounds = own_bounds if tir_var_upper_bound is None else tir_var_upper_bound
    runs_in = {step: one for one in sliced for step in one.cone}
    weights = list(graph.root.weights())
    sizes = {weight.buffer: nominal_size(weight.buffer.size, own_bounds) for weight in weights}
    at_start = {} if graph.loads else dict.fromkeys(sizes)
    costs = _costs(graph, graph.steps, runs_in)
    for step in costs:
        for kernel in step.kernels:
            for buffer in (*kernel.allocates, *kernel.uses):
                if buffer not in sizes:
                    sizes[buffer] = nominal_size(buffer.size, own_bounds)
    kept = {buffer for output in graph.outputs for buffer in buffers_of(graph.layout(output))}
    kept |= {weight.buffer for weight in weights if not weight.is_modifiable}
    kept |= {buffer for buffer in sizes if buffer.is_stuck}
    in_order = dict.fromkeys(b for b in sizes if b in kept)
    problem = Problem(sizes, at_start, in_order, costs, most_scratch=MOST_SCRATCH)
    order, is_exact = _best_order(graph, problem, runs_in, known)
    freed_first = [b for b in at_start if not problem.readers[b] and b not in kept]
    frees = [dying for _, dying in problem.deaths(order)]
    return Schedule(graph, order, freed_first, frees, is_exact, bounds, problem, runs_in)


def _costs(
    graph: TransformGraph, steps: Iterable[Step], runs_in: Mapping[Step, SlicedStep]
) -> dict[Step, StepCost[Step, Buffer]]:
    """What each step costs, with sliced steps in the places of the last ones of their cones."""
    bounds = bounds_of(graph.function)
    costs: dict[Step, StepCost[Step, Buffer]] = {}
    for step in steps:
        sliced = runs_in.get(step)
        if sliced is None or step is sliced.cone[-1]:
            one = sliced or step
            kernels = [(k.uses, k.allocates, nominal_size(k.scratch, bounds)) for k in one.kernels]
            after = {runs_in.get(other, other) for other in one.after}
            over = {new: old for kernel in one.kernels for new, old in kernel.over.items()}
            costs[one] = StepCost(kernels, after, over)
    return costs


def bounds_of(function: relax.Function) -> Mapping[str, int]:
    """The bounds of symbolic dimensions that a function carries."""
    attrs = function.attrs
    if not attrs or UPPER_BOUND not in attrs:
        return {}
    return {str(name): int(bound) for name, bound in attrs[UPPER_BOUND].items()}


def least_order(
    graph: TransformGraph,
    problem: Problem[Step, Buffer],
    first: Sequence[Step] = (),
    known: KnownMoves[Step] | None = None,
) -> tuple[list[Step], bool]:
    """An order of least peak, and whether it is exact: see :func:`.least_peak_order`."""
    order, is_exact = least_peak_order(_without_loads_for_one(graph, problem), first, known)
    return _loaded_late(graph, problem, order), is_exact


def _first(problem: Problem[Step, Buffer]) -> list[Step]:
    """What types of later steps may depend on, and what that needs."""
    return _closure(problem, [step for step in problem.steps if step.runs_first], set())


def _best_order(
    graph: TransformGraph,
    problem: Problem[Step, Buffer],
    runs_in: Mapping[Step, SlicedStep],
    known: KnownMoves[Step] | None,
) -> tuple[list[Step], bool]:
    first = _first(problem)
    in_turn = _output_by_output(graph, problem, runs_in, first)
    by_output = _loaded_late(graph, problem, in_turn)
    peak = problem.peak(by_output)
    bound = max(problem.live_at_start, problem.live_at_end)
    if peak == bound:
        return by_output, True
    found, is_exact = least_order(graph, problem, first, known)
    done = set(first)
    as_written = first + [step for step in problem.steps if step not in done]
    orders = [by_output]
    for order in (_loaded_late(graph, problem, as_written), found):
        if order not in orders:
            orders.append(order)
    peaks = [peak, *map(problem.peak, orders[1:])]
    least = min(peaks)
    best = [order for order, peak in zip(orders, peaks, strict=True) if peak == least]
    if len(best) > 1 and not graph.loads:
        best.sort(key=lambda order: _allocated(problem, order, least) // _WORTH_REORDERING)
    return best[0], is_exact or least == bound


def _allocated(problem: Problem[Step, Buffer], order: Sequence[Step], peak: int) -> int:
    """The bytes that an order allocates if spent storages are donated within its peak."""
    moments: list[Moment[Buffer]] = []
    sizes = problem.sizes
    rises: dict[Buffer, Size] = {}
    falls: dict[Buffer, Size] = {}
    for step, dying in problem.deaths(order):
        allocated = [b for b in problem.allocates[step] if b in problem.kept or problem.readers[b]]
        for new, old in problem.in_place(step, dying).items():
            rises[new], falls[old] = 0, sizes[old] - sizes[new]
        takes, leaves = set(allocated).difference(rises), set(dying).difference(falls)
        moments.append(Moment(allocated, dying, takes, leaves))
    taken = take_spare(moments, sizes, problem.live_at_start, peak, rises, falls, shrinks=True)
    fresh = (b for moment in moments for b in moment.allocated if b not in rises)
    return sum(sizes[b] for b in fresh if b not in taken)


def _closure(
    problem: Problem[Step, Buffer], roots: Collection[Step], done: set[Step]
) -> list[Step]:
    """The steps that ``roots`` need and that are not done, in the order of the function."""
    needed: set[Step] = set()
    pending = list(roots)
    while pending:
        step = pending.pop()
        if step not in needed and step not in done:
            needed.add(step)
            pending += problem.steps[step].after
    return sorted(needed, key=problem.position.__getitem__)


def _output_by_output(
    graph: TransformGraph,
    problem: Problem[Step, Buffer],
    runs_in: Mapping[Step, SlicedStep],
    first: list[Step],
) -> list[Step]:
    order, done = list(first), set(first)
    for output in graph.outputs:
        roots = [runs_in.get(step, step) for step in graph.needs(output)[0]]
        steps = _closure(problem, roots, done)
        order += steps
        done.update(steps)
    return order + [step for step in problem.steps if step not in done]


def _loaded_late(
    graph: TransformGraph, problem: Problem[Step, Buffer], order: Sequence[Step]
) -> list[Step]:
    """The order with each load right before the first step that waits for it, or at the end."""
    if not graph.loads:
        return list(order)
    late = {step for step in order if isinstance(step, Load) and not step.runs_first}
    done: dict[Step, None] = {}

    def run(step: Step) -> None:
        # Not a difference of sets: that of a set and a dict's keys goes through all the keys.
        waiting = [one for one in problem.steps[step].after if one in late and one not in done]
        for other in sorted(waiting, key=problem.position.__getitem__):
            run(other)
        done[step] = None

    for step in order:
        if step not in late:
            run(step)
    for step in order:
        if step not in done:
            run(step)
    return list(done)


def _loads_for_one(problem: Problem[Step, Buffer]) -> dict[Step, list[Step]]:
    """For each step the loads that it alone waits for, and whose weights it alone uses."""
    waiting: dict[Step, list[Step]] = {}
    for step, cost in problem.steps.items():
        for other in cost.after:
            if isinstance(other, Load):
                waiting.setdefault(other, []).append(step)
    found: dict[Step, list[Step]] = {}
    for load, steps in waiting.items():
        (buffer,) = problem.allocates[load]
        if len(steps) == 1 and buffer not in problem.kept and problem.readers[buffer] == set(steps):
            found.setdefault(steps[0], []).append(load)
    return found


def _without_loads_for_one(
    graph: TransformGraph, problem: Problem[Step, Buffer]
) -> Problem[Step, Buffer]:
    """The problem in which what such loads allocate is scratch of the step that waits for them.

    Otherwise the search would go through all sets of the weights that one step concatenates.
    """
    if not graph.loads:
        return problem
    steps = dict(problem.steps)
    for step, loads in _loads_for_one(problem).items():
        cost = problem.steps[step]
        loaded = {buffer for load in loads for buffer in problem.allocates[load]}
        last = {b: k for k, (uses, _, _) in enumerate(cost.kernels) for b in uses & loaded}
        kernels = []
        for k, (uses, allocates, scratch) in enumerate(cost.kernels):
            scratch += sum(problem.sizes[buffer] for buffer in loaded if last[buffer] >= k)
            kernels.append((uses - loaded, allocates, scratch))
        after = cost.after.difference(loads)
        for load in loads:
            after |= problem.steps[load].after
            steps[load] = StepCost([(set(), [], 0)], set())
        steps[step] = StepCost(kernels, after, cost.over)
    return Problem(
        problem.sizes,
        problem.at_start,
        problem.kept,
        steps,
        problem.fused,
        most_scratch=problem.most_scratch,
    )
