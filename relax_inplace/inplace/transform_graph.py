"""A ``transform_params`` function as a graph: what each of its outputs is computed from.

Definition
----------
The *weights* are the tensors in what follows the ``num_input`` leading parameters: the fields of a
tuple, at any depth, or parameters of their own, of which the in-place function gets one tuple.

A *step* is what runs as one kernel after fusion: a binding that computes something, or several in
a dataflow block that TVM's ``FuseOps`` makes one (:mod:`.fusion`). Reads of fields, tuples and
second names are none. A call to another Relax function is the steps of that function.

Steps may run in any order in which

- operands come first;
- impure calls keep their order among each other, and towards every step that touches a tensor
  they are given; the same goes for a call that overwrites an operand;
- what types may depend on (``match_cast``, prim values) runs first of all.

A pure step that no output needs does not run. A *buffer* is memory that is allocated and freed as
one: a weight's, or one that a step allocates. A value may be a view of another one's buffer.

A *streamed* transform is not given its weights: it calls for each. Such a *load* is a step, which
allocates the weight's buffer and uses nothing; a weight that nothing needs has none. Loads go
before what reads their weights, and define its symbolic dimensions: a step with one that is defined
neither by a leading parameter nor by what it depends on also runs after a load that defines it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from tvm import ir, relax

from ..errors import StructuredError
from ..ir.byte_size import Size, at_bounds, size_of, tensors_in, unknown_size
from ..ir.whole_bytes import packed_computation
from ..op import is_update
from .fusion import Fusion, find_fusion

__all__ = [
    "RESTORE",
    "TRANSFORM",
    "Buffer",
    "Container",
    "Kernel",
    "Load",
    "Step",
    "TransformGraph",
    "UnsupportedTransformError",
    "Weight",
    "number_of_inputs",
]

TRANSFORM = "transform_params"  # what the name of such a function ends in
RESTORE = "restore_params"  # and that of the one that undoes it


class UnsupportedTransformError(StructuredError):
    """A function that cannot be rewritten to update its weights in place.

    Attributes
    ----------
    function : str
        Its name.
    reason : str
        Why not, and where in it.
    """

    template = "function `{function}` cannot be transformed in place: {reason}"


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory that is allocated and freed as one.

    Attributes
    ----------
    name : str
        Of the weight, or of the variable it is allocated for.
    size : int or ByteSize
        Bytes.
    weight : Weight or None
        The weight whose slot it lies in at the start: its original.
    is_stuck : bool
        Whether it is not freed before the function returns. The register that a branch has its
        result in cannot be emptied: it is out of scope after the branch.
    """

    name: str
    size: Size
    weight: Weight | None = None
    is_stuck: bool = False


@dataclasses.dataclass(eq=False)
class Weight:
    """A tensor (or a shape or a number) in the tuple of weights.

    Attributes
    ----------
    container : Container
        The tuple it is a field of.
    index : int
        The field.
    name : str
        As the function calls it, or ``params[0]``.
    ty : ir.Type
    buffer : Buffer
    is_modifiable : bool
        Whether its slot may be emptied and replaced.
    is_streamed : bool
        Whether it is loaded, and in no slot.
    """

    container: Container
    index: int
    name: str
    ty: ir.Type
    is_modifiable: bool
    is_streamed: bool = False
    buffer: Buffer = dataclasses.field(init=False)

    @property
    def path(self) -> list[int]:
        """The indices that lead to it from the whole tuple."""
        return [*self.container.path, self.index]

    def __post_init__(self) -> None:
        is_known = not isinstance(self.ty, relax.AnyType)
        size = size_of(self.ty, self.name) if is_known else unknown_size(self.name)
        self.buffer = Buffer(self.name, size, None if self.is_streamed else self)


@dataclasses.dataclass(eq=False)
class Container:
    """The tuple of weights, or a tuple nested in it.

    Attributes
    ----------
    parent : Container or None
        The tuple it is a field of, with the index ``index``.
    fields : list of Container or Weight
    """

    parent: Container | None
    index: int
    ty: relax.TupleType
    fields: list[Container | Weight] = dataclasses.field(default_factory=list)

    @property
    def path(self) -> list[int]:
        """The indices that lead to it from the whole tuple."""
        return [] if self.parent is None else [*self.parent.path, self.index]

    def weights(self) -> Iterator[Weight]:
        """Of this tuple and of those nested in it, in order."""
        for field in self.fields:
            if isinstance(field, Weight):
                yield field
            else:
                yield from field.weights()


