"""Values that can be computed slice by slice, so that their temporaries are slices too.

Definition
----------
A result is *independent* along its first axis if slice ``a:b`` of it is computed from slices
``a:b`` of its operands, along one axis each, and from operands as a whole, by the same operators.
That is read off the kernels (:mod:`..relayout.kernel_slices`), and again off those of slices of any
length: only the axis may depend on it. So the slices are computed by the same arithmetic, and the
bits are the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import tvm_ffi
from tvm import ir, relax, tirx

from ..ir.byte_size import size_of
from ..ir.kernels import Kernels
from ..relayout.kernel_slices import operand_axes
from .steps import Kernel, Step
from .transform_graph import TransformGraph
from .weights import Weight

__all__ = ["Operand", "Slicing", "find_slicing", "sliced_type", "with_operands"]

MOST_SLICES = 256  # the slices are written out one after the other

Operand: TypeAlias = Weight | relax.Var


@dataclasses.dataclass
class Slicing:
    """How a value is computed slice by slice.

    Attributes
    ----------
    steps : list of Step
        That compute it, in order. What is one kernel after fusion stays one in each slice.
    operands : dict
        For each kernel what the variables of its call stand for.
    axes : dict
        The axis along which each value is sliced: of the steps, weights, and results of other
        steps. Operands that are taken as a whole are not in it.
    length : int
        Of that axis.
    """

    steps: list[Step]
    operands: dict[Kernel, dict[relax.Var, Operand]]
    axes: dict[Operand, int]
    length: int

    @property
    def result(self) -> relax.Var:
        """The value that is computed."""
        return self.steps[-1].kernels[-1].binding.var

    def outside(self) -> set[Operand]:
        """What more than one step sees: the result, and what one computes and another reads."""
        seen: set[Operand] = {self.result}
        for step in self.steps:
            own = {kernel.binding.var for kernel in step.kernels}
            for kernel in step.kernels:
                seen.update(v for v in self.operands[kernel].values() if v not in own)
        return seen

    def read(self, step: Step) -> dict[Operand, relax.Var]:
        """What a step reads slices of from outside, and the name by which it does.

        They are there before its first kernel runs.
        """
        inside = {kernel.binding.var for kernel in self.operands}
        found: dict[Operand, relax.Var] = {}
        for kernel in step.kernels:
            for var, value in self.operands[kernel].items():
                if value in self.axes and value not in inside:
                    found.setdefault(value, var)
        return found

    @property
    def least_rows(self) -> int:
        """Of a slice, where there are as many as there may be."""
        return -(-self.length // MOST_SLICES)

    @functools.cached_property
    def bytes_of_row(self) -> int:
        """The most that a slice of one row takes, besides the result as a whole."""
        last: dict[Operand, Kernel | None] = {}
        for kernel, operands in self.operands.items():
            last.update(dict.fromkeys(operands.values(), kernel))
        last[self.result] = None
        live: dict[Operand, int] = {}
        most = 0
        for step in self.steps:
            for value in self.read(step):
                live[value] = self._row(value)
            for kernel in step.kernels:
                live[kernel.binding.var] = self._row(kernel.binding.var)
                most = max(most, sum(live.values()))
                live = {value: size for value, size in live.items() if last[value] is not kernel}
        return most

    def _row(self, value: Operand) -> int:
        size = size_of(value.ty)
        assert isinstance(size, int)
        return size // self.length


def find_slicing(graph: TransformGraph, steps: Sequence[Step], kernels: Kernels) -> Slicing | None:
    """How the last of some steps, which run in this order, is computed slice by slice.

    None if it is not independent along the first axis, or has no temporaries.
    """
    every = [kernel for step in steps for kernel in step.kernels]
    result = every[-1].binding.var
    shape = _static_shape(result.ty)
    if len(every) < 2 or not shape or shape[0] < 2:
        return None
    axes: dict[Operand, int | None] = {result: 0}
    slicing = Slicing(list(steps), {k: _operands(graph, k) for k in every}, {}, shape[0])
    for kernel in reversed(every):
        var, value = kernel.binding.var, kernel.binding.value
        axis = axes.get(var)
        legalized = kernels.of(value)
        is_operator = isinstance(value, ir.Call) and value.op != ir.Op.get("relax.call_tir")
        if axis is None or legalized is None or not is_operator:
            return None  # nobody reads it, or somebody as a whole; or it is no kernel
        axis_of = operand_axes(legalized.kernel, axis)
        if axis_of is None:
            return None
        variables = relax.analysis.free_vars(value)[:]
        operands = slicing.operands[kernel]
        for parameter, operand_axis in axis_of.items():
            position = legalized.operands[parameter]
            if position is None:
                if operand_axis is not None:
                    return None  # a constant that would have to be sliced
                continue
            operand = operands.get(variables[position])
            if operand is None:
                return None  # a field of what a step makes
            if axes.setdefault(operand, operand_axis) != operand_axis:
                return None
    for operand, axis in axes.items():
        if axis is not None:
            operand_shape = _static_shape(operand.ty)
            if operand_shape is None or operand_shape[axis] != slicing.length:
                return None
            slicing.axes[operand] = axis
    calls = _calls_of_slices(slicing)
    return slicing if calls and _are_same_kernels(slicing, kernels, calls) else None


_ROWS = tirx.Var("rows", "int64")  # one for all, so that kernels are known again


def _operands(graph: TransformGraph, kernel: Kernel) -> dict[relax.Var, Operand]:
    """What the variables of a kernel's call stand for."""
    found = {}
    for var in relax.analysis.free_vars(kernel.binding.value)[:]:
        known = graph.resolve(var)
        if isinstance(known, (Weight, relax.Var)):
            found[var] = known
    return found


