"""Steps that can be run slice by slice, so that their temporaries are slices too.

Definition
----------
A result is *independent* along its first axis if slice ``a:b`` of it is computed from slices
``a:b`` of its operands, along one axis each, and from operands as a whole, by the same operators.
That is read off the kernels: the variable of the result's axis is the whole of one index of an
operand, or is in none of its indices, and is used for nothing else. So the slices are computed by
the same arithmetic, and the bits are the same.

The steps that only serve to compute one value, its *cone*, run as one step of ``n`` slices: each
slice of an operand is copied, goes through the operators of the cone, and is written into the new
tensor. That is the whole new tensor, and the temporaries of one slice. The slice of an operand
stays from the first step of the cone that reads it to the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import tvm_ffi
from tvm import ir, relax, tirx

from ..ir.byte_size import size_of
from ..ir.kernels import Kernels
from ..relayout.kernel_slices import operand_axes
from .transform_graph import Kernel, Load, Step, TransformGraph, Weight

__all__ = ["MOST_SLICES", "SlicedStep", "Slicing", "find_slicing", "sliced_type", "split"]

MOST_SLICES = 256  # the slices are written out one after the other

Operand: TypeAlias = Weight | relax.Var


@dataclasses.dataclass
class Slicing:
    """How a value is computed slice by slice.

    Attributes
    ----------
    steps : list of Step
        Of its cone, in order. What is one kernel after fusion stays one in each slice.
    axes : dict
        The axis along which each value is sliced: of the cone, weights, and results of other steps.
        Operands that are taken as a whole are not in it.
    length : int
        Of that axis.
    """

    steps: list[Step]
    axes: dict[Operand, int]
    length: int

    @property
    def kernels(self) -> list[Kernel]:
        """Of all steps, in order."""
        return [kernel for step in self.steps for kernel in step.kernels]

    @property
    def result(self) -> relax.Var:
        """The value that the cone computes."""
        return self.kernels[-1].binding.var

    def operands(self, graph: TransformGraph, kernel: Kernel) -> dict[relax.Var, Operand]:
        """What the variables of a kernel's call stand for."""
        found = {}
        for var in relax.analysis.free_vars(kernel.binding.value)[:]:
            known = graph.resolve(var)
            if isinstance(known, (Weight, relax.Var)):
                found[var] = known
        return found

    def outside(self, graph: TransformGraph) -> set[Operand]:
        """What more than one step sees: the result, and what one computes and another reads."""
        seen: set[Operand] = {self.result}
        for step in self.steps:
            own = {kernel.binding.var for kernel in step.kernels}
            for kernel in step.kernels:
                seen.update(v for v in self.operands(graph, kernel).values() if v not in own)
        return seen

    def sliced_operands(self, graph: TransformGraph, step: Step) -> list[Operand]:
        """What a step reads slices of from outside; they are there before its first kernel runs."""
        values = (v for kernel in step.kernels for v in self.operands(graph, kernel).values())
        inside = {kernel.binding.var for kernel in self.kernels}
        return [v for v in dict.fromkeys(values) if v in self.axes and v not in inside]

    def scratch(self, graph: TransformGraph, rows: int) -> int:
        """The most bytes that a slice of so many rows takes, besides the result as a whole."""
        last: dict[Operand, Kernel | None] = {}
        for kernel in self.kernels:
            last.update(dict.fromkeys(self.operands(graph, kernel).values(), kernel))
        last[self.result] = None
        live: dict[Operand, int] = {}
        most = 0
        for step in self.steps:
            for value in self.sliced_operands(graph, step):
                live[value] = self._slice_bytes(value, rows)
            for kernel in step.kernels:
                live[kernel.binding.var] = self._slice_bytes(kernel.binding.var, rows)
                most = max(most, sum(live.values()))
                live = {value: size for value, size in live.items() if last[value] is not kernel}
        return most

    def _slice_bytes(self, value: Operand, rows: int) -> int:
        size = size_of(value.ty)
        assert isinstance(size, int)
        return size // self.length * rows


