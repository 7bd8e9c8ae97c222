"""Reads a transform: its steps, what they depend on, and where their results lie."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tvm
from tvm import ir, relax

from ..errors import StructuredError
from ..ir.byte_size import Size, nominal_size, size_of
from ..ir.effects import EffectTable, is_call_to
from ..ir.effects import operands as operands_of
from ..ir.marks import without_marks
from ..ir.tuple_tree import Path, map_leaves, subscripted, tree_of
from ..ir.whole_bytes import packed_computation
from ..op import is_update
from ..weight_names import GivenNames
from .captured import reads_moved_out
from .fusion import Fusion, find_fusion
from .memory_order import MemoryOrder, one_line
from .moves_in_place import MovesInPlace
from .signature import read_signature
from .steps import Kernel, Step
from .streamed_dimensions import with_dimensions_defined
from .transform_graph import Known, TransformGraph, UnsupportedTransformError, in_order, parts_of
from .weights import Buffer, Container, Layout, Weight, buffers_of

__all__ = ["read_transform"]


def read_transform(
    name: str,
    function: relax.Function,
    mod: ir.IRModule | None = None,
    params: Sequence[str | int] | None = None,
    lazy: bool = False,
    target: tvm.target.Target | None = None,
    names: GivenNames | None = None,
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
    target : tvm.target.Target, optional
        What it will be compiled for. Without it, no result lies in an operand's memory.
    names : mapping, sequence, callable or path, optional
        Of the weights: see :mod:`..weight_names`.

    Raises
    ------
    UnsupportedTransformError
        It takes no weights, returns no tuple, is recursive, or overwrites or returns a view of a
        tensor that is not its own; it overwrites what may be a view or a copy of something else
        that it reads later; or is to be streamed, and the symbolic dimensions of its weights
        define each other.
    """
    graph = read_signature(name, function, params, lazy, names)
    _Reader(graph, mod or ir.IRModule(), target).read()
    return graph


_ALIASES = (relax.Var, ir.Constant, relax.ShapeExpr, relax.Tuple, relax.TupleGetItem)
_RESET = "vm.builtin.tuple_reset_item"  # what LiftTransformParams' consume_params leaves
_KERNEL_ATTRS = ("Primitive", "Composite", "Codegen")  # functions that stand for one kernel


