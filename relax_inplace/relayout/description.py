"""What a kernel does to bits, as data.

Definition
----------
A *relayout* writes each bit of its output once, piece by piece. A piece is a box of digits, numbers
from 0 to below their extents. At each point of the box, bit ``into + sum(d * digit.into)`` of the
output is

- bit ``base + sum(d * digit.read)`` of an input, xor a bit of ``flip``: the piece *moves*;
- or a bit of the constant ``fill``: it reads nothing;
- or the first bit of an element that ``value`` *computes*, from the elements that begin at
  ``base + sum(d * digit.read)`` of its inputs. Of an input :data:`NUMBER`, that is
  the number itself.

Bits are counted from the lowest of the first byte on. Bit k of ``flip`` and ``fill`` is that for
the k-th value of the innermost digit.

In *normal form* digits are sorted by ``into``, from the outermost one, and as few as possible;
``into`` is above 0. A pattern of more than one bit keeps the digit that it is for, of 8 values
where that is possible. Sizes are ints, or polynomials of what is known at run time (:mod:`.size`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from tvm import ir, relax

from .coverage import Box
from .size import Size, nominal, over

__all__ = ["NUMBER", "Computed", "Digit", "Piece", "Relayout", "box_of", "normal"]

NUMBER = -1  # instead of a parameter: no element is read, the place is the number


@dataclasses.dataclass(frozen=True)
class Digit:
    """A loop of a piece.

    Attributes
    ----------
    extent : Size
    into : Size
        Bits from one value to the next, in the output.
    read : tuple of Size
        The same in each input that the piece reads; 0 repeats, below 0 falls.
    """

    extent: Size
    into: Size
    read: tuple[Size, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Computed:
    """An expression of elements.

    Attributes
    ----------
    value : tvm.ir.Expr
    slots : tuple of relax.Var
        What stands in it for the element of each input.
    bits : int
        Of the element that is computed.
    """

    value: ir.Expr
    slots: tuple[relax.Var, ...]
    bits: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """A box of bits, or of elements: see the definition.

    Attributes
    ----------
    digits : tuple of Digit
    into : Size
        The place in the output where all digits are 0, in bits.
    inputs : tuple
        Of each input the parameter, or NUMBER, and the place where all digits are 0, in bits.
    flip : int
    fill : int or None
    value : Computed or None
    """

    digits: tuple[Digit, ...]
    into: Size
    inputs: tuple[tuple[int, Size], ...]
    flip: int = 0
    fill: int | None = None
    value: Computed | None = None

    @property
    def moves(self) -> bool:
        """Whether the bits are those of an input, or their opposite."""
        return self.fill is None and self.value is None


@dataclasses.dataclass(frozen=True)
class Relayout:
    """What a kernel does for one output: see the definition.

    Attributes
    ----------
    output : int
        A parameter of the kernel.
    pieces : tuple of Piece
    bits : tuple
        Pairs: each parameter that is written or read, and how many bits it has.
    """

    output: int
    pieces: tuple[Piece, ...]
    bits: tuple[tuple[int, Size], ...]

    def bits_of(self, param: int) -> Size:
        """How many bits a parameter has."""
        return dict(self.bits)[param]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The parameters that are read."""
        return tuple(sorted({p for piece in self.pieces for p, _ in piece.inputs} - {NUMBER}))


def box_of(piece: Piece) -> Box:
    """The places of the output that a piece writes."""
    digits = tuple((digit.extent, digit.into) for digit in piece.digits)
    return piece.into, (*digits, (piece.value.bits, 1)) if piece.value is not None else digits


# -- normal form -----------------------------------------------------------------------------------


