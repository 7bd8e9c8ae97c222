"""A description of moves as parts: bits that lie in one element on either side.

Definition
----------
A part is a box of elements of the output, and in each of them some bits, which are bits of one
element of an input, or a pattern. Parts of the same box are a group: together they are all of its
elements.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .description import Piece
from .size import Size, divided, nominal, over, terms_of

__all__ = ["NoKernel", "Part", "Step", "exact_quotient", "groups_of", "number_of", "parts_of"]

_MOST_PARTS = 1024


class NoKernel(Exception):  # noqa: N818  why there is none
    """Why a description has no kernel here."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A digit: steps in elements of either side, and in bits of the element that is read."""

    extent: Size
    into: Size
    read: Size = 0
    bit: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """Bits ``low`` to ``low + width`` of the elements of a box.

    They are bits from ``bit`` on of elements of `param`, xor a pattern; or, if it is None, the
    pattern.
    """

    steps: tuple[Step, ...]
    into: Size
    low: int
    width: int
    param: int | None
    read: Size
    bit: int
    pattern: int


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Some of the values of a digit: those that inner digits say, from a value on."""

    digits: tuple[tuple[Size, Size, Size], ...]  # extents, bits to the next in output and input
    into: Size = 0
    read: Size = 0
    value: int = 0


def parts_of(piece: Piece, width: int, widths: Mapping[int, int]) -> Iterator[Part]:
    """A piece as parts; `width` and `widths` are those of elements."""
    param, base = piece.inputs[0] if piece.inputs else (None, 0)
    wide = width if param is None else widths[param]
    digits = [(d.extent, d.into, d.read[0] if d.read else 0) for d in piece.digits]
    pattern = piece.flip if piece.fill is None else piece.fill
    unit = 1
    if digits and digits[-1][1] == 1 and digits[-1][2] == (param is not None):
        # Runs of bits, as many as are in one element on either side wherever they begin.
        extent = digits.pop()[0]
        unit = _common(extent, width, wide, piece.into, base, *(s for d in digits for s in d[1:]))
        count = over(extent, unit)
        assert count is not None
        digits.append((count, unit, unit if param is not None else 0))
    chosen = [list(_by_element(*digit, width, wide)) for digit in digits]
    if pattern:
        count, into, read = digits[-1]
        chosen[-1] = [_Choice((), k * into, k * read, k) for k in range(number_of(count))]
    if math.prod(map(len, chosen)) > _MOST_PARTS:
        raise NoKernel("moves too many bits by themselves")
    for choice in itertools.product(*chosen):
        bits = pattern >> unit * choice[-1].value & (1 << unit) - 1 if pattern else 0
        into = piece.into + sum(part.into for part in choice)
        read = base + sum(part.read for part in choice)
        kept = [digit for part in choice for digit in part.digits]
        for inner in _within(kept, read, unit, wide):
            element, low = divided(into + inner.into, width)
            source, bit = divided(read + inner.read, wide)
            steps = tuple(
                Step(extent, exact_quotient(to, width), *_whole_and_rest(by, wide))
                for extent, to, by in inner.digits
            )
            place = element, number_of(low), unit
            yield Part(steps, *place, param, source, number_of(bit), bits)


def _by_element(extent: Size, into: Size, read: Size, width: int, wide: int) -> Iterator[_Choice]:
    """Each value of a digit that lies in one element of the output, by itself."""
    period = width // math.gcd(width, _common(into))
    count = over(extent, period)
    if count is None:
        count = number_of(extent) // period
    if count != 0:
        outer = count, into * period, read * period
        for choice in _by_source(*outer, wide):
            for value in range(period):
                start = choice.into + value * into, choice.read + value * read
                yield _Choice(choice.digits, *start, value)
    if isinstance(extent, int):
        for value in range(number_of(count) * period, extent):
            yield _Choice((), value * into, value * read, value)


def _by_source(extent: Size, into: Size, read: Size, wide: int) -> Iterator[_Choice]:
    """A digit as two, of which the inner one may lie in one element of what is read."""
    if extent == 1:
        yield _Choice(())
        return
    period = wide // math.gcd(wide, _common(read)) if read != 0 else 1
    count = over(extent, period)
    if period == 1 or count == 1:
        yield _Choice(((extent, into, read),))
    elif count is not None:
        yield _Choice(((count, into * period, read * period), (period, into, read)))
    else:
        whole = number_of(extent) // period * period
        if whole:
            yield from _by_source(whole, into, read, wide)
        rest = number_of(extent) - whole
        digits = ((rest, into, read),) if rest > 1 else ()
        yield _Choice(digits, whole * into, whole * read)


def _within(
    digits: Sequence[tuple[Size, Size, Size]], read: Size, unit: int, wide: int
) -> Iterator[_Choice]:
    """The digits, if bits that they say lie in one element; those of these that do not, cut up."""
    inner = [digit for digit in digits if _common(digit[2]) % wide]
    rests = [(number_of(extent) - 1) * _whole_and_rest(by, wide)[1] for extent, _, by in inner]
    bit = number_of(divided(read, wide)[1])
    low, high = (bit + sum(r for r in rests if (r < 0) is below) for below in (True, False))
    if low >= 0 and high + unit <= wide:
        yield _Choice(tuple(digits))
        return
    outer = tuple(digit for digit in digits if digit not in inner)
    for values in itertools.product(*(range(number_of(extent)) for extent, _, _ in inner)):
        steps = list(zip(values, inner, strict=True))
        to: Size = sum(value * into for value, (_, into, _) in steps)
        yield _Choice(outer, to, sum(value * by for value, (_, _, by) in steps))


def _whole_and_rest(step: Size, wide: int) -> tuple[Size, int]:
    """A step in elements, and in bits; both fall if it falls."""
    if isinstance(step, int) and step < 0:
        elements, bits = divmod(-step, wide)
        return -elements, -bits
    count, rest = divided(step, wide)
    return count, number_of(rest)


def number_of(size: Size) -> int:
    """A size that is known. Raises NoKernel."""
    if not isinstance(size, int):
        raise NoKernel("moves bits to or from places that are not known")
    return size


def exact_quotient(size: Size, by: Size) -> Size:
    """Of sizes of which the one is divided by the other."""
    quotient = over(size, by)
    assert quotient is not None
    return quotient


def _common(*sizes: Size) -> int:
    """The greatest number that divides all of them, whatever the unknowns are."""
    return math.gcd(*(number for size in sizes for number in terms_of(size).values()))


def groups_of(parts: Iterable[Part]) -> list[list[Part]]:
    """The parts of the same elements of the output, each from the lowest bit on."""
    found: dict[object, list[Part]] = {}
    for part in parts:
        found.setdefault((_box(part.steps), part.into), []).append(part)
    return [_without_seams(group) for group in found.values()]


def _box(steps: Iterable[Step]) -> tuple[tuple[Size, Size], ...]:
    """Where they write: as few steps as possible."""
    merged: list[tuple[Size, Size]] = []
    for step in sorted(steps, key=lambda step: -nominal(step.into)):
        if merged and merged[-1][1] == step.into * step.extent:
            merged[-1] = merged[-1][0] * step.extent, step.into
        else:
            merged.append((step.extent, step.into))
    return tuple(merged)


def _without_seams(parts: Iterable[Part]) -> list[Part]:
    """Bits that follow each other on both sides are one part."""
    found: list[Part] = []
    for part in sorted(parts, key=lambda part: part.low):
        last = found[-1] if found else None
        if last is not None and _follows(last, part):
            pattern = last.pattern | part.pattern << last.width
            width = last.width + part.width
            found[-1] = dataclasses.replace(last, width=width, pattern=pattern)
        else:
            found.append(part)
    return found


def _follows(one: Part, two: Part) -> bool:
    if one.param != two.param or one.low + one.width != two.low:
        return False
    if one.param is None:
        return True
    return (one.steps, one.read, one.bit + one.width) == (two.steps, two.read, two.bit)