@dataclasses.dataclass(eq=False)
class Kernel:
    """One binding of a step: what runs as one kernel where TVM does not fuse.

    Attributes
    ----------
    binding : relax.Binding
        Its variable and value, in names of the function.
    uses : set of Buffer
        What its operands lie in.
    allocates : list of Buffer
        What its result lies in.
    scratch : int or ByteSize
        Bytes that it holds while it runs, besides its operands and its result.
    """

    binding: relax.Binding
    uses: set[Buffer]
    allocates: list[Buffer]
    scratch: Size = 0


@dataclasses.dataclass(eq=False)
class Step:
    """What runs as one kernel after fusion.

    Attributes
    ----------
    kernels : list of Kernel
        One, or several that TVM fuses.
    is_fused : bool
        Whether it stands in a dataflow block, for TVM to fuse.
    operands : dict of Step to None
        The steps whose results it reads, in order.
    after : dict of Step to None
        The steps that run before it: its operands, and those it may not overtake.
    reads : dict of Weight to None
        The weights that it reads, in order.
    is_impure : bool
    runs_first : bool
        Whether types of later steps may depend on it.
    """

    kernels: list[Kernel]
    is_fused: bool = False
    operands: dict[Step, None] = dataclasses.field(default_factory=dict)
    after: dict[Step, None] = dataclasses.field(default_factory=dict)
    reads: dict[Weight, None] = dataclasses.field(default_factory=dict)
    is_impure: bool = False
    runs_first: bool = False

    @property
    def name(self) -> str:
        """The variable it computes last."""
        return str(self.kernels[-1].binding.var.name)

    def uses(self) -> set[Buffer]:
        """The buffers that it reads and has not allocated."""
        own = {buffer for kernel in self.kernels for buffer in kernel.allocates}
        return {buffer for kernel in self.kernels for buffer in kernel.uses} - own


@dataclasses.dataclass(eq=False)
class Load(Step):
    """The call that yields a weight of a streamed transform.

    Attributes
    ----------
    weight : Weight
    index : int
        What the call is given: the weight's position, counted through nested tuples.
    """

    weight: Weight = dataclasses.field(kw_only=True)
    index: int = dataclasses.field(kw_only=True)

    @staticmethod
    def of(weight: Weight, index: int, get_weight: relax.Var) -> Load:
        """The step that loads a weight."""
        call = relax.Call(get_weight, [relax.prim_value(index)], ret_ty=relax.AnyType())
        kernel = Kernel(relax.VarBinding(relax.Var(weight.name, call.ty), call), set(), [])
        kernel.allocates.append(weight.buffer)
        # A type may depend on a number; it has no bytes, so that nothing is lost.
        return Load([kernel], runs_first=weight.buffer.size == 0, weight=weight, index=index)

    @property
    def name(self) -> str:
        """Of a step that computes nothing."""
        return f"load {self.weight.name}"


def _nominal(size: Size) -> int:
    value = at_bounds(size, {}, 1024)
    assert isinstance(value, int)
    return value


# What is known of a variable: a field of the weights, or an expression of others.
Known: TypeAlias = Container | Weight | relax.Expr
# The buffers a value lies in: of a tensor a set, of a tuple a list.
Layout: TypeAlias = frozenset[Buffer] | list[Any]


