"""Which bits a value is made of.

Definition
----------
A *field* is consecutive bits of a value: bits of one element that is read, xor a constant; or a
constant. Shifts and masks by constants, casts between integers that keep bits, ``|`` and ``+`` of
fields that do not overlap, and ``^`` with a constant have fields; sums, products, and casts of
floats do not: they *compute*.

A shift by an index reads bits from there on; whether they are in the element is asked last, when
masks have left those that count.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tvm_ffi
from tvm import ir, relax, tirx

from .emulated_floats import bits_of_constant
from .index import Form, NoRelayout, constant
from .size import Size
from .te_block import loads_in
from .tir_forms import IndexReader, choice_of

__all__ = ["Field", "Source", "ValueReader", "bits_of", "bits_of_choice", "is_of_bits"]

_FLOATS = {"float16": "<e", "float32": "<f", "float64": "<d"}
_CALLS = {
    "tirx.bitwise_and": "BitwiseAnd",
    "tirx.bitwise_or": "BitwiseOr",
    "tirx.bitwise_xor": "BitwiseXor",
    "tirx.bitwise_not": "BitwiseNot",
    "tirx.shift_left": "LShift",
    "tirx.shift_right": "RShift",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Bits in an element of a parameter, from ``bit`` on.

    Attributes
    ----------
    param : int
    element : Form
        Where the element begins, in bits from the first one of the parameter.
    bit : Form
    width : int
        Of the element.
    """

    param: int
    element: Form
    bit: Form
    width: int


@dataclasses.dataclass(frozen=True)
class Field:
    """Bits of a value: see the definition. Without a source, a constant.

    Attributes
    ----------
    low, width : int
    source : Source or None
    flip : int
        Xor; or the constant.
    is_sign : bool
        Copies of a sign: to be masked, or else it is computed.
    """

    low: int
    width: int
    source: Source | None = None
    flip: int = 0
    is_sign: bool = False

    def window(self, low: int, high: int) -> Field:
        """The part of the field from one bit of the value to another one."""
        by = low - self.low
        source = self.source
        if source is not None and by:
            source = dataclasses.replace(source, bit=source.bit.plus(constant(by)))
        flip = self.flip >> by & _ones(high - low)
        return Field(low, high - low, source, flip, self.is_sign)

    @property
    def is_constant(self) -> bool:
        """Whether nothing is read."""
        return self.source is None and not self.is_sign


def bits_of(dtype: str) -> int:
    """How many bits an element takes in memory; 0 if that is not known here."""
    known = tvm_ffi.dtype(dtype)
    bits = 8 if dtype == "bool" else known.bits
    return bits if known.lanes == 1 and bits % 8 == 0 else 0


def is_of_bits(call: ir.Call) -> bool:
    """Whether a call is an operation on bits, the same for any."""
    name = getattr(call.op, "name", "")
    return name in _CALLS or name == "tirx.reinterpret"


def _ones(width: int) -> int:
    return (1 << width) - 1


