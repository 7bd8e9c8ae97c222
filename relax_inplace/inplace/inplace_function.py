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

The updates are a chain: each consumes the name that the one before it gave the tuple. Its types
take memory with the square of the number of weights, so that a long one is written as what
:mod:`.lower_update_chain` would make of it before anything else is done to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import tvm
from tvm import ir, relax

from ..ir.byte_size import ByteSize, LargestOf, largest
from ..ir.updates import OVERWRITES, STREAMED, UPDATES_NOTHING, bindings_of
from ..op import VOID, inplace_update_tuple, is_update, the_op
from .branches import Branches
from .captured import with_captures
from .cones import SlicedStep
from .param_map_entry import Entry, entry_of
from .schedule import Schedule
from .slice_form import sliced_bindings
from .slice_kernels import SliceKernels
from .steps import Load, Step
from .transform_graph import Known, UnsupportedTransformError, overwritten_weights
from .weights import Container, Weight

__all__ = ["InplaceFunction", "choose", "write_inplace_function"]

# Fields times updates of the longest chain: 16 bytes each.
_LONGEST_CHAIN = 1 << 20
_CHECK_LIMIT = "vm.builtin.check_memory_limit"
_CHECK_WEIGHT = "vm.builtin.check_weight"
_NUMBER_WEIGHT = "vm.builtin.number_weight"
_NAMES = (relax.Var, relax.TupleGetItem, relax.Tuple)  # what may stand for something else
_DROPPED_ATTRS = ("num_input", "relax.force_pure")


@dataclasses.dataclass
class InplaceFunction:
    """What becomes a function of a module.

    Attributes
    ----------
    original : relax.Function
        Whose attributes it gets.
    params : list of relax.Var
        The leading ones, ``get_weight`` if it is streamed, and the tuple that is updated.
    body : relax.SeqExpr
    kernels : dict of tvm.ir.GlobalVar to tvm.tirx.PrimFunc
        What it calls and the module does not have yet.
    entry : dict
        What the parameter map says of it.
    overwrites : list of int
        The weights in whose memory it computes, counted through nested tuples.
    is_streamed : bool
    """

    original: relax.Function
    params: list[relax.Var]
    body: relax.SeqExpr
    kernels: dict[ir.GlobalVar, ir.BaseFunc]
    entry: Entry
    overwrites: list[int]
    is_streamed: bool = False

    def functions(self, name: str) -> dict[ir.GlobalVar, ir.BaseFunc]:
        """It by that name, and its kernels."""
        return {ir.GlobalVar(name): self.function(name), **self.kernels}

    def function(self, name: str) -> relax.Function:
        """The function, with that global symbol."""
        attrs = {
            key: value
            for key, value in (self.original.attrs.items() if self.original.attrs else ())
            if key not in _DROPPED_ATTRS
        }
        attrs["global_symbol"] = name
        if self.is_streamed:
            attrs[STREAMED] = True
        elif self.overwrites:
            attrs[OVERWRITES] = self.overwrites
        if not any(is_update(binding.value) for binding in bindings_of(self.body)):
            attrs[UPDATES_NOTHING] = True
        builder = relax.BlockBuilder()
        result = relax.Function(
            self.params,
            builder.normalize(self.body),
            is_pure=False,
            attrs=tvm.ir.make_node("ir.DictAttrs", **attrs),
            span=self.original.span,
        )
        return builder.normalize(result)


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
        writer.check_limit(graph.name, memory_limit)
    body = writer.write()
    kernels, is_streamed = writer.slice_kernels.functions, graph.get_weight is not None
    entry = entry_of(schedule, mod)
    overwrites = overwritten_weights(graph)
    return InplaceFunction(
        graph.function, graph.parameters, body, kernels, entry, overwrites, is_streamed
    )


def choose(
    branches: Branches, on_true: InplaceFunction, on_false: InplaceFunction
) -> InplaceFunction:
    """The function that runs one of two, by a condition."""
    # The branches have parameters of their own; those of the first become those of both.
    params = on_true.params
    other = on_false.function("on_false")
    bodies = [on_true.body, other.bind_params(dict(zip(other.params, params, strict=True))).body]
    given = branches.parameters(params)
    builder = relax.BlockBuilder()
    choice = builder.normalize(relax.If(branches.condition, *map(builder.normalize, bodies)))
    result = relax.Var("result", choice.ty)
    before = [*given, *branches.before, relax.VarBinding(result, choice)]
    return InplaceFunction(
        on_true.original,
        params,
        relax.SeqExpr([relax.BindingBlock(before)], result),
        {**on_true.kernels, **on_false.kernels},
        # Which steps run is known when they do.
        {
            **on_true.entry,
            "peak": largest([on_true.entry["peak"], on_false.entry["peak"]]),
            "steps": [],
        },
        sorted({*on_true.overwrites, *on_false.overwrites}),
        on_true.is_streamed,
    )