@dataclasses.dataclass
class TransformGraph:
    """What a transform computes, and from what.

    Attributes
    ----------
    name : str
        Of the function.
    function : relax.Function
    leading : list of relax.Var
        The ``num_input`` parameters before the weights.
    params : relax.Var
        The tuple that the new function updates. Of weights: the function's own parameter, or one
        that its separate weights are bundled into. Streamed, one slot for each output.
    root : Container
        The weights.
    slots : Container
        The fields of ``params``: ``root``, or slots of which nothing is known.
    get_weight : relax.Var or None
        What yields the weights of a streamed transform.
    loads : dict of Weight to Load
        Of a streamed transform.
    steps : list of Step
        In the function's order; those that need not run are left out.
    outputs : list
        The fields of the tuple that it returns: weights, tuples of weights, or expressions.
    """

    name: str
    function: relax.Function
    leading: list[relax.Var]
    params: relax.Var
    root: Container
    slots: Container
    get_weight: relax.Var | None = None
    loads: dict[Weight, Load] = dataclasses.field(default_factory=dict)
    steps: list[Step] = dataclasses.field(default_factory=list)
    outputs: list[Known] = dataclasses.field(default_factory=list)
    _known: dict[relax.Var, Known] = dataclasses.field(default_factory=dict)
    _layout: dict[relax.Var, Layout] = dataclasses.field(default_factory=dict)
    _step_of: dict[relax.Var, Step] = dataclasses.field(default_factory=dict)
    _defined_by: dict[relax.Var, Step] = dataclasses.field(default_factory=dict)  # dimensions

    @staticmethod
    def build(
        name: str,
        function: relax.Function,
        mod: ir.IRModule | None = None,
        params: Sequence[str | int] | None = None,
        lazy: bool = False,
    ) -> TransformGraph:
        """Read a function.

        Parameters
        ----------
        name : str
        function : relax.Function
        mod : tvm.ir.IRModule, optional
            Where the functions that it calls are.
        params : sequence of str or int, optional
            The weights that may be modified, by name or by their index in the tuple; all by
            default.
        lazy : bool
            Whether it is streamed.

        Raises
        ------
        UnsupportedTransformError
            It takes no weights, returns no tuple, is recursive, or overwrites or returns a view
            of a tensor that is not its own; or is to be streamed, and the symbolic dimensions of
            its weights define each other.
        """
        return _Builder(name, function, mod or ir.IRModule(), params, lazy).build()

    @property
    def parameters(self) -> list[relax.Var]:
        """Of the new function."""
        given = [] if self.get_weight is None else [self.get_weight]
        return [*self.leading, *given, self.params]

    def resolve(self, expr: relax.Expr) -> Known:
        """What an expression is, through second names, tuples and reads of fields."""
        while True:
            if isinstance(expr, relax.Var):
                known = self._known.get(expr)
                if known is None:
                    return expr
                if not isinstance(known, relax.Expr):
                    return known
                expr = known
            elif isinstance(expr, relax.TupleGetItem):
                source = self.resolve(expr.tuple_value)
                if isinstance(source, Container):
                    return source.fields[expr.index]
                if not isinstance(source, relax.Tuple):
                    if source is expr.tuple_value:
                        return expr
                    return relax.TupleGetItem(source, expr.index, expr.span)
                expr = source.fields[expr.index]
            else:
                return expr

    def step_of(self, var: relax.Var) -> Step | None:
        """The step that computes a variable."""
        return self._step_of.get(var)

    def layout(self, known: Known) -> Layout:
        """The buffers that a value lies in."""
        if isinstance(known, Weight):
            return frozenset([known.buffer])
        if isinstance(known, Container):
            return [self.layout(field) for field in known.fields]
        known = self.resolve(known)
        if not isinstance(known, relax.Expr):
            return self.layout(known)
        if isinstance(known, relax.Tuple):
            return [self.layout(field) for field in known.fields[:]]
        if isinstance(known, relax.TupleGetItem):
            source = self.layout(known.tuple_value)
            return source[known.index] if isinstance(source, list) else source
        if isinstance(known, relax.Var):
            return self._layout.get(known, frozenset())
        return frozenset()

    def needs(self, known: Known) -> tuple[dict[Step, None], dict[Weight, None]]:
        """The steps and the weights that an expression reads by itself."""
        steps: dict[Step, None] = {}
        weights: dict[Weight, None] = {}
        self._needs(known, steps, weights)
        return steps, weights

    def variables(self, known: Known) -> Iterator[relax.Var]:
        """The variables of steps that an expression reads by itself."""
        if isinstance(known, relax.Expr):
            known = self.resolve(known)
        if isinstance(known, relax.Var):
            if known in self._step_of:
                yield known
        elif isinstance(known, relax.Expr):
            for operand in _operands(known):
                yield from self.variables(operand)

    def _needs(self, known: Known, steps: dict[Step, None], weights: dict[Weight, None]) -> None:
        if isinstance(known, relax.Expr):
            known = self.resolve(known)
        if isinstance(known, Weight):
            weights[known] = None
            if known in self.loads:
                steps[self.loads[known]] = None
        elif isinstance(known, Container):
            for weight in known.weights():
                self._needs(weight, steps, weights)
        elif isinstance(known, relax.Var):
            step = self._step_of.get(known) or self._defined_by.get(known)
            if step is not None:
                steps[step] = None
        elif isinstance(known, relax.ShapeExpr) or ir.is_prim_expr(known):
            if self._defined_by:
                for var in relax.analysis.free_vars(known)[:]:
                    self._needs(var, steps, weights)
        else:
            for operand in _operands(known):
                self._needs(operand, steps, weights)


def number_of_inputs(function: relax.Function) -> int:
    """How many parameters of a transform come before its weights."""
    attrs = function.attrs
    return int(attrs["num_input"]) if attrs and "num_input" in attrs else 0


def buffers_of(layout: Layout) -> Iterator[Buffer]:
    """All buffers of a value."""
    if isinstance(layout, list):
        for field in layout:
            yield from buffers_of(field)
    else:
        yield from layout