class ValueReader:
    """Reads values of elements.

    Parameters
    ----------
    indices : IndexReader
    params : mapping
        The number of each tensor parameter, and the strides of its axes in bits.
    bits : mapping
        How many each parameter has, by its number.
    """

    def __init__(
        self,
        indices: IndexReader,
        params: Mapping[relax.Var, tuple[int, list]],
        bits: Mapping[int, Size],
    ) -> None:
        self._indices = indices
        self._params = params
        self._bits = bits

    def place(self, buffer: relax.Var, indices: Iterable[ir.Expr]) -> tuple[int, Form]:
        """Which parameter an element is of, and where it begins, in bits."""
        if buffer not in self._params:
            raise NoRelayout("has intermediate buffers")
        number, strides = self._params[buffer]
        place = constant(0)
        for index, stride in zip(indices, strides, strict=True):
            place = place.plus(self._indices.form(index), stride)
        return number, place

    def is_inside(self, load: ir.TensorLoad) -> bool:
        """Whether an element is in the memory of its parameter, at all points of the box."""
        number, place = self.place(load.source, load.indices[:])
        last = self._bits[number] - bits_of(str(load.ty))
        return self._indices.sizes.is_within(place, last + 1)

    def fields(self, value: ir.Expr) -> list[Field] | None:
        """The fields of a value, from the lowest bit on; None if it is computed."""
        dtype = str(value.ty)
        if isinstance(value, ir.TensorLoad):
            number, element = self.place(value.source, value.indices[:])
            width = bits_of(dtype)
            return [Field(0, width, Source(number, element, constant(0), width))]
        if isinstance(value, (tirx.IntImm, tirx.FloatImm)):
            bits = _constant_bits(value, dtype)
            return None if bits is None else [Field(0, bits_of(dtype), None, bits)]
        choice = choice_of(value)
        if choice is not None:
            if loads_in(choice[0]):
                return None
            return self.fields(choice[1] if self._indices.holds(choice[0]) else choice[2])
        if isinstance(value, tirx.Cast):
            return self._cast(value, dtype)
        if isinstance(value, ir.Call):
            name = getattr(value.op, "name", "")
            if name == "tirx.reinterpret":
                before, after = bits_of(str(value.args[0].ty)), bits_of(dtype)
                return self.fields(value.args[0]) if before == after > 0 else None
            operands = list(value.args[:])
            kind = _CALLS.get(name, "")
        else:
            kind = type(value).__name__
            operands = [value.a, value.b] if hasattr(value, "b") else []
            operands = [value.a] if kind == "BitwiseNot" else operands
        if not dtype.startswith(("int", "uint")):
            return None
        return self._operation(kind, operands, bits_of(dtype), dtype)

    def _cast(self, value: tirx.Cast, dtype: str) -> list[Field] | None:
        source = str(value.value.ty)
        if source == dtype:
            return self.fields(value.value)
        if not all(kind.startswith(("int", "uint")) for kind in (source, dtype)):
            return None
        before, after = bits_of(source), bits_of(dtype)
        fields = self.fields(value.value) if before and after else None
        if fields is None or after <= before:
            return fields and list(_cut(fields, 0, after))
        return [*fields, Field(before, after - before, is_sign=source.startswith("int"))]

    def _operation(
        self, kind: str, operands: Sequence[ir.Expr], width: int, dtype: str
    ) -> list[Field] | None:
        if kind == "BitwiseNot":
            fields = self.fields(operands[0])
            return fields and [_flipped(field, _ones(field.width)) for field in fields]
        if kind in ("LShift", "RShift"):
            fields = self.fields(operands[0])
            return fields and self._shifted(kind, fields, operands[1], width, dtype)
        if kind in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "Add"):
            one = self.fields(operands[0])
            two = one and self.fields(operands[1])
            return one and two and _combined(kind, one, two, width)
        return None

    def _shifted(
        self, kind: str, fields: list[Field], by: ir.Expr, width: int, dtype: str
    ) -> list[Field] | None:
        while isinstance(by, tirx.Cast):
            by = by.value
        shift = self._indices.form(by) if not loads_in(by) else None
        if shift is None:
            return None
        if not shift.terms and isinstance(shift.const, int):
            count = shift.const
            if not 0 <= count < width:
                raise NoRelayout("shifts by more bits than there are")
            if kind == "LShift":
                kept = [
                    dataclasses.replace(field, low=field.low + count)
                    for field in _cut(fields, 0, width - count)
                ]
                return [Field(0, count), *kept] if count else kept
            kept = [
                dataclasses.replace(field, low=field.low - count)
                for field in _cut(fields, count, width)
            ]
            is_sign = not dtype.startswith("uint")
            return [*kept, Field(width - count, count, is_sign=is_sign)] if count else kept
        source = fields[0].source
        if kind != "RShift" or len(fields) != 1 or source is None or fields[0].flip:
            return None
        return [Field(0, width, dataclasses.replace(source, bit=source.bit.plus(shift)))]