@dataclasses.dataclass(eq=False)
class SlicedStep(Step):
    """A cone that runs slice by slice: one kernel, to those who plan.

    Attributes
    ----------
    slicing : Slicing
    slices : int
    """

    slicing: Slicing = dataclasses.field(kw_only=True)
    slices: int = 1

    def rows(self) -> int:
        """Of each slice but the last, which may have fewer."""
        return -(-self.slicing.length // self.slices)

    @property
    def name(self) -> str:
        """With the number of slices."""
        return f"{super().name} in {-(-self.slicing.length // self.rows())} slices"


def split(
    graph: TransformGraph, step: Step, kernels: Kernels, order: Sequence[Step]
) -> list[SlicedStep]:
    """The ways to run a step slice by slice: alone, with what it is used for, and so on.

    ``order`` is one of all steps; that of the cone's follows it.
    """
    ways = []
    used_in = _readers(graph)
    outputs = {v for output in graph.outputs for v in graph.variables(output)}
    current = step
    while True:
        cone = _cone(order, current, used_in, outputs)
        slicing = find_slicing(graph, cone, kernels) if step in cone else None
        if slicing is not None:
            ways.append(_sliced_step(cone, slicing))
        readers = used_in.get(current, set())
        is_output = any(kernel.binding.var in outputs for kernel in current.kernels)
        if len(readers) != 1 or is_output:
            return ways
        (current,) = readers


def _readers(graph: TransformGraph) -> dict[Step, set[Step]]:
    readers: dict[Step, set[Step]] = {}
    for step in graph.steps:
        for other in step.operands:
            readers.setdefault(other, set()).add(step)
    return readers


def _cone(
    order: Sequence[Step],
    last: Step,
    used_in: Mapping[Step, set[Step]],
    outputs: set[relax.Var],
) -> list[Step]:
    """The steps that only serve to compute what ``last`` does, in order.

    Empty if they cannot run as one: one of them may not be split, or a step that is none of them
    has to run between two of them.
    """
    cone = {last}
    for step in reversed(order):
        if (
            step is not last
            and not isinstance(step, Load)
            and used_in.get(step)
            and used_in[step] <= cone
            and not any(kernel.binding.var in outputs for kernel in step.kernels)
        ):
            cone.add(step)
    if any(s.is_impure or s.runs_first or isinstance(s, SlicedStep) for s in cone):
        return []
    behind: set[Step] = set()  # other steps that run after one of the cone
    for step in order:
        if not step.after.keys().isdisjoint(behind) or (
            step not in cone and not step.after.keys().isdisjoint(cone)
        ):
            if step in cone:
                return []
            behind.add(step)
    return [step for step in order if step in cone]


def _sliced_step(cone: Sequence[Step], slicing: Slicing) -> SlicedStep:
    last = slicing.kernels[-1]
    own = {buffer for step in cone for kernel in step.kernels for buffer in kernel.allocates}
    uses = {buffer for step in cone for kernel in step.kernels for buffer in kernel.uses} - own
    step = SlicedStep([Kernel(last.binding, uses, last.allocates)], slicing=slicing)
    for old in cone:
        step.reads.update(old.reads)
        step.operands.update(dict.fromkeys(o for o in old.operands if o not in cone))
        step.after.update(dict.fromkeys(other for other in old.after if other not in cone))
    return step


def find_slicing(graph: TransformGraph, cone: Sequence[Step], kernels: Kernels) -> Slicing | None:
    """How a cone is computed slice by slice; None if it is not independent along the first axis."""
    bindings = [kernel for step in cone for kernel in step.kernels]
    result = bindings[-1].binding.var
    shape = _static_shape(result.ty)
    if len(bindings) < 2 or not shape or shape[0] < 2:
        return None
    axes: dict[Operand, int | None] = {result: 0}
    inside = {kernel.binding.var for kernel in bindings}
    slicing = Slicing(list(cone), {}, shape[0])
    for kernel in reversed(bindings):
        var, value = kernel.binding.var, kernel.binding.value
        axis = axes.get(var)
        legalized = kernels.of(value)
        is_operator = isinstance(value, ir.Call) and value.op != ir.Op.get("relax.call_tir")
        if axis is None or legalized is None or not is_operator:
            return None
        axis_of = operand_axes(legalized.kernel, axis)
        if axis_of is None:
            return None
        variables = relax.analysis.free_vars(value)[:]
        operands = slicing.operands(graph, kernel)
        for parameter, operand_axis in axis_of.items():
            position = legalized.operands[parameter]
            if position is None:
                if operand_axis is not None:
                    return None  # a constant that would have to be sliced
                continue
            operand = operands.get(variables[position])
            if operand is None or (operand in inside and operand_axis is None):
                return None
            if axes.setdefault(operand, operand_axis) != operand_axis:
                return None
    for operand, axis in axes.items():
        if axis is not None:
            operand_shape = _static_shape(operand.ty)
            if operand_shape is None or operand_shape[axis] != slicing.length:
                return None
            slicing.axes[operand] = axis
    for rows in (1, 2):
        if not _types_agree(graph, slicing, rows):
            return None
    return slicing


def _types_agree(graph: TransformGraph, slicing: Slicing, rows: int) -> bool:
    """Whether each operator makes a slice of slices, as type inference sees it."""
    for kernel in slicing.kernels:
        operands = slicing.operands(graph, kernel)
        stand_ins: dict[relax.Var, relax.Expr] = {
            var: relax.Var(var.name, sliced_type(operand.ty, slicing.axes[operand], rows))
            for var, operand in operands.items()
            if operand in slicing.axes
        }
        try:
            call = relax.BlockBuilder().normalize(with_operands(kernel.binding.value, stand_ins))
        except Exception:  # what TVM raises where the types of operands do not fit
            return False
        var = kernel.binding.var
        expected = sliced_type(var.ty, slicing.axes[var], rows)
        if not tvm_ffi.structural_equal(call.ty, expected):
            return False
    return True


def with_operands(call: ir.Call, operands: Mapping[relax.Var, relax.Expr]) -> ir.Call:
    """The call with other operands; its type is to be inferred."""

    def replaced(arg: relax.Expr) -> relax.Expr:
        if isinstance(arg, relax.Var):
            return operands.get(arg, arg)
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([replaced(field) for field in arg.fields[:]])
        return arg

    args = [replaced(arg) for arg in call.args[:]]
    return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)


def sliced_type(ty: relax.TensorType, axis: int, rows: int) -> relax.TensorType:
    """The type of a slice of so many rows along an axis."""
    shape = list(ty.shape.values[:])
    shape[axis] = tirx.const(rows, "int64")
    return relax.TensorType(shape, ty.dtype, ty.vdevice)


def _static_shape(ty: ir.Type) -> list[int] | None:
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        return None
    dims = ty.shape.values[:]
    if not all(isinstance(dim, tirx.IntImm) for dim in dims):
        return None
    return [int(dim) for dim in dims]