def _operands(expr: relax.Expr) -> Iterator[relax.Expr]:
    """What an expression is made from: variables, tuples, reads of fields."""
    if isinstance(expr, ir.Call):
        for arg in expr.args[:]:
            if isinstance(arg, (relax.Var, relax.Tuple, relax.TupleGetItem, ir.Call)):
                yield arg
        if isinstance(expr.op, relax.Var):
            yield expr.op
    elif isinstance(expr, relax.Tuple):
        yield from expr.fields[:]
    elif isinstance(expr, relax.TupleGetItem):
        yield expr.tuple_value
    elif isinstance(expr, (relax.If, relax.Function, relax.SeqExpr)):
        yield from relax.analysis.free_vars(expr)[:]


@functools.cache
def _op(name: str) -> ir.Op:
    return ir.Op.get(name)


def _is_call_to(expr: relax.Expr, name: str) -> bool:
    return isinstance(expr, ir.Call) and isinstance(expr.op, ir.Op) and expr.op == _op(name)


_ALIASES = (relax.Var, ir.Constant, relax.ShapeExpr, relax.Tuple, relax.TupleGetItem)
_RESET = "vm.builtin.tuple_reset_item"  # what LiftTransformParams' consume_params leaves
_KERNEL_ATTRS = ("Primitive", "Composite", "Codegen")  # functions that stand for one kernel


