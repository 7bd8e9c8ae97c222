"""What the symbolic shapes of a lowered function are: its types do not say it any more.

``VMShapeLower`` (src/relax/backend/vm/vm_shape_lower.cc) keeps the values of dimensions in a
tensor, the shape heap. A slot is filled where a type is matched (``vm.builtin.match_shape``), or by
a host function that computes it from others; ``vm.builtin.make_shape`` reads slots. Here each slot
has the expression that it will hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import ir, relax, tirx

__all__ = ["MAKE_SHAPE", "MATCH_SHAPE", "ShapeHeap"]

MATCH_SHAPE = "vm.builtin.match_shape"
MAKE_SHAPE = "vm.builtin.make_shape"
# MatchShapeCode and MakeShapeCode of include/tvm/runtime/vm/builtin.h.
_STORE = 1
_LOAD = 1
_BINARY = (tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Max, tirx.Min)


class ShapeHeap:
    """The expressions in the slots of a shape heap, as the bindings of a function fill them."""

    def __init__(self, sequence: relax.SeqExpr | None = None) -> None:
        self.slots: dict[int, ir.PrimExpr] = {}
        self._casts = {} if sequence is None else _casts(sequence)

    def match(self, call: relax.Call) -> None:
        """Learn from a call that matches the shape of a tensor, or a shape, of known type."""
        value, _heap, rank, *codes = call.args[:]
        dims = self._casts[value] if value in self._casts else _dimensions(value.ty)
        if dims is None or len(dims) != int(rank.value):
            return
        for i, dim in enumerate(dims):
            if int(codes[2 * i].value) == _STORE:
                self.slots[int(codes[2 * i + 1].value)] = dim

    def compute(self, function: tirx.PrimFunc) -> None:
        """Learn from a host function that fills slots."""
        pending = [function.body]
        while pending:
            statement = pending.pop(0)
            if isinstance(statement, tirx.SeqStmt):
                pending = [*statement.seq[:], *pending]
            elif isinstance(statement, tirx.BufferStore):
                value = self._value(statement.value)
                (slot,) = statement.indices[:]
                if value is not None and isinstance(slot, tirx.IntImm):
                    self.slots[int(slot.value)] = value

    def shape(self, call: relax.Call) -> list[ir.PrimExpr] | None:
        """The dimensions of a shape that a call makes; None if one is not known."""
        _heap, _rank, *codes = call.args[:]
        dims = []
        for code, value in zip(codes[::2], codes[1::2], strict=True):
            number = int(value.value)
            if int(code.value) != _LOAD:
                dims.append(tirx.const(number, "int64"))
            elif number in self.slots:
                dims.append(self.slots[number])
            else:
                return None
        return dims

    def _value(self, expr: ir.PrimExpr) -> ir.PrimExpr | None:
        if isinstance(expr, ir.TensorLoad):
            (slot,) = expr.indices[:]
            return self.slots.get(int(slot.value)) if isinstance(slot, tirx.IntImm) else None
        if isinstance(expr, _BINARY):
            a, b = self._value(expr.a), self._value(expr.b)
            return None if a is None or b is None else type(expr)(a, b)
        return expr if isinstance(expr, tirx.IntImm) else None


def _casts(sequence: relax.SeqExpr) -> dict[relax.Var, Sequence[ir.PrimExpr]]:
    """What shapes are cast to: VMShapeLower leaves a second name of that type."""
    return {
        binding.value: binding.var.ty.values[:]
        for block in sequence.blocks[:]
        for binding in block.bindings[:]
        if type(binding.value) is relax.Var
        and isinstance(binding.var.ty, relax.ShapeType)
        and binding.var.ty.values is not None
    }


def _dimensions(ty: ir.Type) -> Sequence[ir.PrimExpr] | None:
    if isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr):
        return ty.shape.values[:]
    if isinstance(ty, relax.ShapeType) and ty.values is not None:
        return ty.values[:]
    return None