@dataclasses.dataclass
class _Block:
    in_dataflow: bool
    bindings: list[relax.Binding] = dataclasses.field(default_factory=list)


class _Writer:
    def __init__(self, schedule: Schedule, prefix: str):
        graph = schedule.graph
        self.schedule = schedule
        self.prefix = prefix
        self.slice_kernels = SliceKernels(prefix)
        self.graph = graph
        self.normalize = relax.BlockBuilder().normalize
        self.blocks: list[_Block] = []
        self.reads: dict[Weight, relax.Var] = {}  # in this step
        self.loaded: dict[Weight, relax.Var] = {}
        self.renamed: dict[relax.Var, relax.Var] = {}
        self.escaping = _escaping(schedule)
        fields = graph.slots.fields
        self.weights_in = [
            [field] if isinstance(field, Weight) else list(field.weights()) for field in fields
        ]
        self.tuples = _Tuples(self, graph.slots, graph.params, len(graph.outputs))
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
        not_finished = {index for outputs in finished[1:] for index in outputs}
        unread = [b.weight for b in self.schedule.freed_first if b.weight is not None]
        self._spend(unread, waiting | not_finished)
        for index in finished[0]:
            if index not in waiting:
                self._finish(index)
        for step, frees, outputs in zip(
            self.schedule.steps, self.schedule.frees, finished[1:], strict=True
        ):
            spent = [buffer.weight for buffer in frees if buffer.weight is not None]
            early = self._spent_early(step, spent)
            self._step(step, early)
            not_finished.difference_update(outputs)
            self._spend([w for w in spent if w not in early], waiting | not_finished)
            for index in outputs:
                if index not in waiting:
                    self._finish(index)
            self.reads = {}
        self._place_moved(moved)
        result = self._result()
        blocks = [
            (relax.DataflowBlock if block.in_dataflow else relax.BindingBlock)(block.bindings)
            for block in self.blocks
        ]
        return relax.SeqExpr(blocks, result)

    def check_limit(self, name: str, limit: int) -> None:
        """Begin with a check of the memory limit."""
        peak = self.schedule.peak()
        weights: relax.Expr = self.graph.params
        if self.graph.get_weight is not None:
            if isinstance(peak, int):
                return  # the plan is what happens, whatever the caller holds
            self._require_known(name, limit, peak)
            weights = self.bind("nothing", relax.op.null_value())
        expr = peak.expr() if isinstance(peak, (ByteSize, LargestOf)) else peak
        freed = set(self.schedule.freed_first).union(*self.schedule.frees)
        kept = [
            index
            for index, weight in enumerate(self.graph.root.weights())
            if weight.buffer not in freed
        ]
        operands = [
            ir.StringImm(name),
            relax.prim_value(limit),
            relax.prim_value(expr),
            relax.ShapeExpr(kept),
            weights,
        ]
        call = relax.Call(relax.ExternFunc(_CHECK_LIMIT), operands, None, [VOID], ret_ty=VOID)
        self._block(False).bindings.append(relax.VarBinding(relax.Var("_", VOID), call))

    def _require_known(self, name: str, limit: int, peak: ByteSize | LargestOf) -> None:
        """Refuse a peak that is not known before the first weight is loaded."""
        if not set(relax.analysis.free_vars(peak.expr())[:]) <= self.defined:
            raise UnsupportedTransformError.of(
                function=name,
                reason=f"lazy=True: whether its peak, {peak} bytes, is within memory_limit={limit} "
                "is known only when weights have been loaded; give the function the attribute "
                "tir_var_upper_bound, or an input of those shapes",
            )

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
        block = self._block(in_dataflow)
        if isinstance(binding, relax.MatchCast):
            block.bindings.append(relax.MatchCast(var, self.normalize(value), binding.ty))
        else:
            block.bindings.append(relax.VarBinding(var, value))

    def _load(self, load: Load) -> None:
        """Ask for a weight, and check what has come: a kernel would not say whose fault it is."""
        weight, name = load.weight, _identifier(load.weight, "weight")
        given = self.bind(f"{name}_given", load.kernels[0].binding.value)
        is_number = isinstance(weight.ty, ir.PrimType)
        check = _check_of(load, given, self.prefix, self.defined, weight.ty if is_number else VOID)
        var = self.loaded[weight] = relax.Var(name, weight.ty)
        bindings = self._block(False).bindings
        if is_number:  # which R.match_cast does not make of what it does not know
            bindings.append(relax.VarBinding(var, check))
            return
        bindings.append(relax.VarBinding(relax.Var("_", VOID), check))
        bindings.append(relax.MatchCast(var, given, weight.ty))
        self.defined.update(relax.analysis.tir_vars_in_type(weight.ty)[:])

    def _read(self, weight: Weight) -> relax.Var:
        """A variable that holds a weight, for this step."""
        if weight.is_streamed:
            return self.loaded[weight]
        var = self.reads.get(weight)
        if var is None:
            var = self.reads[weight] = self.tuples.read(weight)
        return var

    def _block(self, in_dataflow: bool) -> _Block:
        if not self.blocks or self.blocks[-1].in_dataflow != in_dataflow:
            self.blocks.append(_Block(in_dataflow))
        return self.blocks[-1]

    def bind(
        self, name: str, value: relax.Expr, in_dataflow: bool = False, is_local: bool = True
    ) -> relax.Var:
        """Bind a new variable; in a dataflow block it may be seen in this block only."""
        value = self.normalize(value)
        var = (relax.DataflowVar if in_dataflow and is_local else relax.Var)(name, value.ty)
        self._block(in_dataflow).bindings.append(relax.VarBinding(var, value))
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
            source = self._operand(known.tuple_value, in_dataflow)
            field = relax.TupleGetItem(source, known.index, known.span)
            return self.bind("field", field, in_dataflow)
        return known

    def _tuple(self, fields: Iterable[Known], in_dataflow: bool) -> relax.Tuple:
        return self.normalize(relax.Tuple([self._operand(field, in_dataflow) for field in fields]))

    def _with_captures(self, expr: relax.If | relax.Function) -> relax.Expr:
        """A branch or a local function, which no dataflow block holds."""
        names = {}
        for var in relax.analysis.free_vars(expr)[:]:
            value = self._operand(var, False)
            if isinstance(value, relax.Tuple):
                value = self._bind_tuple(var.name, value)
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
            return self._bind_tuple("gv", value)
        return self.bind("gv", value)

    def _bind_tuple(self, name: str, value: relax.Tuple) -> relax.Var:
        """Bind a new tuple. One of each field in its place would be taken for the old tuple."""
        value = self.normalize(value)
        fields = value.fields[:]
        if not all(self.tuples.field_read.get(f) == i for i, f in enumerate(fields)) or not fields:
            return self.bind(name, value)
        var = relax.Var(name, value.ty)
        self._block(False).bindings += _filled_in_place(var, value)
        return var

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
        return self._bind_tuple("new_params", relax.Tuple(fields))