class _Builder:
    def __init__(
        self,
        name: str,
        function: relax.Function,
        mod: ir.IRModule,
        modifiable: Sequence[str | int] | None,
        lazy: bool,
    ):
        self.function = function
        self.mod = mod
        self.modifiable = modifiable
        self.lazy = lazy
        self.graph = self._signature(name)
        self.steps: list[Step] = []
        self.calling: list[str] = [name]
        self.last_impure: Step | None = None
        self.last_writer: dict[Buffer, Step] = {}
        self.touching: dict[Buffer, list[Step]] = {}
        self.writers: list[Step] = []  # pure ones that overwrite an operand
        self.fusions: dict[relax.Function, Fusion] = {}

    def build(self) -> TransformGraph:
        graph = self.graph
        if not isinstance(self.function.ret_ty, relax.TupleType):
            raise self._unsupported(f"it returns no tuple, but {self.function.ret_ty}")
        packed = packed_computation(self.function, self.mod)
        if packed is not None:
            raise self._unsupported(packed)
        self._sequence(self.function, self.function.body)
        graph.outputs = self._outputs()
        for index, output in enumerate(graph.outputs):
            self._check_output(index, output)
        graph.steps = self._needed()
        return graph

    @functools.cached_property
    def given(self) -> set[relax.Var]:
        """The symbolic dimensions that are known when the function is called."""
        graph = self.graph
        params = [*graph.leading, *([] if self.lazy else [graph.params])]
        given = {v for p in params for v in relax.analysis.tir_vars_in_type(p.ty)[:]}
        return given.union(graph.leading)

    def _unsupported(self, reason: str) -> StructuredError:
        return UnsupportedTransformError.of(function=self.graph.name, reason=reason)

    # -- the signature ----------------------------------------------------------------------

    def _signature(self, name: str) -> TransformGraph:
        params = list(self.function.params[:])
        count = number_of_inputs(self.function)
        leading, trailing = params[:count], params[count:]
        if not trailing:
            raise UnsupportedTransformError.of(
                function=name,
                reason=f"it takes no weights: num_input={count} of its {len(params)} parameters "
                "are inputs",
            )
        is_tuple = len(trailing) == 1 and isinstance(trailing[0].ty, relax.TupleType)
        if is_tuple:
            bundle, ty = trailing[0], trailing[0].ty
        else:
            ty = relax.TupleType([param.ty for param in trailing])
            bundle = relax.Var("params", ty)
        root = Container(None, -1, ty)
        names = self._field_names(bundle) if is_tuple else [param.name for param in trailing]
        modifiable = _selected(name, self.modifiable, names, len(ty.fields))
        for index, field in enumerate(ty.fields[:]):
            default = f"{bundle.name}[{index}]"
            root.fields.append(
                _field(root, index, field, names[index] or default, index in modifiable, self.lazy)
            )
        graph = TransformGraph(name, self.function, leading, bundle, root, root)
        if self.lazy:
            self._stream(graph)
        graph._known[bundle] = root
        if not is_tuple:
            graph._known.update(zip(trailing, root.fields, strict=True))
        for param in leading:
            if any(tensors_in(param.ty)):
                graph._layout[param] = frozenset([Buffer(param.name, 0)])
        return graph

    def _stream(self, graph: TransformGraph) -> None:
        """Let a callable take the place of the weights, and an empty tuple that of their slots."""
        ret_ty = self.function.ret_ty
        if not isinstance(ret_ty, relax.TupleType):
            return  # which is refused
        slots = Container(None, -1, relax.TupleType([relax.AnyType()] * len(ret_ty.fields)))
        for index in range(len(ret_ty.fields)):
            slots.fields.append(Container(slots, index, relax.TupleType([])))
        ty = relax.FuncType([ir.PrimType("int64")], relax.AnyType(), purity=False)
        get_weight = relax.Var("get_weight", ty)
        graph.slots, graph.get_weight = slots, get_weight
        graph.params = relax.Var("params", slots.ty)
        for index, weight in enumerate(graph.root.weights()):
            load = graph.loads[weight] = Load.of(weight, index, get_weight)
            graph._step_of[load.kernels[0].binding.var] = load

    def _field_names(self, bundle: relax.Var) -> list[str]:
        """For each field the variable that it is read into first; "" if none is."""
        names = [""] * len(bundle.ty.fields)
        for block in self.function.body.blocks[:]:
            for binding in block.bindings[:]:
                value = binding.value
                if isinstance(value, relax.TupleGetItem) and value.tuple_value.same_as(bundle):
                    index = value.index
                    names[index] = names[index] or binding.var.name
        return names

    # -- bindings ---------------------------------------------------------------------------

    def _sequence(self, function: relax.Function, body: relax.SeqExpr) -> None:
        fusion = self.fusions.get(function)
        if fusion is None:
            fusion = self.fusions[function] = find_fusion(function, self.mod)
        for b, block in enumerate(body.blocks[:]):
            groups: dict[int, Step] = {}
            for i, binding in enumerate(block.bindings[:]):
                group = fusion.group_of.get((b, i))
                step = None if group is None else groups.get(group)
                if group is not None and step is None:
                    step = groups[group] = Step([], is_fused=True)
                self._binding(binding, step, fusion.is_view(b, i))

    def _binding(self, binding: relax.Binding, group: Step | None, is_view: bool) -> None:
        graph, var, value = self.graph, binding.var, binding.value
        if isinstance(binding, relax.MatchCast):
            known = graph.resolve(value)
            if isinstance(known, Container):
                raise self._unsupported(
                    f"the binding of `{var.name}` casts the tuple of weights as a whole; cast its "
                    "fields"
                )
            step = self._step(group, binding)
            step.runs_first = True
            for symbol in relax.analysis.definable_tir_vars_in_type(binding.ty)[:]:
                if symbol not in self.given:
                    graph._defined_by.setdefault(symbol, step)
            graph._layout[var] = graph.layout(value)
            return
        if isinstance(value, _ALIASES):
            graph._known[var] = value
            return
        if isinstance(value, ir.Call):
            if self._is_reset(value):
                return  # the releases that are planned here take its place
            if is_update(value):
                raise self._unsupported(
                    f"the binding of `{var.name}` updates a tuple in place already"
                )
            callee = value.op
            if isinstance(callee, ir.GlobalVar):
                called = self.mod[callee] if callee in self.mod.functions else None
                if isinstance(called, relax.Function) and not _is_kernel(called):
                    self._inline(var, value, called)
                    return
        step = self._step(group, binding)
        self._result(step.kernels[-1], is_view and step.is_fused)
        if isinstance(var.ty, (ir.PrimType, relax.ShapeType)):
            step.runs_first = True

    def _is_reset(self, call: ir.Call) -> bool:
        """Whether it empties a slot of the weights, as consume_params does."""
        callee, args = call.op, list(call.args[:])
        if _is_call_to(call, "relax.call_pure_packed"):
            callee, *args = args
        return (
            isinstance(callee, relax.ExternFunc)
            and callee.global_symbol == _RESET
            and len(args) == 2
            and isinstance(args[0], relax.Expr)
            and isinstance(self.graph.resolve(args[0]), Container)
        )

    def _step(self, group: Step | None, binding: relax.Binding) -> Step:
        """The step that a binding belongs to, with what it depends on."""
        graph = self.graph
        steps: dict[Step, None] = {}
        weights: dict[Weight, None] = {}
        uses: set[Buffer] = set()
        value = binding.value
        if isinstance(value, (relax.Var, relax.TupleGetItem)):  # of a cast; not the whole tuple
            operands: list[relax.Expr] = [value]
        else:
            operands = list(_operands(value))
        for operand in operands:
            graph._needs(operand, steps, weights)
            uses.update(buffers_of(graph.layout(operand)))
        step = group or Step([])
        step.kernels.append(Kernel(binding, uses, []))
        if len(step.kernels) == 1:
            self.steps.append(step)
        graph._step_of[binding.var] = step
        steps.pop(step, None)
        step.operands.update(steps)
        step.after.update(steps)
        step.reads.update(weights)
        self._order_effects(step, value, uses)
        return step

    def _order_effects(self, step: Step, value: relax.Expr, uses: set[Buffer]) -> None:
        """Keep impure calls, and calls that overwrite an operand, in their place."""
        is_impure = self._may_be_impure(value)
        writes = is_impure or bool(_overwritten(value))
        for buffer in uses:
            before = self.touching.setdefault(buffer, []) if writes else ()
            writer = self.last_writer.get(buffer)
            for other in [*before, *([writer] if writer else [])]:
                if other is not step:
                    step.after[other] = None
            if writes:
                self.last_writer[buffer] = step
                self.touching[buffer] = []
            else:
                self.touching.setdefault(buffer, []).append(step)
        if is_impure:
            step.is_impure = True
            if self.last_impure is not None and self.last_impure is not step:
                step.after[self.last_impure] = None
            self.last_impure = step
        elif writes:
            self.writers.append(step)
            self._require_own(value)

    def _may_be_impure(self, value: relax.Expr) -> bool:
        # A function that is pure holds nothing impure: TVM has checked it.
        attrs = self.function.attrs
        if self.function.is_pure and not (attrs and "relax.force_pure" in attrs):
            return False
        if isinstance(value, relax.Function):
            return False
        return bool(relax.analysis.contains_impure_call(value))

    def _require_own(self, value: ir.Call) -> None:
        operands = [operand for operand in _overwritten(value) if operand is not None]
        for buffer in (b for o in operands for b in buffers_of(self.graph.layout(o))):
            kept = buffer.weight is not None and not buffer.weight.is_modifiable
            if kept or buffer in self._leading_buffers():
                raise self._unsupported(
                    f"`{_one_line(value)}` overwrites `{buffer.name}`, which is not to be modified"
                )

    def _leading_buffers(self) -> set[Buffer]:
        return {
            buffer
            for param in self.graph.leading
            for buffer in buffers_of(self.graph._layout.get(param, frozenset()))
        }

    def _result(self, kernel: Kernel, is_view: bool) -> None:
        """Record the buffers that the result of a kernel lies in."""
        graph, var, value = self.graph, kernel.binding.var, kernel.binding.value

        def allocated(ty: ir.Type, name: str) -> Layout:
            if isinstance(ty, relax.TupleType):
                fields = enumerate(ty.fields[:])
                return [allocated(field, f"{name}[{index}]") for index, field in fields]
            if not isinstance(ty, (relax.TensorType, relax.AnyType)):
                return frozenset()
            buffer = Buffer(name, size_of(ty, name))
            kernel.allocates.append(buffer)
            return frozenset([buffer])

        if is_view or _is_call_to(value, "relax.memory.view"):
            layout: Layout = frozenset(buffers_of(graph.layout(_tensor_operand(value))))
        elif isinstance(value, relax.If):
            layout = allocated(var.ty, var.name)
            for buffer in kernel.allocates:
                buffer.is_stuck = True
            layout = self._with_captured(layout, value)
            kernel.scratch = max(
                (_scratch_of(branch) for branch in (value.true_branch, value.false_branch)),
                key=_nominal,
            )
        elif isinstance(value, relax.Function):
            layout = frozenset(kernel.uses)  # a closure holds what it captures
        elif overwritten := _overwritten(value):
            types = var.ty.fields[:] if isinstance(var.ty, relax.TupleType) else [var.ty]
            layouts = [
                allocated(ty, var.name)
                if operand is None
                else frozenset(buffers_of(graph.layout(operand)))
                for ty, operand in zip(types, overwritten, strict=True)
            ]
            layout = layouts if isinstance(var.ty, relax.TupleType) else layouts[0]
        else:
            layout = allocated(var.ty, var.name)
        graph._layout[var] = layout

    def _with_captured(self, layout: Layout, branches: relax.If) -> Layout:
        """A branch may end with a name from outside: the result may be that value."""
        captured: set[Buffer] = set()
        for branch in (branches.true_branch, branches.false_branch):
            for var in relax.analysis.free_vars(branch.body)[:]:
                captured.update(buffers_of(self.graph.layout(var)))
        if not captured:
            return layout
        if isinstance(layout, list):
            return [frozenset(buffers_of(field)) | captured for field in layout]
        return layout | captured

    # -- calls to other functions ---------------------------------------------------------

    def _inline(self, var: relax.Var, call: ir.Call, called: relax.Function) -> None:
        name = call.op.name_hint
        if name in self.calling:
            chain = " -> ".join([*self.calling[self.calling.index(name) :], name])
            raise self._unsupported(f"the binding of `{var.name}` is recursive: {chain}")
        fusion = find_fusion(called, self.mod)
        copy = relax.utils.copy_with_new_vars(called)
        args = list(call.args[:])
        if relax.analysis.free_symbolic_vars(copy)[:] or relax.analysis.defined_symbolic_vars(copy):
            # The callee's symbolic dimensions become the caller's.
            copy = copy.bind_params(dict(zip(copy.params, args, strict=True)))
        else:
            self.graph._known.update(zip(copy.params, args, strict=True))
        self.fusions[copy] = fusion
        self.calling.append(name)
        self._sequence(copy, copy.body)
        self.calling.pop()
        self.graph._known[var] = copy.body.body

    # -- the end ------------------------------------------------------------------------------

    def _outputs(self) -> list[Known]:
        body = self.graph.resolve(self.function.body.body)
        if isinstance(body, Container):
            return list(body.fields)
        if isinstance(body, relax.Tuple):
            return [self.graph.resolve(field) for field in body.fields[:]]
        assert isinstance(body, relax.Expr)
        return [relax.TupleGetItem(body, i) for i in range(len(self.function.ret_ty.fields))]

    def _check_output(self, index: int, output: Known) -> None:
        """Refuse a view of what somebody else holds; whole tensors are theirs to hand out."""
        if not isinstance(output, relax.Var):
            return
        step = self.graph.step_of(output)
        if step is None or step.runs_first:
            return
        leading = self._leading_buffers()
        for buffer in buffers_of(self.graph.layout(output)):
            kept = buffer.weight is not None and not buffer.weight.is_modifiable
            if (kept or buffer in leading) and not isinstance(
                step.kernels[-1].binding.value, relax.If
            ):
                raise self._unsupported(
                    f"output {index}, `{output.name}`, lies in the buffer of `{buffer.name}`, "
                    "which is not to be modified and which others keep; copy it"
                )

    def _needed(self) -> list[Step]:
        graph = self.graph
        needed: set[Step] = set()
        used = {buffer for output in graph.outputs for buffer in buffers_of(graph.layout(output))}
        pending = [step for step in self.steps if step.is_impure or step.runs_first]
        for output in graph.outputs:
            pending += graph.needs(output)[0]
        while pending:
            step = pending.pop()
            if step not in needed:
                needed.add(step)
                used.update(*(kernel.uses for kernel in step.kernels))
                pending += step.operands
            if not pending:  # what overwrites a tensor that is used is needed, whoever reads it
                pending = [s for s in self.writers if s not in needed and s.uses() & used]
        for step in needed:
            step.after = {other: None for other in step.after if other in needed}
        steps = _in_order([step for step in self.steps if step in needed])
        if not graph.loads:
            return steps
        loads = [load for load in graph.loads.values() if load in needed]
        return self._with_symbols_defined(steps, loads)

    # -- symbolic dimensions of streamed weights ------------------------------------------------

    def _with_symbols_defined(self, steps: list[Step], needed: list[Load]) -> list[Step]:
        """The steps and loads, each after a load that defines the symbolic dimensions it needs."""
        graph = self.graph
        # Of two that define a dimension, rather one that is needed anyway.
        in_order = dict.fromkeys([*needed, *graph.loads.values()])
        loaded = self._definitions(in_order, self.given)
        graph._defined_by.update(loaded)
        if loaded:
            for output in graph.outputs:
                needed += [s for s in graph.needs(output)[0] if isinstance(s, Load)]
            needed += self._definitions_first(_in_order([*steps, *needed]), loaded)
        return _in_order([*steps, *needed])

    def _definitions(self, loads: Iterable[Load], given: set[relax.Var]) -> dict[relax.Var, Load]:
        """For each symbolic dimension a load that defines it.

        A load whose type has an expression of dimensions needs these to be defined before it.
        """
        defined_by: dict[relax.Var, Load] = {}
        waiting = {load: set(relax.analysis.tir_vars_in_type(load.weight.ty)[:]) for load in loads}
        waiting = {load: symbols for load, symbols in waiting.items() if symbols}
        while waiting:
            ready = []
            for load, symbols in waiting.items():
                own = set(relax.analysis.definable_tir_vars_in_type(load.weight.ty)[:])
                if all(v in own or v in given or v in defined_by for v in symbols):
                    ready.append(load)
                    for var in own - given:
                        defined_by.setdefault(var, load)
            if not ready:
                names = ", ".join(f"`{load.weight.name}`" for load in waiting)
                raise self._unsupported(
                    f"lazy=True: the weights {names} are loaded one by one, but the symbolic "
                    "dimensions of each have to be known before it is; pass them as inputs"
                )
            for load in ready:
                del waiting[load]
        return defined_by

    def _definitions_first(
        self, steps: list[Step], defined_by: Mapping[relax.Var, Load]
    ) -> list[Load]:
        """Let each step run after a load that defines its symbolic dimensions; these loads."""
        known: dict[Step, set[relax.Var]] = {}  # what is defined when a step has run
        added: dict[Load, None] = {}

        def visit(step: Step) -> None:
            known[step] = set().union(*(known[other] for other in step.after))
            for var in _symbols(step):
                load = defined_by.get(var)
                if load is not None and load is not step and var not in known[step]:
                    if load not in known:
                        added[load] = None
                        visit(load)
                    step.after[load] = None
                    known[step] |= known[load]
            if isinstance(step, Load):
                known[step].update(relax.analysis.definable_tir_vars_in_type(step.weight.ty)[:])

        for step in steps:
            if step not in known:
                visit(step)
        return list(added)


