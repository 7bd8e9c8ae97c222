"""What a transform does in place, step by step, and the memory it needs: for a person to read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import tvm
from tvm import ir, relax

from ..ir.byte_size import NOMINAL_DIMENSION, LargestOf, Size, at_bounds, largest, nominal_size
from ..ir.kernels import Kernels
from ..ir.marks import without_marks
from ..ir.table import listed, plain_size, shown, table
from ..weight_names import GivenNames, given_names
from .branches import find_branches
from .memory_limit import bytes_of_limit, plan_within
from .moves_in_place import target_to_plan_for
from .read_transform import read_transform
from .schedule import MOST_SCRATCH, Schedule, bounds_of, plan_graph
from .signature import names_of_weights
from .steps import Load, Step
from .transform_graph import Known, TransformGraph
from .weights import Buffer, Container, Weight, buffers_of

__all__ = ["FEW", "MemoryPlan", "PlannedStep", "PlannedWeight", "plan_memory"]


FEW = 16  # weights, of which all are shown
_STAYS = "never: it is output"


@dataclasses.dataclass
class PlannedStep:
    """A step, and the bytes that are live around it.

    Attributes
    ----------
    name : str
        The variable that it computes.
    reads, writes, frees : list of str
        Weights, temporaries and outputs (``slot 3``).
    before, worst, after : int or ByteSize
        Live bytes before the step, while it runs, and after it.
    in_place : list of str
        The weights and temporaries whose memory its results take.
    """

    name: str
    reads: list[str]
    writes: list[str]
    frees: list[str]
    before: Size
    worst: Size
    after: Size
    in_place: list[str]


@dataclasses.dataclass
class PlannedWeight:
    """A weight, and when its storage is freed.

    Attributes
    ----------
    name : str
        Its name.
    slot : str
        Its slot in the tuple, such as ``0``, or ``0.3`` in a nested one.
    size : int or ByteSize
        Its bytes.
    loaded_by : int or None
        The step that loads it, counted from 1; None if it is resident, or never loaded.
    freed_after : int or None
        The step after which it is freed, counted from 1; 0 before the first step, None for never.
    because : str
        The reason.
    """

    name: str
    slot: str
    size: Size
    loaded_by: int | None
    freed_after: int | None
    because: str

    def stays(self) -> bool:
        """Whether the weight itself is an output."""
        return self.freed_after is None and self.because.startswith(_STAYS)


@dataclasses.dataclass
class MemoryPlan:
    """The steps of an in-place transform, and their memory.

    Attributes
    ----------
    function : str
        The name of the transform.
    steps : list of PlannedStep
        The steps, in their order.
    weights : list of PlannedWeight
        The weights, in the order of the tuple.
    before, after : int or ByteSize
        Bytes of the resident weights, and of the result.
    peak : int, ByteSize or LargestOf
        The most live bytes at any time.
    lower_bound : int, ByteSize or LargestOf
        The larger of ``before`` and ``after``: no order of any steps needs less.
    order : str
        ``exact`` if no order has a lower peak, or ``heuristic``.
    """

    function: str
    steps: list[PlannedStep]
    weights: list[PlannedWeight]
    before: Size
    after: Size
    peak: Size | LargestOf
    lower_bound: Size | LargestOf
    order: str

    def __str__(self) -> str:
        """Tables of the steps and of the weights; of many weights, those that change."""
        return self.text()

    def text(self, every: bool = False) -> str:
        """The text of ``print``; with ``every``, a row for each weight of a large model, too."""
        in_place = any(step.in_place for step in self.steps)
        steps = table(
            ["step", "computes", "reads", "writes", "in", "frees", "before", "worst", "after"],
            [
                [
                    str(number),
                    step.name,
                    listed(step.reads),
                    listed(step.writes),
                    listed(step.in_place),
                    listed(step.frees),
                    shown(step.before),
                    shown(step.worst),
                    shown(step.after),
                ]
                for number, step in enumerate(self.steps, 1)
            ],
            without=[] if in_place else ["in"],
        )
        is_short = every or len(self.weights) <= FEW
        listed_weights = [one for one in self.weights if is_short or not one.stays()]
        more = len(self.weights) - len(listed_weights)
        weights = table(
            ["slot", "weight", "bytes", "loaded by", "freed after", "because"],
            [
                [
                    weight.slot,
                    weight.name,
                    shown(weight.size),
                    _moment(weight.loaded_by),
                    _moment(weight.freed_after),
                    weight.because,
                ]
                for weight in listed_weights
            ],
            without=[] if any(weight.loaded_by for weight in self.weights) else ["loaded by"],
        )
        return (
            f"{self.function}: peak {shown(self.peak)}, before {shown(self.before)}, after "
            f"{shown(self.after)}, lower bound {shown(self.lower_bound)}; order: {self.order}"
            + (f"; in place by at most {MOST_SCRATCH:,} of scratch" if in_place else "")
            + f"\n\n{steps}\n\n{weights}\n"
            + (
                f"and {more} more of {len(self.weights)} weights, which stay as they are\n"
                if more
                else ""
            )
        )

    def to_json(self) -> str:
        """All of it; sizes are numbers, or text where they are symbolic."""
        # Not dataclasses.asdict, which would take a ByteSize apart.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["steps"] = [vars(step) for step in self.steps]
        fields["weights"] = [vars(weight) for weight in self.weights]
        return json.dumps(fields, default=plain_size, indent=1)


def plan_memory(
    function: relax.Function,
    mod: ir.IRModule | None = None,
    *,
    params: Sequence[str | int] | None = None,
    names: GivenNames | None = None,
    memory_limit: int | float | None = None,
    lazy: bool = False,
    fused: bool | None = None,
    tir_var_upper_bound: Mapping[str, int] | None = None,
    target: str | tvm.target.Target | None = None,
) -> MemoryPlan:
    """Plan a transform: the order that ``InplaceTransformParams`` runs it in, and its memory.

    Parameters
    ----------
    function : relax.Function
        A transform, before the pass.
    mod : tvm.ir.IRModule, optional
        The module of the transform, if that calls other functions.
    params : sequence of str or int, optional
        The weights that may be modified: see ``InplaceTransformParams``.
    names : mapping, sequence, callable or path, optional
        The names of the weights: see ``InplaceTransformParams``.
    memory_limit : int or float, optional
        See ``InplaceTransformParams``.
    lazy : bool
        Plan the streamed transform: see ``InplaceTransformParams``.
    fused : bool, optional
        True for a pipeline that fuses, such as ``relax.get_default_pipeline``. False for one that
        does not, such as ``tvm.compile`` for a CPU. By default the worse of both at each step.
    tir_var_upper_bound : mapping of str to int, optional
        Values for symbolic dimensions. By default the function's attribute of that name, which
        TVM's planner uses, too.
    target : str or tvm.target.Target, optional
        See ``InplaceTransformParams``. A step that works in its weight's memory takes scratch of at
        most 4 MB, and no more than its own bytes. This holds for weights that TVM's runtime has
        allocated, such as those of ``load_params``, but not for imported ones.

    Returns
    -------
    MemoryPlan
        The plan; ``print`` shows it. For a function that ends with a branch, the plan of the branch
        that needs more.

    Raises
    ------
    UnsupportedTransformError
        The function cannot be rewritten in place.
    MemoryLimitError
        Nothing fits into ``memory_limit``.
    """
    attrs = function.attrs
    name = str(attrs["global_symbol"]) if attrs and "global_symbol" in attrs else "transform_params"
    function = without_marks(function)
    if names is not None:
        names = given_names(names, names_of_weights(function), f"`{name}`")
    branches = find_branches(function, mod)
    if branches is not None:
        if lazy:
            branches.require_streamable(name)
        plans = [
            plan_memory(
                branch,
                mod,
                params=params,
                names=names,
                memory_limit=memory_limit,
                lazy=lazy,
                fused=fused,
                tir_var_upper_bound=tir_var_upper_bound,
                target=target,
            )
            for branch in (branches.on_true, branches.on_false)
        ]
        return max(plans, key=lambda plan: _number(plan.peak))
    planned_for = target_to_plan_for(target, mod)
    graph = read_transform(name, function, mod, params, lazy, planned_for, names)
    if memory_limit is not None:
        limit = bytes_of_limit(graph, memory_limit, tir_var_upper_bound)
        schedule = plan_within(graph, limit, Kernels(mod or ir.IRModule()), tir_var_upper_bound)
    else:
        schedule = plan_graph(graph, tir_var_upper_bound)
    return _described(schedule, fused)


def _number(size: Size | LargestOf) -> int:
    sizes = size.sizes if isinstance(size, LargestOf) else [size]
    return max(map(nominal_size, sizes))


# -- for a person ---------------------------------------------------------------------------


def _described(schedule: Schedule, fused: bool | None) -> MemoryPlan:
    graph, problem = schedule.graph, schedule.with_sizes(fused)
    lives = problem.simulate(schedule.steps)
    finished = schedule.finished()
    steps = []
    for number, (step, frees, live) in enumerate(
        zip(schedule.steps, schedule.frees, lives, strict=True), 1
    ):
        used_inside = {buffer for kernel in step.kernels for buffer in kernel.uses}
        temporaries = [
            buffer.name
            for kernel in step.kernels
            for buffer in kernel.allocates
            if buffer not in problem.kept and not (fused and buffer in used_inside)
        ]
        steps.append(
            PlannedStep(
                step.name,
                sorted(buffer.name for buffer in step.uses()),
                [*(f"slot {index}" for index in finished[number]), *temporaries],
                [buffer.name for buffer in frees],
                live.before,
                live.worst,
                live.after,
                [buffer.name for buffer in problem.in_place(step, frees).values()],
            )
        )
    ends = [problem.live_at_start, problem.live_at_end]
    return MemoryPlan(
        graph.name,
        steps,
        _planned_weights(schedule),
        problem.live_at_start,
        problem.live_at_end - _stuck(schedule),
        largest([*ends, *(live.worst for live in lives)]),
        largest(ends),
        _found(schedule),
    )


def _stuck(schedule: Schedule) -> Size:
    """Bytes that are kept to the end, but not returned."""
    returned = _outputs_in(schedule.graph)
    stuck = [b for b in schedule.problem.sizes if b.is_stuck and b not in returned]
    return sum((at_bounds(buffer.size, schedule.bounds) for buffer in stuck), start=0)


def _found(schedule: Schedule) -> str:
    if not schedule.is_exact:
        return "heuristic"
    own_bounds = bounds_of(schedule.graph.function)
    sizes = (at_bounds(buffer.size, own_bounds) for buffer in schedule.problem.sizes)
    if all(isinstance(size, int) for size in sizes):
        return "exact"
    return f"exact where symbolic dimensions are {NOMINAL_DIMENSION}"


def _planned_weights(schedule: Schedule) -> list[PlannedWeight]:
    graph = schedule.graph
    freed = dict.fromkeys(schedule.freed_first, 0)
    for number, frees in enumerate(schedule.frees, 1):
        freed.update(dict.fromkeys(frees, number))
    used_by = _outputs_in(graph)
    read = set().union(*(step.uses() for step in schedule.steps))
    loaded: dict[Weight, int] = {}
    readers: dict[Weight, list[tuple[int, Step]]] = {}
    for number, step in enumerate(schedule.steps, 1):
        if isinstance(step, Load):
            loaded[step.weight] = number
            if step.weight.buffer not in read and step.weight.buffer not in used_by:
                freed[step.weight.buffer] = number
        for weight in step.reads:
            readers.setdefault(weight, []).append((number, step))
    result = []
    for weight in graph.root.weights():
        moment = freed.get(weight.buffer)
        result.append(
            PlannedWeight(
                weight.name,
                ".".join(map(str, weight.path)),
                at_bounds(weight.buffer.size, schedule.bounds),
                loaded.get(weight),
                moment,
                _reason(weight, moment, schedule, readers.get(weight, []), used_by),
            )
        )
    return result


def _outputs_in(graph: TransformGraph) -> dict[Buffer, tuple[int, Known]]:
    """For each buffer that an output lies in, the first such output."""
    used_by: dict[Buffer, tuple[int, Known]] = {}
    for index, output in enumerate(graph.outputs):
        for buffer in buffers_of(graph.layout(output)):
            used_by.setdefault(buffer, (index, output))
    return used_by


def _reason(
    weight: Weight,
    moment: int | None,
    schedule: Schedule,
    readers: list[tuple[int, Step]],
    used_by: Mapping[Buffer, tuple[int, Known]],
) -> str:
    if moment is None:
        if weight.buffer in used_by:
            index, output = used_by[weight.buffer]
            is_output = isinstance(output, (Weight, Container))
            return f"{_STAYS} {index}" if is_output else f"never: it holds output {index}"
        if weight.is_streamed:
            return "nothing reads it"
        return "never: it is not among params"
    if moment == 0:
        return "nothing reads it"
    step = schedule.steps[moment - 1]
    if isinstance(step, Load):
        return "its shape is needed"
    last = step.name
    if not any(position == moment for position, _ in readers):
        return f"{last} is the last to use a view of it"
    earlier = [f"{position} ({step.name})" for position, step in readers if position < moment]
    if earlier:
        return f"{last} reads it last; read before by step {listed(earlier)}"
    return f"{last} reads it"


def _moment(step: int | None) -> str:
    return "-" if step is None else "start" if step == 0 else f"step {step}"