def bits_of_choice(value: ir.Expr, as_bits: Mapping[relax.Var, relax.Var]) -> ir.Expr | None:
    """What is an element, a constant, or one of them at each point, as an unsigned number.

    Parameters
    ----------
    value : tvm.ir.Expr
    as_bits : mapping
        What stands for the bits of each variable.

    Returns
    -------
    tvm.ir.Expr or None
        None if it is computed.
    """
    if isinstance(value, relax.Var):
        return as_bits.get(value)
    if isinstance(value, (tirx.IntImm, tirx.FloatImm)):
        dtype = str(value.ty)
        bits = _constant_bits(value, dtype)
        return None if bits is None else tirx.const(bits, f"uint{bits_of(dtype)}")
    if isinstance(value, tirx.Select):
        one, other = (bits_of_choice(v, as_bits) for v in (value.true_value, value.false_value))
        return None if one is None or other is None else tirx.Select(value.condition, one, other)
    return None


def _constant_bits(value: ir.Expr, dtype: str) -> int | None:
    if isinstance(value, tirx.IntImm):
        return int(value.value) & _ones(bits_of(dtype))
    number = float(value.value)
    if math.isnan(number):
        return None
    if dtype in _FLOATS:
        try:
            return int.from_bytes(struct.pack(_FLOATS[dtype], number), "little")
        except OverflowError:
            return None
    bits = bits_of_constant(value)
    return None if bits is None else int(bits.value)


def _flipped(field: Field, flip: int) -> Field:
    return dataclasses.replace(field, flip=field.flip ^ flip)


def _cut(fields: Iterable[Field], low: int, high: int) -> Iterator[Field]:
    """The fields from one bit to another one."""
    for field in fields:
        start, end = max(field.low, low), min(field.low + field.width, high)
        if start < end:
            yield field.window(start, end)


def _runs(field: Field) -> Iterator[Field]:
    """A constant as runs of equal bits."""
    start = 0
    for bit in range(1, field.width + 1):
        if bit == field.width or (field.flip >> bit ^ field.flip >> start) & 1:
            yield field.window(field.low + start, field.low + bit)
            start = bit


def _combined(kind: str, one: list[Field], two: list[Field], width: int) -> list[Field] | None:
    if kind != "BitwiseXor":
        one, two = (
            [run for f in fields for run in (_runs(f) if f.is_constant else [f])]
            for fields in (one, two)
        )
    edges = sorted({field.low for field in (*one, *two)} | {width})
    found: list[Field] = []
    for low, high in itertools.pairwise(edges):
        (left,), (right,) = (list(_cut(fields, low, high)) for fields in (one, two))
        if not left.is_constant:
            left, right = right, left
        if not left.is_constant:
            return None
        if kind == "BitwiseXor":
            found.append(_flipped(right, left.flip))
        elif kind == "BitwiseAnd":
            found.append(right if left.flip else left)
        elif left.flip == 0:
            found.append(right)
        elif kind == "BitwiseOr":
            found.append(left)
        else:
            return None
    return _without_seams(found)


def _without_seams(fields: list[Field]) -> list[Field]:
    """Fields that go on in the next one are one with it."""
    found: list[Field] = []
    for field in fields:
        last = found[-1] if found else None
        if last is not None and _goes_on(last, field):
            flip = last.flip | field.flip << last.width
            found[-1] = Field(last.low, last.width + field.width, last.source, flip, last.is_sign)
        else:
            found.append(field)
    return found


def _goes_on(field: Field, following: Field) -> bool:
    one, two = field.source, following.source
    if one is None or two is None:
        return one is two and field.is_sign == following.is_sign
    return (one.param, one.element) == (two.param, two.element) and one.bit.plus(
        constant(field.width)
    ) == two.bit