def normal(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The same pieces in normal form, those that follow each other as one; sorted by `into`."""
    found = [_normal(piece) for piece in pieces]
    alike: dict[object, list[Piece]] = {}
    for piece in found:
        alike.setdefault(_kind(piece), []).append(piece)
    joined = [piece for group in alike.values() for piece in _joined(group)]
    return tuple(sorted(joined, key=lambda piece: nominal(piece.into)))


def _kind(piece: Piece) -> object:
    params = tuple(param for param, _ in piece.inputs)
    return piece.digits, params, piece.flip, piece.fill, piece.value


def _normal(piece: Piece) -> Piece:
    digits = list(piece.digits)
    pattern = piece.flip or piece.fill
    rest = digits[:-1] if pattern else digits
    tail = digits[-1:] if pattern else []
    into, bases = piece.into, [base for _, base in piece.inputs]
    rising = []
    for digit in rest:
        if nominal(digit.into) < 0:  # counted from the other end
            last = digit.extent - 1
            into = into + digit.into * last
            bases = [base + step * last for base, step in zip(bases, digit.read, strict=True)]
            digit = Digit(digit.extent, -digit.into, tuple(-step for step in digit.read))
        rising.append(digit)
    rest = sorted((d for d in rising if d.extent != 1), key=lambda d: -nominal(d.into))
    flip, fill = piece.flip, piece.fill
    if pattern:
        rest, tail, pattern = _with_pattern_of_a_byte(rest, tail[0], pattern)
        flip, fill = (flip and pattern, fill and pattern)
    inputs = tuple((param, base) for (param, _), base in zip(piece.inputs, bases, strict=True))
    return Piece((*_merged(rest), *tail), into, inputs, flip, fill, piece.value)


def _merged(digits: Sequence[Digit]) -> list[Digit]:
    found: list[Digit] = []
    for digit in digits:
        if found and _follows(found[-1], digit):
            found[-1] = Digit(found[-1].extent * digit.extent, digit.into, digit.read)
        else:
            found.append(digit)
    return found


def _follows(outer: Digit, inner: Digit) -> bool:
    """Whether a step of the outer one is what all values of the inner one take."""
    return outer.into == inner.into * inner.extent and all(
        a == b * inner.extent for a, b in zip(outer.read, inner.read, strict=True)
    )


def _with_pattern_of_a_byte(
    digits: list[Digit], bits: Digit, pattern: int
) -> tuple[list[Digit], list[Digit], int]:
    """A pattern of more bits that repeats after 8 is one of 8; so is one of fewer, where it can."""
    width = bits.extent
    assert isinstance(width, int)
    while width > 8 and width % 16 == 0 and _repeats(pattern, width // 2):
        width //= 2
        pattern &= (1 << width) - 1
        outer = Digit(2, bits.into * width, tuple(step * width for step in bits.read))
        digits = [*digits, outer]
    bits = Digit(width, bits.into, bits.read)
    times = 8 // width if 8 % width == 0 else 1
    if times > 1 and digits and _follows(digits[-1], bits):
        last = digits[-1]
        left = over(last.extent, times)
        if left is not None:
            steps = (step * times for step in (last.into, *last.read))
            digits = [*digits[:-1], *([] if left == 1 else [_digit(left, *steps)])]
            pattern = sum(pattern << width * time for time in range(times))
            bits = Digit(8, bits.into, bits.read)
    return digits, [bits], pattern


def _repeats(pattern: int, width: int) -> bool:
    return pattern >> width == pattern & (1 << width) - 1


def _digit(extent: Size, into: Size, *read: Size) -> Digit:
    return Digit(extent, into, read)


# -- pieces that are one ---------------------------------------------------------------------------


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Of pieces that differ in their places only: one digit more for those in equal steps."""
    pieces = sorted(pieces, key=lambda piece: nominal(piece.into))
    while len(pieces) > 1:
        places = [_places(piece) for piece in pieces]
        run = _run_of(places)
        if run == 1:
            return pieces
        step = _step(places[0], places[1])
        digit = Digit(run, step[0], step[1:])
        pieces = [
            _normal(dataclasses.replace(piece, digits=(digit, *piece.digits)))
            for piece in pieces[::run]
        ]
    return pieces


def _run_of(places: list[tuple[Size, ...]]) -> int:
    """How many follow each other in one step, everywhere; 1 if not everywhere."""
    step = _step(places[0], places[1])
    run = 2
    while run < len(places) and _step(places[run - 1], places[run]) == step:
        run += 1
    for length in range(run, 1, -1):
        if len(places) % length == 0 and all(
            _step(places[at], places[at + 1]) == step
            for at in range(len(places) - 1)
            if (at + 1) % length
        ):
            return length
    return 1


def _step(one: tuple[Size, ...], two: tuple[Size, ...]) -> tuple[Size, ...]:
    return tuple(b - a for a, b in zip(one, two, strict=True))


def _places(piece: Piece) -> tuple[Size, ...]:
    return piece.into, *(base for _, base in piece.inputs)
