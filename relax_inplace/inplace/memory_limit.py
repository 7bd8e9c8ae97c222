"""A schedule within a limit: where its order is not enough, steps are run slice by slice.

Definition
----------
The limit bounds the live memory of :mod:`.schedule`, the weights included. While the peak is above
it, the step that reaches the peak is split (:mod:`.slicing`), by itself or with the steps that its
result is used for, into as few slices as bring these steps below the limit. If that is not enough,
steps are split into as many slices as help; if that is not, the error says what it needs, so that
this limit will do.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping

from tvm import relax

from ..errors import StructuredError
from ..ir.byte_size import Size, at_bounds
from ..ir.kernels import Kernels
from .schedule import Schedule, bounds_of, plan_graph
from .slicing import MOST_SLICES, SlicedStep, split
from .transform_graph import Step, TransformGraph, UnsupportedTransformError

__all__ = ["MemoryLimitError", "bytes_of_limit", "plan_within"]


_LARGEST = (1 << 63) - 1  # a prim value of the check
_Undo = dict[Step, tuple[dict[Step, None], dict[Step, None]]]


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
    """Order the steps of a graph; split those that need more than the limit, in the graph itself.

    A peak that is symbolic is not compared here, but when the function runs.

    Raises
    ------
    MemoryLimitError
        Nothing fits.
    UnsupportedTransformError
        The bytes of a tensor are not known, at run time neither.
    """
    state = _GraphState(graph)
    schedule = _split_below(graph, limit, kernels, bounds)
    peak = schedule.peak()
    if isinstance(peak, int) and peak > limit:
        state.restore()
        schedule = _split_below(graph, 0, kernels, bounds)  # into as many slices as there may be
        peak = schedule.peak()
        if isinstance(peak, int) and peak > limit:
            raise MemoryLimitError.of(
                function=graph.name,
                limit=str(limit),
                least=str(peak),
                step=_step_at_peak(schedule, peak),
            )
    return schedule


def _split_below(
    graph: TransformGraph, limit: int, kernels: Kernels, bounds: Mapping[str, int] | None
) -> Schedule:
    """The schedule with steps split until the peak is within the limit, or none can be."""
    schedule = plan_graph(graph, None, bounds)
    hopeless: set[Step] = set()
    while True:
        peak = schedule.peak()
        if not isinstance(peak, int) and peak.unknown():
            raise UnsupportedTransformError.of(
                function=graph.name,
                reason=f"memory_limit={limit}: the bytes of `{peak.unknown()[0]}` are not known; "
                "its type has to say its shape and dtype",
            )
        if not isinstance(peak, int) or peak <= limit:
            return schedule
        worst = _worst_step(schedule, limit, hopeless)
        if worst is None:
            return schedule
        better = _split(schedule, worst, limit, kernels, bounds)
        if better is None:
            hopeless.add(worst)
        else:
            schedule = better


class _GraphState:
    """What splitting steps changes in a graph."""

    def __init__(self, graph: TransformGraph):
        self._graph = graph
        self._steps, self._step_of = list(graph.steps), dict(graph._step_of)
        self._before = {step: (dict(step.operands), dict(step.after)) for step in graph.steps}

    def restore(self) -> None:
        _restore(self._graph, self._steps, self._step_of, self._before)


def _step_at_peak(schedule: Schedule, peak: int) -> str:
    lives = schedule.problem.simulate(schedule.order)
    for live, step in zip(lives, schedule.steps, strict=True):
        if live.worst == peak:
            return step.name
    return "none: what goes in or comes out takes as much"


def _worst_step(schedule: Schedule, limit: int, hopeless: set[Step]) -> Step | None:
    lives = schedule.problem.simulate(schedule.order)
    over = [
        (live.worst, -number, step)
        for number, (live, step) in enumerate(zip(lives, schedule.steps, strict=True))
        if live.worst > limit and step not in hopeless and not isinstance(step, SlicedStep)
    ]
    return max(over, key=lambda entry: entry[:2])[2] if over else None


def _split(
    schedule: Schedule,
    step: Step,
    limit: int,
    kernels: Kernels,
    bounds: Mapping[str, int] | None,
) -> Schedule | None:
    """The schedule with that step split, if that helps; the graph is changed then."""
    graph = schedule.graph

    def planned() -> Schedule:
        return plan_graph(graph, None, bounds)

    ways = split(graph, step, kernels, schedule.steps)
    if not ways:
        return None
    steps, step_of = list(graph.steps), dict(graph._step_of)
    # A smaller cone would leave temporaries around it as large as they are.
    around = {step_of[k.binding.var] for sliced in ways for k in sliced.slicing.kernels}
    before = _need(planned(), around)
    needs = []
    for sliced in ways:
        _set_slices(graph, sliced, min(MOST_SLICES, sliced.slicing.length))
        undo = _put_in(graph, sliced)
        needs.append(_need(planned(), around | {sliced}))
        _restore(graph, steps, step_of, undo)
        if needs[-1] <= limit:
            break
    need = min(needs)
    if need >= before:
        return None
    sliced = ways[needs.index(need)]
    _put_in(graph, sliced)
    fewest, most = 2, sliced.slices
    while need <= limit and fewest < most:
        middle = (fewest + most) // 2
        _set_slices(graph, sliced, middle)
        if _need(planned(), around | {sliced}) <= limit:
            most = middle
        else:
            fewest = middle + 1
    _set_slices(graph, sliced, most)
    return planned()


def _need(schedule: Schedule, steps: set[Step]) -> int:
    """The most live bytes while one of these steps runs."""
    lives = schedule.problem.simulate(schedule.order)
    return max(
        live.worst for live, step in zip(lives, schedule.steps, strict=True) if step in steps
    )


def _set_slices(graph: TransformGraph, sliced: SlicedStep, slices: int) -> None:
    sliced.slices = slices
    sliced.kernels[0].scratch = sliced.slicing.scratch(graph, sliced.rows())


def _put_in(graph: TransformGraph, sliced: SlicedStep) -> _Undo:
    """Replace the steps of its cone; what others depended on, where that has changed."""
    inside = {kernel.binding.var for kernel in sliced.slicing.kernels}
    cone = {graph._step_of[var] for var in inside}
    last = graph._step_of[sliced.slicing.result]
    undo: _Undo = {}
    steps: list[Step] = []
    for step in graph.steps:
        if step is last:
            steps.append(sliced)
        elif step not in cone:
            steps.append(step)
            if any(other in cone for other in step.after):
                undo[step] = dict(step.operands), dict(step.after)
                step.operands = {(sliced if o in cone else o): None for o in step.operands}
                step.after = {(sliced if o in cone else o): None for o in step.after}
    graph.steps = steps
    for var in inside:
        graph._step_of[var] = sliced
    return undo


def _restore(
    graph: TransformGraph,
    steps: list[Step],
    step_of: dict[relax.Var, Step],
    undo: _Undo,
) -> None:
    graph.steps = steps
    graph._step_of.clear()
    graph._step_of.update(step_of)
    for step, (operands, after) in undo.items():
        step.operands, step.after = operands, after
