"""The order in which the steps of a transform run, and what is freed after each.

Definition
----------
Live memory at a step is every original with a use still to come, every output that is finished,
every temporary with a use still to come, and what the step itself allocates. An original is freed
after its last read, a temporary after its last use; one that nothing reads is freed before the
first step. Constants and the ``num_input`` leading parameters are not counted: they are not the
transform's. Bytes on all devices are counted together.

The order is one of least peak (:mod:`.step_order`). Among those, one in which least would be
allocated if spent storages were donated (:mod:`.spare_storage`): steps of one size follow each
other, the largest first, where that makes a difference of some MB. Among those, the first of:
output by output; as the function was written; what the search found. Weights that are loaded are
asked for output by output, as they lie in their files.

Of a streamed transform nothing is live at the start: a load allocates its weight. It runs right
before the first step that waits for it. No order is worse for that: a load frees nothing.

A step of several bindings runs as one kernel where the pipeline fuses, as several where it does not
(``tvm.compile`` for a CPU). It is ordered by the worse of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tvm import relax

from ..ir.byte_size import LargestOf, Size, at_bounds, largest
from ..lower.spare_storage import Moment, take_spare
from .step_order import Problem, StepCost, least_peak_order
from .transform_graph import Buffer, Load, Step, TransformGraph, buffers_of

__all__ = ["NOMINAL_DIMENSION", "UPPER_BOUND", "Schedule", "bounds_of", "plan_graph"]

UPPER_BOUND = "tir_var_upper_bound"  # an attribute of functions that TVM's planner knows
NOMINAL_DIMENSION = 1024  # of a symbolic dimension without a bound, where sizes are to be compared
_WORTH_REORDERING = 1 << 20  # bytes; for less, steps stay in the order in which they are read


@dataclasses.dataclass
class Schedule:
    """The order of a graph's steps, and what is freed after each.

    Attributes
    ----------
    graph : TransformGraph
    steps : list of Step
    freed_first : list of Buffer
        What is there at the start, and nothing reads.
    frees : list of (list of Buffer)
        What each step reads last.
    is_exact : bool
        Whether no other order has a lower peak.
    fused : bool or None
        Whether the kernels of a step run as one; None for the worse of both.
    bounds : mapping of str to int
        Values of symbolic dimensions, for figures.
    buffers : list of Buffer
        All of them; ``problem`` knows them by their indices.
    problem : Problem
    order : list of int
        ``steps``, by their indices in the graph.
    """

    graph: TransformGraph
    steps: list[Step]
    freed_first: list[Buffer]
    frees: list[list[Buffer]]
    is_exact: bool
    fused: bool | None
    bounds: Mapping[str, int]
    buffers: list[Buffer]
    problem: Problem
    order: list[int]

    def finished(self) -> list[list[int]]:
        """For each step the outputs that are finished after it; first, those that need none."""
        position = {step: number for number, step in enumerate(self.steps, 1)}
        finished: list[list[int]] = [[] for _ in range(len(self.steps) + 1)]
        for index, output in enumerate(self.graph.outputs):
            steps = self.graph.needs(output)[0]
            finished[max((position[step] for step in steps), default=0)].append(index)
        return finished

    def peak(self) -> Size | LargestOf:
        """The most that is live at any time."""
        problem = self.with_sizes()
        lives = problem.simulate(self.order)
        ends = [problem.live_at_start, problem.live_at_end]
        return largest([*ends, *(live.worst for live in lives)])

    def with_sizes(self) -> Problem:
        """The problem with sizes as they are, which may be symbolic."""
        if all(isinstance(buffer.size, int) for buffer in self.buffers):
            return self.problem
        sizes = [at_bounds(buffer.size, self.bounds) for buffer in self.buffers]
        return Problem(
            sizes,
            self.problem.at_start,
            self.problem.kept,
            self.problem.steps,
            self.fused,
            number=lambda size: at_bounds(size, self.bounds, NOMINAL_DIMENSION),  # type: ignore
        )


def plan_graph(
    graph: TransformGraph,
    fused: bool | None = None,
    tir_var_upper_bound: Mapping[str, int] | None = None,
) -> Schedule:
    """Order the steps of a graph.

    Symbolic dimensions are compared by the function's own bounds; those that are given here only
    make numbers of the figures.
    """
    own_bounds = bounds_of(graph.function)
    bounds = own_bounds if tir_var_upper_bound is None else tir_var_upper_bound
    weights = list(graph.root.weights())
    kept = {buffer for output in graph.outputs for buffer in buffers_of(graph.layout(output))}
    kept |= {weight.buffer for weight in weights if not weight.is_modifiable}
    index: dict[Buffer, int] = {}
    for weight in weights:
        index[weight.buffer] = len(index)
    for step in graph.steps:
        for kernel in step.kernels:
            for buffer in (*kernel.allocates, *kernel.uses):
                index.setdefault(buffer, len(index))
    number = {step: i for i, step in enumerate(graph.steps)}

    def sized(size: Size) -> int:
        value = at_bounds(size, own_bounds, NOMINAL_DIMENSION)
        assert isinstance(value, int)
        return value

    costs = [
        StepCost(
            [
                (
                    {index[buffer] for buffer in kernel.uses},
                    [index[buffer] for buffer in kernel.allocates],
                    sized(kernel.scratch),
                )
                for kernel in step.kernels
            ],
            {number[other] for other in step.after},
        )
        for step in graph.steps
    ]
    kept |= {buffer for buffer in index if buffer.is_stuck}
    problem = Problem(
        [sized(buffer.size) for buffer in index],
        set() if graph.loads else set(range(len(weights))),
        {index[buffer] for buffer in kept if buffer in index},
        costs,
        fused=None,
    )
    order, is_exact = _best_order(graph, problem, number)
    if fused is not None:
        problem = Problem(problem.sizes, problem.at_start, problem.kept, costs, fused)
    buffers = list(index)
    freed_first = [
        buffers[b] for b in problem.at_start if not problem.readers[b] and b not in problem.kept
    ]
    frees = []
    left = [len(readers) for readers in problem.readers]
    for i in order:
        dying = []
        for b in problem.uses[i]:
            left[b] -= 1
            if not left[b] and b not in problem.kept:
                dying.append(buffers[b])
        frees.append(dying)
    steps = [graph.steps[i] for i in order]
    return Schedule(
        graph, steps, freed_first, frees, is_exact, fused, bounds, buffers, problem, order
    )


def bounds_of(function: relax.Function) -> Mapping[str, int]:
    """The bounds of symbolic dimensions that a function carries."""
    attrs = function.attrs
    if not attrs or UPPER_BOUND not in attrs:
        return {}
    return {str(name): int(bound) for name, bound in attrs[UPPER_BOUND].items()}


def _best_order(
    graph: TransformGraph, problem: Problem, number: dict[Step, int]
) -> tuple[list[int], bool]:
    first = _closure(problem, [i for i, step in enumerate(graph.steps) if step.runs_first], set())
    in_turn = _output_by_output(graph, problem, number, first)
    by_output = _loaded_late(graph, problem, in_turn)
    peak = problem.peak(by_output)
    bound = max(problem.live_at_start, problem.live_at_end)
    if peak == bound:
        return by_output, True
    found, is_exact = least_peak_order(_without_loads_for_one(graph, problem), first)
    done = set(first)
    as_written = first + [i for i in range(len(graph.steps)) if i not in done]
    others = (_loaded_late(graph, problem, order) for order in (as_written, found))

    def cost(order: list[int]) -> tuple[int, int]:
        peak = problem.peak(order)
        return peak, 0 if graph.loads else _allocated(problem, order, peak) // _WORTH_REORDERING

    best = min((by_output, *others), key=cost)
    return best, is_exact or problem.peak(best) == bound


def _allocated(problem: Problem, order: Sequence[int], peak: int) -> int:
    """The bytes that an order allocates if spent storages are donated within its peak."""
    left = [len(readers) for readers in problem.readers]
    moments: list[Moment[int]] = []
    for i in order:
        moment: Moment[int] = Moment()
        moment.allocated = [b for b in problem.allocates[i] if b in problem.kept or left[b]]
        for buffer in problem.uses[i]:
            left[buffer] -= 1
            if not left[buffer] and buffer not in problem.kept:
                moment.spent.append(buffer)
        moment.takes, moment.leaves = set(moment.allocated), set(moment.spent)
        moments.append(moment)
    sizes = dict(enumerate(problem.sizes))
    taken = take_spare(moments, sizes, problem.live_at_start, peak, {}, {}, shrinks=True)
    return sum(sizes[b] for moment in moments for b in moment.allocated if b not in taken)


def _closure(problem: Problem, roots: Sequence[int], done: set[int]) -> list[int]:
    """The steps that ``roots`` need and that are not done, in the order of the function."""
    needed: set[int] = set()
    pending = list(roots)
    while pending:
        step = pending.pop()
        if step not in needed and step not in done:
            needed.add(step)
            pending += problem.steps[step].after
    return sorted(needed)


def _output_by_output(
    graph: TransformGraph, problem: Problem, number: dict[Step, int], first: list[int]
) -> list[int]:
    order, done = list(first), set(first)
    for output in graph.outputs:
        steps = _closure(problem, [number[step] for step in graph.needs(output)[0]], done)
        order += steps
        done.update(steps)
    return order + [i for i in range(len(graph.steps)) if i not in done]


def _loaded_late(graph: TransformGraph, problem: Problem, order: Sequence[int]) -> list[int]:
    """The order with each load right before the first step that waits for it, or at the end."""
    if not graph.loads:
        return list(order)
    late = {i for i, s in enumerate(graph.steps) if isinstance(s, Load) and not s.runs_first}
    done: dict[int, None] = {}

    def run(i: int) -> None:
        for other in sorted((problem.steps[i].after & late) - done.keys()):
            run(other)
        done[i] = None

    for i in order:
        if i not in late:
            run(i)
    for i in order:
        if i not in done:
            run(i)
    return list(done)


def _loads_for_one(graph: TransformGraph, problem: Problem) -> dict[int, list[int]]:
    """For each step the loads that it alone waits for, and whose weights it alone uses."""
    waiting: dict[int, list[int]] = {}
    for i, step in enumerate(problem.steps):
        for other in step.after:
            if isinstance(graph.steps[other], Load):
                waiting.setdefault(other, []).append(i)
    found: dict[int, list[int]] = {}
    for load, steps in waiting.items():
        (buffer,) = problem.allocates[load]
        if len(steps) == 1 and buffer not in problem.kept and problem.readers[buffer] == set(steps):
            found.setdefault(steps[0], []).append(load)
    return found


def _without_loads_for_one(graph: TransformGraph, problem: Problem) -> Problem:
    """The problem in which what such loads allocate is scratch of the step that waits for them.

    Otherwise the search would go through all sets of the weights that one step concatenates.
    """
    if not graph.loads:
        return problem
    steps = list(problem.steps)
    for i, loads in _loads_for_one(graph, problem).items():
        cost = problem.steps[i]
        loaded = {buffer for load in loads for buffer in problem.allocates[load]}
        last = {b: k for k, (uses, _, _) in enumerate(cost.kernels) for b in uses & loaded}
        kernels = []
        for k, (uses, allocates, scratch) in enumerate(cost.kernels):
            scratch += sum(problem.sizes[buffer] for buffer in loaded if last[buffer] >= k)
            kernels.append((uses - loaded, allocates, scratch))
        after = cost.after - set(loads)
        for load in loads:
            after |= problem.steps[load].after
            steps[load] = StepCost([(set(), [], 0)], set())
        steps[i] = StepCost(kernels, after)
    return Problem(problem.sizes, problem.at_start, problem.kept, steps, problem.fused)