def _in_order(steps: list[Step]) -> list[Step]:
    """As they are, but for a fused step that begins before another one that it needs."""
    ordered: dict[Step, None] = {}
    for first in steps:
        pending = [first]
        while pending:
            step = pending[-1]
            before = [other for other in step.after if other not in ordered]
            if before:
                pending += before[::-1]
            else:
                ordered[pending.pop()] = None
    return list(ordered)


def _symbols(step: Step) -> set[relax.Var]:
    """The symbolic dimensions that have to be known where a step runs."""
    if isinstance(step, Load):
        ty = step.weight.ty
        own = set(relax.analysis.definable_tir_vars_in_type(ty)[:])
        return set(relax.analysis.tir_vars_in_type(ty)[:]) - own
    symbols: set[relax.Var] = set()
    for kernel in step.kernels:
        symbols.update(relax.analysis.free_symbolic_vars(kernel.binding.value)[:])
        symbols.update(relax.analysis.tir_vars_in_type(kernel.binding.var.ty)[:])
    return symbols


def _field(
    parent: Container, index: int, ty: ir.Type, name: str, is_modifiable: bool, lazy: bool
) -> Container | Weight:
    if not isinstance(ty, relax.TupleType):
        return Weight(parent, index, name, ty, is_modifiable, lazy)
    container = Container(parent, index, ty)
    for i, field in enumerate(ty.fields[:]):
        container.fields.append(_field(container, i, field, f"{name}[{i}]", is_modifiable, lazy))
    return container


