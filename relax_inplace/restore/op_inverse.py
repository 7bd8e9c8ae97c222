"""What undoes an operator: for each tensor that a call reads, how it is made from what it returns.

Definition
----------
Undone are the operators that keep every bit of an operand: those that move elements, by the
operators that move them back (``concat`` by slices, ``split`` by ``concat``), exact casts
(:mod:`..relayout.exact_cast`), ``bitwise_not`` and ``bitwise_xor`` with a constant. Any other
operator of one tensor is undone if the kernel that it becomes is, and so is a kernel that is called
by name: see :mod:`..relayout.kernel_inverse`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tvm_ffi
from tvm import ir, relax, sym, tirx
from tvm_ffi import structural

from ..ir.kernels import Kernels
from ..relayout.exact_cast import cast_back, is_bit_cast, lossy
from ..relayout.kernel_inverse import Made, make_elementwise, undo_kernel

__all__ = ["Undo", "Undoing", "operation"]


@dataclasses.dataclass(eq=False)
class Undo:
    """How an operand of a call is made again from what the call returned.

    Attributes
    ----------
    done : str
        By what.
    make : callable
        Makes the expression from the results, where a ``relax.BlockBuilder`` is active.
    """

    done: str
    make: Callable[..., relax.Expr]


_Types: TypeAlias = Sequence[relax.TensorType]
# From the call, the types of its operands and of its results: for each operand how, or why not.
_Rule: TypeAlias = Callable[[ir.Call, _Types, _Types], "list[Undo | str]"]


class Undoing:
    """What undoes the calls of a module. A kernel that is called again is looked at once.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        Where the kernels are that ``call_tir`` names.
    """

    def __init__(self, mod: ir.IRModule):
        self.mod = mod
        self._kernels = Kernels(mod)
        self._known: dict[object, Made | str] = {}

    def of(
        self, call: ir.Call, operands: Sequence[ir.Type], results: Sequence[ir.Type]
    ) -> list[Undo | str]:
        """For each operand how it is made again, or why it is not.

        Parameters
        ----------
        call : tvm.ir.Call
        operands : sequence of tvm.ir.Type
            Of the values that it reads, through tuples.
        results : sequence of tvm.ir.Type
            Of the values that it returns, through tuples.
        """
        name = operation(call)
        refused: list[Undo | str] = [f"`{name}` has no inverse"] * len(operands)
        if not all(_has_shape(ty) for ty in (*operands, *results)):
            return [f"`{name}` has a tensor of unknown shape"] * len(operands)
        if not isinstance(call.op, ir.Op):
            return refused
        rule = _RULES.get(str(call.op.name))
        if rule is not None:
            return rule(call, operands, results)
        if len(results) != 1:
            return refused
        if call.op.name == "relax.call_tir":
            undone = self._kernel(call, name, operands, results[0])
            if isinstance(undone, str):
                return [undone] * len(operands)
        else:
            legalized = self._kernels.of(call) if len(operands) == 1 else None
            if legalized is None:
                return refused
            undone = self._undone(legalized.kernel, name, operands, results[0], [])
            if isinstance(undone, str):  # what is wrong there says nothing of the operator
                return refused
        return [Undo(f"undo_{name}", undone)]

    def _kernel(
        self, call: ir.Call, name: str, operands: _Types, result: relax.TensorType
    ) -> Made | str:
        given = call.args[1].fields[:] if isinstance(call.args[1], relax.Tuple) else []
        sizes = [number for number in given if isinstance(number.ty, ir.PrimType)]
        sizes += call.args[2].values[:] if len(call.args) > 2 else []
        return self._undone(self.mod[call.args[0]], name, operands, result, sizes)

    def _undone(
        self,
        kernel: tirx.PrimFunc,
        name: str,
        operands: _Types,
        result: relax.TensorType,
        sizes: Sequence[ir.Expr],
    ) -> Made | str:
        types = relax.TupleType([*operands, result, relax.ShapeType(sizes)])
        key = kernel, name, structural.StructuralKey(types)
        if key not in self._known:
            self._known[key] = undo_kernel(kernel, name, operands, result, sizes)
        return self._known[key]


def operation(call: ir.Call) -> str:
    """What a call is of, in short."""
    if not isinstance(call.op, ir.Op):
        return str(getattr(call.op, "name_hint", None) or getattr(call.op, "global_symbol", "call"))
    name = str(call.op.name).removeprefix("relax.")
    if not name.startswith("call_"):
        return name
    callee = call.args[0]
    return str(callee.name_hint if isinstance(callee, ir.GlobalVar) else callee.global_symbol)


def _has_shape(ty: ir.Type) -> bool:
    return isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr)


def _shape(ty: relax.TensorType) -> list[ir.Expr]:
    return list(ty.shape.values[:])


def _axis(axis: Any, ty: relax.TensorType) -> int:
    return int(axis) % len(ty.shape.values)


# -- one tensor in another order ------------------------------------------------------------------


def _permuted(call: ir.Call, operands: _Types, _results: _Types) -> list[Undo | str]:
    rank = len(operands[0].shape.values)
    given = call.attrs.axes
    axes = list(range(rank))[::-1] if given is None else [int(axis) % rank for axis in given[:]]
    back = None if given is None else [axes.index(axis) for axis in range(rank)]
    return [Undo("permute_dims", lambda value: relax.op.permute_dims(value, back))]


def _reshaped(call: ir.Call, operands: _Types, results: _Types) -> list[Undo | str]:
    sizes = [_product(_shape(ty)) for ty in (operands[0], results[0])]
    if not sym.Analyzer().can_prove_equal(*sizes):
        return [f"`{operation(call)}` is not proved to keep every element"]
    shape = _shape(operands[0])
    return [Undo("reshape", lambda value: relax.op.reshape(value, shape))]


def _product(sizes: Sequence[ir.Expr]) -> ir.Expr:
    product: ir.Expr = tirx.const(1, "int64")
    for size in sizes:
        product = product * size
    return product


def _flipped(call: ir.Call, _operands: _Types, _results: _Types) -> list[Undo | str]:
    return [Undo("flip", lambda value: relax.op.flip(value, call.attrs.axis))]


# -- several tensors ------------------------------------------------------------------------------


def _concatenated(call: ir.Call, operands: _Types, _results: _Types) -> list[Undo | str]:
    if call.attrs.axis is None:
        return ["`concat` without an axis has no inverse"] * len(operands)
    axis, begin = _axis(call.attrs.axis, operands[0]), tirx.const(0, "int64")
    undone: list[Undo | str] = []
    for ty in operands:
        end = sym.Analyzer().simplify(begin + _shape(ty)[axis])
        undone.append(Undo("strided_slice", _slice(axis, begin, end)))
        begin = end
    return undone


def _slice(axis: int, begin: ir.Expr, end: ir.Expr) -> Callable[[relax.Expr], relax.Expr]:
    return lambda value: relax.op.strided_slice(value, [axis], [begin], [end], assume_inbound=True)


def _stacked(call: ir.Call, operands: _Types, results: _Types) -> list[Undo | str]:
    axis = _axis(call.attrs.axis, results[0])

    def one(index: int) -> Callable[[relax.Expr], relax.Expr]:
        cut = _slice(axis, tirx.const(index, "int64"), tirx.const(index + 1, "int64"))
        return lambda value: relax.op.squeeze(cut(value), [axis])

    return [Undo("strided_slice", one(index)) for index in range(len(operands))]


def _split(call: ir.Call, operands: _Types, results: _Types) -> list[Undo | str]:
    axis = _axis(call.attrs.axis, operands[0])
    lengths = [_shape(ty)[axis] for ty in results]
    total: ir.Expr = tirx.const(0, "int64")
    for length in lengths:
        total = total + length
    given = call.attrs.indices_or_sections
    cuts = [] if isinstance(given, tirx.IntImm) else [int(index) for index in given[:]]
    if cuts != sorted(cuts) or not sym.Analyzer().can_prove_equal(total, _shape(operands[0])[axis]):
        return ["`split` is not proved to keep every element"]
    return [Undo("concat", lambda *values: relax.op.concat(list(values), axis))]


# -- each element by itself -----------------------------------------------------------------------


def _cast(_call: ir.Call, operands: _Types, results: _Types) -> list[Undo | str]:
    source, target = (str(ty.dtype) for ty in (operands[0], results[0]))
    back = cast_back(source, target)
    if back is None:
        return [lossy(source, target)]
    if is_bit_cast(source, target):
        return [Undo("astype", make_elementwise(f"undo_astype_{target}", back))]
    return [Undo("astype", lambda value: relax.op.astype(value, source))]


def _inverted(_call: ir.Call, operands: _Types, _results: _Types) -> list[Undo | str]:
    if not str(operands[0].dtype).startswith(("int", "uint")):
        return [f"`bitwise_not` of {operands[0].dtype} has no inverse"]
    return [Undo("bitwise_not", relax.op.bitwise_not)]


def _flipped_bits(call: ir.Call, operands: _Types, results: _Types) -> list[Undo | str]:
    undone: list[Undo | str] = ["`bitwise_xor` with no constant has no inverse"] * len(operands)
    constants = [isinstance(arg, ir.Constant) for arg in call.args[:]]
    if constants in ([False, True], [True, False]) and len(operands) == 2:
        flipped = call.args[constants.index(True)]
        tensor = constants.index(False)
        is_integer = str(operands[tensor].dtype).startswith(("int", "uint"))
        if is_integer and tvm_ffi.structural_equal(operands[tensor].shape, results[0].shape):
            undone[tensor] = Undo("bitwise_xor", lambda value: relax.op.bitwise_xor(value, flipped))
    return undone


_RULES: dict[str, _Rule] = {
    "relax.permute_dims": _permuted,
    "relax.reshape": _reshaped,
    "relax.flatten": _reshaped,
    "relax.expand_dims": _reshaped,
    "relax.squeeze": _reshaped,
    "relax.flip": _flipped,
    "relax.concat": _concatenated,
    "relax.stack": _stacked,
    "relax.split": _split,
    "relax.astype": _cast,
    "relax.bitwise_not": _inverted,
    "relax.bitwise_xor": _flipped_bits,
}
