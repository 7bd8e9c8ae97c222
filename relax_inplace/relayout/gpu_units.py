"""A description in units: what a GPU writes at once.

Definition
----------
A *unit* is 8, 16, 32 or 64 bits of the output, from a multiple of that on; a *word* is the same of
an input. A *part* is a piece of a description as a box of units. Its unit is put together from bits
of words, or computed from words that are elements. A part is *whole* if it makes all bits of its
units; bits that others make are 0 in it.

The unit of a description is that of its elements where it computes; else the largest that is made
of one word everywhere; else a byte.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm_ffi
from tvm import ir, relax, tirx

from .description import NUMBER, Digit, Piece, Relayout
from .fields import bits_of
from .size import Size, divided, expression, is_at_least_zero, over

__all__ = ["Part", "Read", "in_units"]

_WORDS = (8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Read:
    """A word of an input, at the place ``base + sum(d * step)``, in words.

    Attributes
    ----------
    param, bits : int
        The input, and the word's size.
    base : Size
    steps : tuple of Size
        For each digit of the part.
    """

    param: int
    bits: int
    base: Size
    steps: tuple[Size, ...]


@dataclasses.dataclass(frozen=True)
class Part:
    """A box of units, each at the place ``into + sum(d * step)``.

    Attributes
    ----------
    dtype : str
        Of a unit: an unsigned integer, or one that TVM may compute as float32, and rounds where it
        is stored (unsupported_dtype_legalize.cc).
    into : Size
    extents, steps : tuple of Size
        Of the digits, outermost first. None reaches as far as a step of the one before.
    reads : tuple of Read
    value : callable
        The unit, of its words, unsigned integers, and of its digits.
    is_whole : bool
    """

    dtype: str
    into: Size
    extents: tuple[Size, ...]
    steps: tuple[Size, ...]
    reads: tuple[Read, ...]
    value: Callable[[Sequence[ir.Expr], Sequence[ir.Expr]], ir.Expr]
    is_whole: bool

    @property
    def bits(self) -> int:
        """Of a unit."""
        return bits_of(self.dtype)

    @property
    def widest(self) -> int:
        """Bits of the largest unit or word."""
        return max(self.bits, *(read.bits for read in self.reads), 8)


def in_units(relayout: Relayout) -> list[Part] | None:
    """The pieces of a description in its unit; None if there is none."""
    computed = [piece.value.bits for piece in relayout.pieces if piece.value is not None]
    for unit in computed[:1] or reversed(_WORDS):
        found = [_part(piece, unit, relayout) for piece in relayout.pieces]
        parts = [part for part in found if part is not None and _is_nested(part)]
        one_word = all(part.is_whole and len(part.reads) < 2 for part in parts)
        if (
            len(parts) == len(found)
            and (one_word or computed or unit == 8)
            and len({part.dtype for part in parts}) == 1
        ):
            return parts
    return None


def _is_nested(part: Part) -> bool:
    reach: Size = 1
    for extent, step in zip(reversed(part.extents), reversed(part.steps), strict=True):
        if not is_at_least_zero(step - reach):
            return False
        reach = reach + step * (extent - 1)
    return True


def _part(piece: Piece, unit: int, relayout: Relayout) -> Part | None:
    into, low = divided(piece.into, unit)
    cut = _cut(piece.digits, unit, lambda digit: digit.into)
    if cut is None or not isinstance(low, int):
        return None
    outer, inner = ([digit for digit, is_in in cut if is_in is which] for which in (False, True))
    if piece.value is not None:
        made = None if inner or low else _computed(piece, outer)
        dtype, is_whole = _stored(str(piece.value.value.ty)), True
    else:
        made = _moved(piece, outer, inner, low, unit, relayout)
        dtype, is_whole = f"uint{unit}", math.prod(digit.extent for digit in inner) == unit
    if made is None:
        return None
    digits, reads, value = made
    steps = _quotients([digit.into for digit in digits], unit)
    extents = tuple(digit.extent for digit in digits)
    return None if steps is None else Part(dtype, into, extents, steps, reads, value, is_whole)


def _cut(
    digits: Sequence[Digit], size: int, step_of: Callable[[Digit], Size]
) -> list[tuple[Digit, bool]] | None:
    """Digits that go on by whole sizes, and such that stay in one; of some are made two."""
    found: list[tuple[Digit, bool]] = []
    for digit in digits:
        step = step_of(digit)
        length = over(size, step)
        if over(step, size) is not None:
            found.append((digit, False))
            continue
        if not isinstance(length, int) or length < 0:
            return None
        if isinstance(digit.extent, int) and digit.extent <= length:
            found.append((digit, True))
            continue
        times = over(digit.extent, length)
        if times is None:
            return None
        outer = Digit(times, digit.into * length, tuple(s * length for s in digit.read))
        found += [(outer, False), (Digit(length, digit.into, digit.read), True)]
    return found


def _quotients(sizes: Sequence[Size], by: int) -> tuple[Size, ...] | None:
    """All divided by a number, if that leaves nothing."""
    found = [over(size, by) for size in sizes]
    return None if None in found else tuple(found)  # type: ignore[arg-type]


# -- what is in a unit -----------------------------------------------------------------------------

_Value = Callable[[Sequence[Any], Sequence[Any]], ir.Expr]
_Made = tuple[list[Digit], tuple[Read, ...], _Value]


def _moved(
    piece: Piece, outer: list[Digit], inner: list[Any], low: int, unit: int, relayout: Relayout
) -> _Made | None:
    """The digits, the words, and how bits of them are put together."""
    pattern = piece.flip or piece.fill or 0
    if pattern and (not inner or inner[-1].extent != piece.digits[-1].extent):
        return None
    constant = sum(pattern << low + into for into, _ in _places(inner[:-1]))
    if constant >> 63 or low + sum((d.extent - 1) * d.into for d in inner) >= unit:
        return None
    if not piece.inputs:
        return outer, (), lambda _words, _at: tirx.const(constant, f"uint{unit}")
    # The fewest words; of those the smallest.
    made: _Made | None = None
    for size in _WORDS:
        if over(relayout.bits_of(piece.inputs[0][0]), size) is not None:
            other = _of_words(piece, outer, inner, size, (unit, low, constant))
            if other is not None and (made is None or len(other[1]) < len(made[1])):
                made = other
    return made


def _of_words(
    piece: Piece, outer: list[Digit], inner: list[Any], size: int, unit: tuple[int, int, int]
) -> _Made | None:
    ((param, base),) = piece.inputs
    cut = _cut(outer, size, lambda digit: digit.read[0])
    if cut is None:
        return None
    digits = [digit for digit, _ in cut]
    shifts: list[Any] = [digit.read[0] if is_in else 0 for digit, is_in in cut]
    run: Any = Digit(1, 1, (1,))
    if inner and (inner[-1].into, inner[-1].read[0]) == (1, 1):
        *inner, run = inner
    width = min(run.extent & -run.extent, size)
    starts = [base, *(digit.read[0] for digit in (*outer, *inner))]
    while _quotients(starts, width) is None:
        width //= 2
    fields = _places([*inner, Digit(run.extent // width, width, (width,))])
    places = [(into, *divided(base + read, size)) for into, read in fields]
    pairs: list[tuple[Any, Any]] = list(zip(digits, shifts, strict=True))
    reach = sum((digit.extent - 1) * shift for digit, shift in pairs if shift) + width
    if any(not isinstance(bit, int) or bit + reach > size for _, _, bit in places):
        return None
    words = list(dict.fromkeys(word for _, word, _ in places))
    steps = _quotients([0 if shift else digit.read[0] for digit, shift in pairs], size)
    assert steps is not None
    reads = tuple(Read(param, size, word, steps) for word in words)
    bits, low, constant = unit

    def value(loaded: Sequence[Any], at: Sequence[Any]) -> ir.Expr:
        dtype, total = f"uint{size}", None
        for into, word, bit in places:
            field = loaded[words.index(word)]
            shift: Any = tirx.const(bit, dtype)
            for digit, step in zip(at, shifts, strict=True):
                shift = shift + digit.astype(dtype) * tirx.const(step, dtype) if step else shift
            if bit or any(shifts):
                field = field >> shift
            if width < size:
                field = field & tirx.const((1 << width) - 1, dtype)
            field = field.astype(f"uint{bits}")
            if low + into:
                field = field << tirx.const(low + into, f"uint{bits}")
            total = field if total is None else total | field
        return total ^ tirx.const(constant, f"uint{bits}") if constant else total

    return digits, reads, value


def _places(digits: Sequence[Any]) -> list[tuple[int, Any]]:
    """Where a box of bits is written, and where it is read."""
    found = []
    for point in itertools.product(*(range(digit.extent) for digit in digits)):
        pairs = list(zip(point, digits, strict=True))
        read = sum(number * digit.read[0] for number, digit in pairs if digit.read)
        found.append((sum(number * digit.into for number, digit in pairs), read))
    return found


def _computed(piece: Piece, digits: list[Digit]) -> _Made | None:
    """The digits, the elements, and how they are computed with; numbers are of the digits."""
    assert piece.value is not None
    body, slots = piece.value.value, piece.value.slots
    reads = []
    numbers: dict[relax.Var, tuple[Size, list[Size]]] = {}
    for at, (slot, (param, base)) in enumerate(zip(slots, piece.inputs, strict=True)):
        steps = [digit.read[at] for digit in digits]
        if param == NUMBER:
            numbers[slot] = base, steps
            continue
        bits = bits_of(str(slot.ty))
        places = _quotients([base, *steps], bits)
        if places is None:
            return None
        reads.append(Read(param, bits, places[0], places[1:]))
    read = [slot for slot in slots if slot not in numbers]

    def value(elements: Sequence[Any], point: Sequence[Any]) -> ir.Expr:
        pairs = zip(read, elements, strict=True)
        known = {slot: _as(element, str(slot.ty)) for slot, element in pairs}
        for slot, (base, steps) in numbers.items():
            number = expression(base)
            for digit, step in zip(point, steps, strict=True):
                number = number + digit * expression(step) if step != 0 else number
            known[slot] = number.astype(str(slot.ty))
        made = tvm_ffi.structural_map(body, (relax.Var, lambda var: known.get(var, var)))
        return _as(made, _stored(str(body.ty)))

    return digits, tuple(reads), value


def _stored(dtype: str) -> str:
    is_small = dtype.startswith(("bfloat", "float8", "float6", "float4"))
    return dtype if is_small else f"uint{bits_of(dtype)}"


def _as(value: ir.Expr, dtype: str) -> ir.Expr:
    """The same bits."""
    if "bool" in (dtype, str(value.ty)):
        return value.astype(dtype)
    return value if str(value.ty) == dtype else tirx.reinterpret(dtype, value)