class _Tuples:
    """The names of the tuple of weights and of those nested in it, and updates of them."""

    def __init__(self, writer: _Writer, root: Container, params: relax.Var, outputs: int):
        self.writer = writer
        self.root = root
        self.names: dict[Container, relax.Var] = {root: params}
        self.replaced: set[int] = set()  # fields of the root that hold an output
        self.nothing: relax.Var | None = None
        self.field_read: dict[relax.Expr, int] = {}  # into each variable
        fields = len(root.fields) + sum(
            len(field.fields) for field in root.fields if isinstance(field, Container)
        )
        self.are_statements = fields * (fields + outputs) > _LONGEST_CHAIN
        self.updated: dict[Container, tuple[int, relax.Expr]] = {}  # what was replaced last
        self.types: dict[Container, dict[int, ir.Type]] = {}  # of replaced fields, for statements

    def name(self, container: Container) -> relax.Var:
        name = self.names.get(container)
        if name is None:
            assert container.parent is not None
            source = self.name(container.parent)
            name = self.writer.bind(
                f"{source.name}_{container.index}", relax.TupleGetItem(source, container.index)
            )
            self.names[container] = name
        return name

    def read(self, weight: Weight) -> relax.Var:
        source = self.name(weight.container)
        name = _identifier(weight, source.name)
        var = self.writer.bind(name, relax.TupleGetItem(source, weight.index))
        self.field_read[var] = weight.index
        return var

    def empty(self, weight: Weight) -> None:
        if not weight.is_modifiable:
            return
        if self.nothing is None:
            self.nothing = self.writer.bind("nothing", relax.op.null_value())
        self.replace(weight.container, weight.index, self.nothing)

    def replace(self, container: Container, index: int, value: relax.Expr) -> None:
        source = self.name(container)
        if container is self.root and value is not self.nothing:
            self.replaced.add(index)
        self.updated[container] = (index, value)
        if self.are_statements:
            self.types.setdefault(container, {})[index] = value.ty
            self._statement(source, index, value, VOID)
        else:
            call = self.writer.normalize(inplace_update_tuple(source, index, value))
            self.names[container] = self._bound(f"p{index}", call)

    def result(self) -> relax.Var:
        """The name of the whole tuple, at the end."""
        changed = [container for container in self.updated if container is not self.root]
        while changed:  # the innermost first: putting one back changes the one around it
            container = max(changed, key=lambda one: len(one.path))
            changed.remove(container)
            parent = container.parent
            assert parent is not None
            if container.path[0] in self.replaced:
                continue
            if self.are_statements:
                self._name_result(container)
            self.replace(parent, container.index, self.names[container])
            if parent is not self.root and parent not in changed:
                changed.append(parent)
        if self.are_statements and self.root in self.updated:
            self._name_result(self.root)
        return self.name(self.root)

    def _name_result(self, container: Container) -> None:
        """Make the last update of a tuple one that says its type."""
        index, value = self.updated[container]
        fields = list(container.ty.fields[:])
        for i, ty in self.types[container].items():
            fields[i] = ty
        ty = relax.TupleType(fields)
        source = self.names[container]
        bindings = self.writer._block(False).bindings
        if bindings and _is_update_of(bindings[-1], source):
            bindings.pop()
        self.names[container] = self._statement(source, index, value, ty)

    def _statement(
        self, source: relax.Var, index: int, value: relax.Expr, ty: ir.Type
    ) -> relax.Var:
        operands = [source, relax.prim_value(index), value]
        call = relax.Call(the_op(), operands, None, [ty], ret_ty=ty)
        return self._bound("_" if ty is VOID else f"p{index}", call)

    def _bound(self, name: str, call: relax.Call) -> relax.Var:
        var = relax.Var(name, call.ty)
        self.writer._block(False).bindings.append(relax.VarBinding(var, call))
        return var