def _selected(
    function: str, selected: Sequence[str | int] | None, names: list[str], count: int
) -> set[int]:
    """The indices of the weights that may be modified."""
    if selected is None:
        return set(range(count))
    indices = set()
    for wanted in selected:
        if isinstance(wanted, str) and wanted in names:
            indices.add(names.index(wanted))
        elif type(wanted) is int and -count <= wanted < count:
            indices.add(wanted % count)
        else:
            known = [name for name in names if name]
            raise UnsupportedTransformError.of(
                function=function,
                reason=f"params={list(selected)!r}: it has no weight {wanted!r}; expected indices "
                f"below {count}, or names among {known}",
            )
    return indices


def _is_kernel(function: relax.Function) -> bool:
    return bool(function.attrs) and any(attr in function.attrs for attr in _KERNEL_ATTRS)


def _overwritten(value: relax.Expr) -> list[relax.Expr | None]:
    """For each result of a call that works in place the operand it overwrites, None if it is new.

    Empty for any other expression.
    """
    if _is_call_to(value, "relax.call_tir_inplace"):
        operands = value.args[1]
        args = operands.fields[:] if isinstance(operands, relax.Tuple) else [operands]
    elif _is_call_to(value, "relax.call_inplace_packed"):
        args = value.args[1:]
    else:
        return []
    return [args[i] if i >= 0 else None for i in map(int, value.attrs.inplace_indices[:])]


def _tensor_operand(value: relax.Expr) -> relax.Expr:
    if _is_call_to(value, "relax.call_tir"):
        operands = value.args[1]
        return operands.fields[0] if isinstance(operands, relax.Tuple) else operands
    return value.args[0]


def _scratch_of(branch: relax.SeqExpr) -> Size:
    """At most what a branch holds: all that it computes, but for its result."""
    total: Size = 0
    for block in branch.blocks[:]:
        for binding in block.bindings[:]:
            if isinstance(binding.value, ir.Call) and not binding.var.same_as(branch.body):
                total = total + size_of(binding.var.ty, binding.var.name)
    return total


def _one_line(expr: Any) -> str:
    text = " ".join(line.strip() for line in str(expr).splitlines() if not line.startswith("#"))
    return text if len(text) <= 80 else text[:77] + "..."
