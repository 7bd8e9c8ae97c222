"""Writes the in-place function that a schedule describes.

Definition
----------
Each step of the schedule in turn:

1. the weights that it reads are read from their slots;
2. its bindings, in a dataflow block if TVM is to fuse them;
3. the slots of weights that it read last are emptied, or replaced by the output that belongs there;
   every slot whose output is finished by then, and whose own weights are spent, is replaced.

Before the first step the slots of weights that nothing reads are emptied. Weights that move to
another slot are read and stored after the last step. So a register holds a weight during one step
only, and a slot holds it until its last read.

A streamed transform has no slots of weights to read or to empty. A weight is loaded by a step of
its own: ``get_weight`` is called with its index, and what it returned is checked and bound to a
variable, whose register is killed after the last use. A finished output goes into its slot at once.

A fused step may run as several kernels, where the pipeline does not fuse. A weight that none but
the earlier ones of them read is emptied between 1 and 2: the register is freed after its last use.

If the function returns as many fields as it takes, and may replace all that it changes, it returns
the tuple it was given. Otherwise it returns a new tuple; the slots of the old one hold finished
outputs or None, or the original where ``params`` excludes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tvm import ir, relax

from ..ir.tuple_tree import Path
from ..op import VOID
from .captured import with_captures
from .cones import SlicedStep
from .inplace_function import InplaceFunction
from .param_map_entry import entry_of
from .runtime_checks import check_limit, weight_check
from .schedule import Schedule
from .slice_form import sliced_bindings
from .slice_kernels import SliceKernels
from .steps import Load, Step
from .transform_graph import Known, overwritten_weights, parts_of
from .updated_tuples import UpdatedTuples, identifier
from .weights import Container, Weight
from .written_blocks import WrittenBlocks

__all__ = ["write_inplace_function"]

_NAMES = (relax.Var, relax.TupleGetItem, relax.Tuple)  # what may stand for something else


def write_inplace_function(
    schedule: Schedule, mod: ir.IRModule, prefix: str, memory_limit: int | None = None
) -> InplaceFunction:
    """Write the function that carries a schedule out.

    Parameters
    ----------
    schedule : Schedule
    mod : tvm.ir.IRModule
        Where the functions that it calls are.
    prefix : str
        Of the names of kernels that are made for it.
    memory_limit : int, optional
        Bytes, checked when the function is called.
    """
    graph = schedule.graph
    writer = _Writer(schedule, prefix)
    if memory_limit is not None:
        check_limit(writer.blocks, schedule, memory_limit, writer.defined)
    body = writer.write()
    kernels, is_streamed = writer.slice_kernels.functions, graph.get_weight is not None
    entry = entry_of(schedule, mod)
    overwrites = overwritten_weights(graph)
    return InplaceFunction(
        graph.function, graph.parameters, body, kernels, entry, overwrites, is_streamed
    )


class _Writer:
    def __init__(self, schedule: Schedule, prefix: str):
        graph = schedule.graph
        self.schedule = schedule
        self.prefix = prefix
        self.slice_kernels = SliceKernels(prefix)
        self.graph = graph
        self.blocks = WrittenBlocks()
        self.reads: dict[Weight, relax.Var] = {}  # in this step
        self.loaded: dict[Weight, relax.Var] = {}
        self.renamed: dict[relax.Var, relax.Var] = {}
        self.escaping = _escaping(schedule)
        self.fields_read = _fields_read(schedule)
        self.fields: dict[tuple[relax.Var, Path], relax.Var] = {}
        fields = graph.slots.fields
        self.weights_in = [
            [field] if isinstance(field, Weight) else list(field.weights()) for field in fields
        ]
        self.tuples = UpdatedTuples(self.blocks, graph.slots, graph.params, len(graph.outputs))
        self.defined = {v for p in graph.leading for v in relax.analysis.tir_vars_in_type(p.ty)[:]}
        self.spent: set[Weight] = set()
        self.made: dict[Known, relax.Expr] = {}  # outputs, by what they are
        self.placed: dict[int, relax.Expr] = {}  # outputs in their slot, or in a variable
        self.returns_argument = len(fields) == len(graph.outputs) and all(
            weights[0].is_modifiable or self._is_own(index)
            for index, weights in enumerate(self.weights_in)
            if weights
        )

    def write(self) -> relax.SeqExpr:
        finished = self.schedule.finished()
        moved = [
            index
            for index, output in enumerate(self.graph.outputs)
            if any(not weight.is_streamed for weight in self.graph.needs(output)[1])
        ]
        waiting: set[int] = set(moved)  # finished ones are placed when their slot is free
        # The slots that are written later.
        reserved = waiting.union(index for outputs in finished[1:] for index in outputs)
        unread = [b.weight for b in self.schedule.freed_first if b.weight is not None]
        self._spend(unread, reserved)
        for index in finished[0]:
            if index not in waiting:
                self._finish(index)
        for step, frees, outputs in zip(
            self.schedule.steps, self.schedule.frees, finished[1:], strict=True
        ):
            spent = [buffer.weight for buffer in frees if buffer.weight is not None]
            early = self._spent_early(step, spent)
            self._step(step, early)
            placed = [index for index in outputs if index not in waiting]
            reserved.difference_update(placed)
            self._spend([w for w in spent if w not in early], reserved)
            for index in placed:
                self._finish(index)
            self.reads = {}
        self._place_moved(moved)
        return self.blocks.finish(self._result())

    # -- steps --------------------------------------------------------------------------------

    def _step(self, step: Step, early: Sequence[Weight]) -> None:
        if isinstance(step, Load):
            self._load(step)
            return
        for weight in step.reads:
            self._read(weight)
        for weight in early:
            self.spent.add(weight)
            self.tuples.empty(weight)
        if isinstance(step, SlicedStep):
            for binding, in_dataflow in sliced_bindings(step, self.slice_kernels):
                self._binding(binding, in_dataflow)
        else:
            for kernel in step.kernels:
                self._binding(kernel.binding, step.is_fused)
            for kernel in step.kernels:
                self._read_fields(kernel.binding.var)

    def _spent_early(self, step: Step, spent: Iterable[Weight]) -> list[Weight]:
        """The weights that only kernels before the last one of a fused step still need."""
        if len(step.kernels) == 1:
            return []
        last = step.kernels[-1].uses
        return [w for w in spent if w.buffer not in last and w in step.reads and w.is_modifiable]

    def _binding(self, binding: relax.Binding, in_dataflow: bool) -> None:
        old = binding.var
        value = self._value(binding.value, in_dataflow)
        var = old
        if isinstance(old, relax.DataflowVar) and not (in_dataflow and old not in self.escaping):
            var = self.renamed[old] = relax.Var(old.name, old.ty, old.span)
        if isinstance(binding, relax.MatchCast):
            binding = relax.MatchCast(var, self.blocks.normalize(value), binding.ty)
        else:
            binding = relax.VarBinding(var, value)
        self.blocks.append(binding, in_dataflow)

    def _read_fields(self, var: relax.Var) -> None:
        """Read what later steps need of a tuple: it holds the other fields, too."""
        for path in self.fields_read.get(var, ()):
            field = self.renamed.get(var, var)
            for index in path:
                field = self.blocks.bind("field", relax.TupleGetItem(field, index))
            self.fields[var, path] = field

    def _load(self, load: Load) -> None:
        """Ask for a weight, and check what has come: a kernel would not say whose fault it is."""
        weight, name = load.weight, identifier(load.weight, "weight")
        given = self.blocks.bind(f"{name}_given", load.kernels[0].binding.value)
        is_number = isinstance(weight.ty, ir.PrimType)
        check = weight_check(
            load, given, self.prefix, self.defined, weight.ty if is_number else VOID
        )
        var = self.loaded[weight] = relax.Var(name, weight.ty)
        if is_number:  # which R.match_cast does not make of what it does not know
            self.blocks.append(relax.VarBinding(var, check))
            return
        self.blocks.append(relax.VarBinding(relax.Var("_", VOID), check))
        self.blocks.append(relax.MatchCast(var, given, weight.ty))
        self.defined.update(relax.analysis.tir_vars_in_type(weight.ty)[:])

    def _read(self, weight: Weight) -> relax.Var:
        """A variable that holds a weight, for this step."""
        if weight.is_streamed:
            return self.loaded[weight]
        var = self.reads.get(weight)
        if var is None:
            var = self.reads[weight] = self.tuples.read(weight)
        return var

    # -- expressions of the old function in the terms of the new one ----------------------------

    def _value(self, expr: relax.Expr, in_dataflow: bool) -> relax.Expr:
        """What a binding is bound to."""
        if isinstance(expr, ir.Call):
            args = [self._operand(arg, in_dataflow) for arg in expr.args[:]]
            op = self._operand(expr.op, in_dataflow) if isinstance(expr.op, relax.Var) else expr.op
            return relax.Call(op, args, expr.attrs, expr.ty_args, expr.span, ret_ty=expr.ty)
        if isinstance(expr, (relax.If, relax.Function)):
            return self._with_captures(expr)
        return self._operand(expr, in_dataflow)

    def _operand(self, value: Known, in_dataflow: bool) -> relax.Expr:
        """A leaf of an expression in normal form, or a tuple of them."""
        known = self.graph.resolve(value) if isinstance(value, _NAMES) else value
        if isinstance(known, Weight):
            return self._read(known)
        if isinstance(known, Container):
            return self._tuple(known.fields, in_dataflow)
        if isinstance(known, relax.Var):
            return self.renamed.get(known, known)
        if isinstance(known, relax.Tuple):
            return self._tuple(known.fields[:], in_dataflow)
        if isinstance(known, relax.TupleGetItem):
            read = self.fields.get(_place(known))
            if read is not None:
                return read
            source = self._operand(known.tuple_value, in_dataflow)
            field = relax.TupleGetItem(source, known.index, known.span)
            return self.blocks.bind("field", field, in_dataflow)
        return known

    def _tuple(self, fields: Iterable[Known], in_dataflow: bool) -> relax.Tuple:
        return self.blocks.normalize(
            relax.Tuple([self._operand(field, in_dataflow) for field in fields])
        )

    def _with_captures(self, expr: relax.If | relax.Function) -> relax.Expr:
        """A branch or a local function, which no dataflow block holds."""
        names = {}
        for var in relax.analysis.free_vars(expr)[:]:
            value = self._operand(var, False)
            if isinstance(value, relax.Tuple):
                value = self.tuples.bind_new(var.name, value)
            if not value.same_as(var):
                names[var] = value
        return with_captures(expr, names)

    # -- slots ----------------------------------------------------------------------------------

    def _is_own(self, index: int) -> bool:
        """Whether an output is the field of its own slot."""
        fields = self.graph.slots.fields
        return index < len(fields) and self.graph.outputs[index] is fields[index]

    def _slot_is_free(self, index: int) -> bool:
        return index < len(self.weights_in) and all(
            weight in self.spent and weight.is_modifiable for weight in self.weights_in[index]
        )

    def _spend(self, weights: Sequence[Weight], not_finished: set[int]) -> None:
        """Empty the slots of spent weights, or replace them by outputs that are finished."""
        self.spent.update(weights)
        for weight in weights:
            index = weight.path[0]
            if weight.container is not self.graph.slots:
                self.tuples.empty(weight)  # its tuple may outlive the slot that is replaced
            has_output = index < len(self.graph.outputs) and index not in not_finished
            if has_output and self._slot_is_free(index):
                self._finish(index)
            elif weight.container is self.graph.slots:
                self.tuples.empty(weight)

    def _finish(self, index: int) -> None:
        """Give an output to its slot, if that is free by now; else it keeps its variable."""
        if index in self.tuples.replaced:
            return
        if index not in self.placed:
            self.placed[index] = self._output(index)
        if self._slot_is_free(index):
            self.tuples.replace(self.graph.slots, index, self.placed[index])

    def _output(self, index: int) -> relax.Expr:
        output = self.graph.outputs[index]
        if output not in self.made:  # two equal tuples would be taken for one, if one is updated
            self.made[output] = self._made(output)
        return self.made[output]

    def _made(self, output: Known) -> relax.Expr:
        value = self._operand(output, False)
        if isinstance(value, relax.Var):
            return value
        if isinstance(value, relax.Tuple):
            return self.tuples.bind_new("gv", value)
        return self.blocks.bind("gv", value)

    def _place_moved(self, moved: list[int]) -> None:
        """Store the outputs that are weights, or hold some, once no step reads a slot any more."""
        self.reads = {}
        moved = [index for index in moved if not (self.returns_argument and self._is_own(index))]
        for index in moved:
            self.placed[index] = self._output(index)
        stays = {index for index in range(len(self.graph.outputs)) if self._is_own(index)}
        emptied = []
        for index, weights in enumerate(self.weights_in):
            if index in stays or not all(weight.is_modifiable for weight in weights):
                continue
            if index in self.placed and index not in self.tuples.replaced:
                self.spent.update(weights)
                self.tuples.replace(self.graph.slots, index, self.placed[index])
            elif index not in self.placed:
                emptied += [weight for weight in weights if weight not in self.spent]
        for weight in emptied:
            self.tuples.empty(weight)

    def _result(self) -> relax.Var:
        if self.returns_argument:
            return self.tuples.result()
        fields = [self.placed[index] for index in range(len(self.graph.outputs))]
        return self.tuples.bind_new("new_params", relax.Tuple(fields))


def _place(field: relax.TupleGetItem) -> tuple[relax.Expr, Path]:
    """The tuple that a field is read from, and where in it, through tuples in tuples."""
    source: relax.Expr = field
    path: Path = ()
    while isinstance(source, relax.TupleGetItem):
        source, path = source.tuple_value, (source.index, *path)
    return source, path


def _fields_read(schedule: Schedule) -> dict[relax.Var, dict[Path, None]]:
    """Of each tuple that a step computes, the fields that others, or the outputs, are made of."""
    graph = schedule.graph
    found: dict[relax.Var, dict[Path, None]] = {}
    if not any(
        isinstance(kernel.binding.var.ty, relax.TupleType)
        for step in graph.steps
        for kernel in step.kernels
    ):
        return found

    def together(step: Step | None) -> Step | None:
        return None if step is None else schedule.runs_in.get(step, step)

    def visit(known: Known, by: Step | None) -> None:
        value = graph.resolve(known) if isinstance(known, relax.Expr) else known
        if isinstance(value, relax.TupleGetItem):
            var, path = _place(value)
            made_in = graph.step_of(var)
            if made_in is not None and together(made_in) is not together(by):
                found.setdefault(var, {})[path] = None
        elif isinstance(value, relax.Tuple):
            for field in value.fields[:]:
                visit(field, by)

    for step in graph.steps:
        for kernel in step.kernels:
            value = kernel.binding.value
            visit(value, step)
            for part in parts_of(value):
                visit(part, step)
    for output in graph.outputs:
        visit(output, None)
    return found


def _escaping(schedule: Schedule) -> set[relax.Var]:
    """Variables of fused steps that something outside the step reads."""
    graph = schedule.graph
    escaping: set[relax.Var] = set()
    if not any(step.is_fused for step in graph.steps):
        return escaping
    runs_in = schedule.runs_in
    for step in graph.steps:
        for kernel in step.kernels:
            for var in graph.variables(kernel.binding.value):
                made_in = graph.step_of(var)
                assert made_in is not None
                if runs_in.get(made_in, made_in) is not runs_in.get(step, step):
                    escaping.add(var)
    for output in graph.outputs:
        escaping.update(graph.variables(output))
    return escaping