def _identifier(weight: Weight, container: str) -> str:
    return weight.name if weight.name.isidentifier() else f"{container}_{weight.index}"


def _check_of(
    load: Load, given: relax.Var, function: str, defined: set[relax.Var], ret_ty: ir.Type
) -> relax.Call:
    """A check that what was given is the weight; of its sizes, those that are defined by now."""
    ty = load.weight.ty
    dtype, shape = "", relax.prim_value(-1)
    if isinstance(ty, ir.PrimType):
        dtype = str(ty.dtype)
    elif isinstance(ty, relax.TensorType):
        dtype = "" if ty.dtype is None else str(ty.dtype)
        if isinstance(ty.shape, relax.ShapeExpr):
            shape = relax.ShapeExpr(
                [
                    dim if set(relax.analysis.free_vars(dim)[:]) <= defined else -1
                    for dim in ty.shape.values[:]
                ]
            )
        elif ty.ndim >= 0:
            shape = relax.ShapeExpr([-1] * ty.ndim)
    operands = [
        ir.StringImm(function),
        relax.prim_value(load.index),
        ir.StringImm(load.weight.name),
        given,
        ir.StringImm(dtype),
        shape,
    ]
    builtin = _CHECK_WEIGHT if ret_ty is VOID else _NUMBER_WEIGHT
    return relax.Call(relax.ExternFunc(builtin), operands, None, [ret_ty], ret_ty=ret_ty)


def _is_update_of(binding: relax.Binding, source: relax.Var) -> bool:
    value = binding.value
    return (
        isinstance(value, ir.Call) and value.op.same_as(the_op()) and source.same_as(value.args[0])
    )


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


def _filled_in_place(var: relax.Var, value: relax.Tuple) -> list[relax.Binding]:
    """Bindings of a variable to a tuple that is made with its first slot empty, and filled.

    ``CanonicalizeBindings`` (src/relax/transform/canonicalize_bindings.cc), which somebody may run
    before ``tvm.compile``, replaces ``(params[0], params[1])`` by ``params``, of which one is
    updated.
    """
    normalize = relax.BlockBuilder().normalize
    nothing = relax.Var("nothing", relax.AnyType())
    first, *others = value.fields[:]
    unfilled_value = normalize(relax.Tuple([nothing, *others]))
    unfilled = relax.Var("unfilled", unfilled_value.ty)
    fill = relax.Call(the_op(), [unfilled, relax.prim_value(0), first], None, [var.ty], value.span)
    return [
        relax.VarBinding(nothing, normalize(relax.op.null_value())),
        relax.VarBinding(unfilled, unfilled_value),
        relax.VarBinding(var, normalize(fill)),
    ]