def _calls_of_slices(slicing: Slicing) -> dict[Kernel, ir.Call]:
    """The operators of slices of any length; none if one is not inferred to make a slice."""
    calls = {}
    for kernel, operands in slicing.operands.items():
        stand_ins: dict[relax.Var, relax.Expr] = {
            var: relax.Var(var.name, _with_rows(operand.ty, slicing.axes[operand], _ROWS))
            for var, operand in operands.items()
            if operand in slicing.axes
        }
        try:
            call = relax.BlockBuilder().normalize(with_operands(kernel.binding.value, stand_ins))
        except Exception:  # what TVM raises where the types of operands do not fit
            return {}
        var = kernel.binding.var
        if not tvm_ffi.structural_equal(call.ty, _with_rows(var.ty, slicing.axes[var], _ROWS)):
            return {}
        calls[kernel] = call
    return calls


def _are_same_kernels(slicing: Slicing, kernels: Kernels, calls: Mapping[Kernel, ir.Call]) -> bool:
    """Whether kernels of slices of any length read as those of the whole do.

    What is made of the length as a number is read otherwise, or not at all.
    """
    for kernel, call in calls.items():
        axis = slicing.axes[kernel.binding.var]
        whole, part = kernels.of(kernel.binding.value), kernels.of(call)
        if whole is None or part is None or whole.operands != part.operands:
            return False
        if operand_axes(whole.kernel, axis) != operand_axes(part.kernel, axis):
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
    return _with_rows(ty, axis, tirx.const(rows, "int64"))


def _with_rows(ty: relax.TensorType, axis: int, rows: ir.Expr) -> relax.TensorType:
    shape = list(ty.shape.values[:])
    shape[axis] = rows
    return relax.TensorType(shape, ty.dtype, ty.vdevice)


def _static_shape(ty: ir.Type) -> list[int] | None:
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        return None
    dims = ty.shape.values[:]
    if not all(isinstance(dim, tirx.IntImm) for dim in dims):
        return None
    return [int(dim) for dim in dims]