class _Reader:
    def __init__(self, graph: TransformGraph, mod: ir.IRModule, target: tvm.target.Target | None):
        self.graph = graph
        self.function = graph.function
        self.mod = mod
        self.effects = EffectTable(mod)
        self.moves = MovesInPlace(graph, self.effects.kernels, target)
        self.order = MemoryOrder(graph, self.effects)
        self.steps: list[Step] = []
        self.calling: list[str] = [graph.name]
        self.last_impure: Step | None = None
        self.writers: list[Step] = []  # pure ones that overwrite an operand
        self.fusions: dict[relax.Function, Fusion] = {}

    def read(self) -> None:
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

    @functools.cached_property
    def given(self) -> set[relax.Var]:
        """The symbolic dimensions that are known when the function is called."""
        graph = self.graph
        params = [*graph.leading, *([graph.params] if graph.get_weight is None else [])]
        given = {v for p in params for v in relax.analysis.tir_vars_in_type(p.ty)[:]}
        return given.union(graph.leading)

    def _unsupported(self, reason: str) -> StructuredError:
        return UnsupportedTransformError.of(function=self.graph.name, reason=reason)

    # -- bindings ---------------------------------------------------------------------------

    def _sequence(self, function: relax.Function, body: relax.SeqExpr) -> None:
        fusion = self.fusions.get(function)
        if fusion is None:
            fusion = self.fusions[function] = find_fusion(function, self.effects)
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
        is_cast = isinstance(binding, relax.MatchCast)
        if is_cast:
            if isinstance(graph.resolve(value), Container):
                raise self._unsupported(
                    f"the binding of `{var.name}` casts the tuple of weights as a whole; cast its "
                    "fields"
                )
        elif isinstance(value, _ALIASES):
            graph._known[var] = value
            return
        elif isinstance(value, (relax.If, relax.Function)):
            value, moved = reads_moved_out(value)
            graph._known.update(moved)
            binding = relax.VarBinding(var, value)
            if isinstance(value, relax.Function):
                self.effects.local[var] = value
        elif isinstance(value, ir.Call):
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
        self._step(group, binding, is_view)

    def _is_reset(self, call: ir.Call) -> bool:
        """Whether it empties a slot of the weights, as consume_params does."""
        callee, args = call.op, list(call.args[:])
        if is_call_to(call, "relax.call_pure_packed"):
            callee, *args = args
        return (
            isinstance(callee, relax.ExternFunc)
            and callee.global_symbol == _RESET
            and len(args) == 2
            and isinstance(args[0], relax.Expr)
            and isinstance(self.graph.resolve(args[0]), Container)
        )

    def _step(self, group: Step | None, binding: relax.Binding, is_view: bool) -> None:
        """Add a binding to the step that it belongs to, with what it depends on."""
        graph, var, value = self.graph, binding.var, binding.value
        steps: dict[Step, None] = {}
        weights: dict[Weight, None] = {}
        uses: set[Buffer] = set()
        if isinstance(value, (relax.Var, relax.TupleGetItem)):  # of a cast; not the whole tuple
            operands: list[relax.Expr] = [value]
        else:
            operands = list(parts_of(value))
        for operand in operands:
            graph._needs(operand, steps, weights)
            uses.update(buffers_of(graph.layout(operand)))
        step = group or Step([])
        kernel = Kernel(binding, uses, [])
        step.kernels.append(kernel)
        if len(step.kernels) == 1:
            self.steps.append(step)
        graph._step_of[var] = step
        steps.pop(step, None)
        step.operands.update(steps)
        step.after.update(steps)
        step.reads.update(weights)
        if isinstance(binding, relax.MatchCast):
            step.runs_first = True
            for symbol in relax.analysis.definable_tir_vars_in_type(binding.ty)[:]:
                if symbol not in self.given:
                    graph._defined_by.setdefault(symbol, step)
            graph._layout[var] = graph.layout(value)
        else:
            step.runs_first |= isinstance(var.ty, (ir.PrimType, relax.ShapeType))
            graph._layout[var] = self._layout_of(kernel, is_view and step.is_fused)
            self.moves.read(kernel)
        self.order.read(step, kernel, operands)
        self._keep_effects(step, value)

    def _keep_effects(self, step: Step, value: relax.Expr) -> None:
        """Keep impure calls in their order; refuse what overwrites what others keep."""
        if self._may_be_impure(value):
            step.is_impure = True
            if self.last_impure is not None and self.last_impure is not step:
                step.after[self.last_impure] = None
            self.last_impure = step
        elif step.overwrites:
            self.writers.append(step)
            if self.effects.of(value).is_known:
                self._require_own(step, value)

    def _may_be_impure(self, value: relax.Expr) -> bool:
        # A function that is pure holds nothing impure: TVM has checked it.
        attrs = self.function.attrs
        if self.function.is_pure and not (attrs and "relax.force_pure" in attrs):
            return False
        if isinstance(value, relax.Function):
            return False
        return bool(relax.analysis.contains_impure_call(value))

    def _require_own(self, step: Step, value: relax.Expr) -> None:
        for buffer in step.overwrites:
            if self._is_kept(buffer):
                raise self._unsupported(
                    f"`{one_line(value)}` overwrites `{buffer.name}`, which is not to be modified"
                )

    def _is_kept(self, buffer: Buffer) -> bool:
        """Whether somebody else holds it when the function is called, and after it returns."""
        weight = buffer.weight
        return buffer in self.leading or (weight is not None and not weight.is_modifiable)

    @functools.cached_property
    def leading(self) -> set[Buffer]:
        """What the inputs lie in."""
        layouts = (self.graph._layout.get(param, frozenset()) for param in self.graph.leading)
        return {buffer for layout in layouts for buffer in buffers_of(layout)}

    def _layout_of(self, kernel: Kernel, is_view: bool) -> Layout:
        """The buffers that the result of a kernel lies in."""
        graph, var, value = self.graph, kernel.binding.var, kernel.binding.value

        def allocated(ty: ir.Type, path: Path = ()) -> Layout:
            if not isinstance(ty, (relax.TensorType, relax.AnyType)):
                return frozenset()
            name = subscripted(var.name, path)
            buffer = Buffer(name, size_of(ty, name))
            kernel.allocates.append(buffer)
            return frozenset([buffer])

        def of(operand: relax.Expr) -> Layout:
            return frozenset(buffers_of(graph.layout(operand)))

        if isinstance(value, relax.If):
            layout = tree_of(var.ty, allocated)
            for buffer in kernel.allocates:
                buffer.is_stuck = True
            kernel.scratch = max(
                (_scratch_of(branch) for branch in (value.true_branch, value.false_branch)),
                key=nominal_size,
            )
            return self._with_captured(layout, value)
        if is_view:
            return of(operands_of(value)[0])
        effects = self.effects.of(value)
        if effects.lies_in:
            types = var.ty.fields[:] if isinstance(var.ty, relax.TupleType) else [var.ty]
            layouts = [
                allocated(ty) if operand is None else of(operand)
                for ty, operand in zip(types, effects.lies_in, strict=True)
            ]
            return layouts if isinstance(var.ty, relax.TupleType) else layouts[0]
        if effects.is_view:
            return frozenset().union(*map(of, effects.aliases))
        return tree_of(var.ty, allocated)

    def _with_captured(self, layout: Layout, branches: relax.If) -> Layout:
        """A branch may end with a name from outside: the result may be that value."""
        captured: set[Buffer] = set()
        for branch in (branches.true_branch, branches.false_branch):
            for var in relax.analysis.free_vars(branch.body)[:]:
                captured.update(buffers_of(self.graph.layout(var)))
        if not captured:
            return layout
        return map_leaves(lambda buffers: buffers | captured, layout)

    # -- calls to other functions ---------------------------------------------------------

    def _inline(self, var: relax.Var, call: ir.Call, called: relax.Function) -> None:
        name = call.op.name_hint
        if name in self.calling:
            chain = " -> ".join([*self.calling[self.calling.index(name) :], name])
            raise self._unsupported(f"the binding of `{var.name}` is recursive: {chain}")
        called = without_marks(called)
        fusion = find_fusion(called, self.effects)
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
        self.order.require_settled(self.order.memory(output), f"output {index}")
        if not isinstance(output, relax.Var):
            return
        step = self.graph.step_of(output)
        if step is None or step.runs_first:
            return
        if isinstance(step.kernels[-1].binding.value, relax.If):
            return
        for buffer in buffers_of(self.graph.layout(output)):
            if self._is_kept(buffer):
                raise self._unsupported(
                    f"output {index}, `{output.name}`, lies in the buffer of `{buffer.name}`, "
                    "which is not to be modified and which others keep; copy it"
                )

    def _needed(self) -> list[Step]:
        graph, order = self.graph, self.order
        needed: set[Step] = set()
        used: set[Buffer] = set().union(*map(order.memory, graph.outputs))
        pending = [step for step in self.steps if step.is_impure or step.runs_first]
        for output in graph.outputs:
            pending += graph.needs(output)[0]
        while pending:
            step = pending.pop()
            if step not in needed:
                needed.add(step)
                used |= order.touched.get(step, set())
                pending += step.operands
            if not pending:  # what overwrites a tensor that is used is needed, whoever reads it
                pending = [s for s in self.writers if s not in needed and s.overwrites & used]
        for step in needed:
            step.after = {other: None for other in step.after if other in needed}
        steps = in_order(graph, [step for step in self.steps if step in needed])
        if not graph.loads:
            return steps
        loads = [load for load in graph.loads.values() if load in needed]
        return with_dimensions_defined(graph, steps, loads, self.given)


def _is_kernel(function: relax.Function) -> bool:
    return bool(function.attrs) and any(attr in function.attrs for attr in _KERNEL_ATTRS)


def _scratch_of(branch: relax.SeqExpr) -> Size:
    """At most what a branch holds: all that it computes, but for its result."""
    total: Size = 0
    for block in branch.blocks[:]:
        for binding in block.bindings[:]:
            if isinstance(binding.value, ir.Call) and not binding.var.same_as(branch.body):
                total = total + size_of(binding.var.ty, binding.var.name)
    return total
