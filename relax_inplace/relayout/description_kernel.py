"""The kernel that a description of moves is, as a tensor expression.

Definition
----------
Each element of the output is computed from its indices: the digits of a piece are quotients and
rests of them, and say where the piece reads. An element of several pieces is their bits, put
together; where pieces have other elements, conditions choose. :mod:`.read_description` reads the
same description off the kernel.

Indices stay those of single axes where a description allows it: a digit that crosses the end of an
axis is cut into two there. Only where that cannot be done (the axes of both sides have no common
divisor, or sizes are not known) neighbouring axes are counted as one, and divided again.

What computes has no kernel here; nor have bits of a number of elements that is not known, and
places that do not follow each other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import tvm
import tvm_ffi
from tvm import ir, relax, te, tirx

from .description import Piece, Relayout
from .fields import bits_of
from .index import NoRelayout, Restart, Sizes
from .size import (
    Polynomial,
    Size,
    Unknown,
    divided,
    evaluate,
    expression,
    factors_in,
    is_at_least_zero,
    nominal,
    over,
    terms_of,
    unknowns_in,
)
from .tir_forms import IndexReader

__all__ = ["NoKernel", "described", "kernel_of", "sizes_of"]

_MOST_PARTS = 1024
_MOST_RESTARTS = 16
_Shape: TypeAlias = Sequence[ir.Expr | int]


class NoKernel(Exception):  # noqa: N818  why there is none
    """Why a description has no kernel here."""


def kernel_of(
    relayout: Relayout, shapes: Mapping[int, _Shape], dtypes: Mapping[int, str]
) -> tirx.PrimFunc | str:
    """A kernel that does what a description says, or why there is none.

    Parameters
    ----------
    relayout : Relayout
        Of moves.
    shapes, dtypes : mapping
        Of each parameter that it reads or writes; of as many bits as the description says.

    Returns
    -------
    tvm.tirx.PrimFunc or str
        Of the inputs, in order; of the sizes, by name, that no axis of an input is alone; and of
        the output. Variables are new.
    """
    shapes = {param: _whole_numbers(shape) for param, shape in shapes.items()}
    given = {
        param: te.placeholder(shapes[param], dtypes[param], f"given{at or ''}")
        for at, param in enumerate(relayout.inputs)
    }
    try:
        made = described(relayout, given, shapes[relayout.output], dtypes[relayout.output])
    except NoKernel as error:
        return str(error)
    axes = [size for tensor in given.values() for size in tensor.shape]
    known = [size for size in axes if isinstance(size, relax.Var)]
    free: dict[relax.Var, None] = {}
    for size in (*axes, *made.shape):
        free |= dict.fromkeys(tirx.analysis.undefined_vars(size))
    sizes = [var for var in free if not any(var.same_as(one) for one in known)]
    sizes.sort(key=lambda var: str(var.name))
    kernel = te.create_prim_func([*given.values(), *sizes, made], "int64")
    return tvm.get_global_func("s_tir.RenewDefs")(kernel.without_attr("global_symbol"))


def described(
    relayout: Relayout,
    given: Mapping[int, te.Tensor],
    shape: _Shape,
    dtype: str,
    whole: Mapping[int, _Shape] | None = None,
) -> te.Tensor:
    """What a description makes of tensors. Raises NoKernel.

    Parameters
    ----------
    relayout : Relayout
        Of moves, in the variables of the shapes.
    given : mapping
        The tensor for each parameter that is read.
    shape : sequence
    dtype : str
        Of the result.
    whole : mapping, optional
        The shapes that the description is of, of parameters that end earlier along some axes: zeros
        are read there, and nothing is written.
    """
    if any(piece.value is not None for piece in relayout.pieces):
        raise NoKernel("computes new numbers")
    known = _KnownSizes(relayout)
    shape = _whole_numbers(shape)
    order = [relayout.output, *given]
    real = [shape, *(tensor.shape[:] for tensor in given.values())]
    described_as = [
        _whole_numbers((whole or {}).get(param, own))
        for param, own in zip(order, real, strict=True)
    ]
    sizes = iter(known.sizes(size for one in (*described_as, *real) for size in one))
    dtypes = [dtype, *(str(tensor.dtype) for tensor in given.values())]
    axes = {
        param: _Axes([next(sizes) for _ in one], element)
        for param, one, element in zip(order, described_as, dtypes, strict=True)
    }
    ends = {param: [next(sizes) for _ in own] for param, own in zip(order, real, strict=True)}
    into = axes.pop(relayout.output)
    widths = {param: one.bits for param, one in axes.items()}
    pieces = known.of(relayout).pieces
    groups = _groups(part for piece in pieces for part in _parts(piece, into.bits, widths))
    output = _Output(into, axes, given, ends)

    def element(*at: Any) -> ir.Expr:
        return output.element(groups, at)

    return te.compute(shape, element, "made")


def sizes_of(shape: Iterable[ir.Expr]) -> list[Size]:
    """What is known of the sizes of axes. Raises NoKernel."""
    return _KnownSizes().sizes(shape)


def _whole_numbers(shape: _Shape) -> list[ir.Expr]:
    return [tirx.const(size, "int64") if isinstance(size, int) else size for size in shape]


# -- sizes -----------------------------------------------------------------------------------------


class _KnownSizes:
    """Sizes of shapes, in the unknowns of a description: those that it divides are divided."""

    def __init__(self, relayout: Relayout | None = None) -> None:
        self._sizes = Sizes()
        for unknown in _unknowns_of(relayout) if relayout is not None else ():
            if unknown.kind == "%" or (unknown.kind == "//" and unknown.high is None):
                self._divide(*unknown.args)

    def _divide(self, size: Size, by: int) -> None:
        try:
            self._sizes.floordiv(size, by)
        except Restart:
            return

    def sizes(self, shape: Iterable[ir.Expr]) -> list[Size]:
        """Of each axis."""
        shape = list(shape)
        for _ in range(_MOST_RESTARTS):
            try:
                return [IndexReader(self._sizes, {}).size(axis) for axis in shape]
            except Restart:
                continue
            except NoRelayout as error:
                raise NoKernel(str(error)) from error
        raise NoKernel("divides sizes in too many ways")

    def of(self, relayout: Relayout) -> Relayout:
        """The description, in unknowns as they are thought of by now."""
        known = {u: self._sizes.of(u) for u in _unknowns_of(relayout)}

        def size(one: Size) -> Size:
            return evaluate(one, known)

        def piece(one: Piece) -> Piece:
            digits = tuple(
                dataclasses.replace(
                    digit,
                    extent=size(digit.extent),
                    into=size(digit.into),
                    read=tuple(map(size, digit.read)),
                )
                for digit in one.digits
            )
            inputs = tuple((param, size(base)) for param, base in one.inputs)
            return dataclasses.replace(one, digits=digits, into=size(one.into), inputs=inputs)

        return dataclasses.replace(relayout, pieces=tuple(map(piece, relayout.pieces)))


def _unknowns_of(relayout: Relayout) -> list[Unknown]:
    """Those of a description, and what they are made of; what is made comes last."""
    found: dict[Unknown, None] = {}

    def add(size: Size) -> None:
        for unknown in sorted(unknowns_in(size), key=lambda one: one.name):
            for arg in unknown.args:
                if isinstance(arg, Polynomial):
                    add(arg)
            found[unknown] = None

    for _, bits in relayout.bits:
        add(bits)
    for piece in relayout.pieces:
        add(piece.into)
        for _, base in piece.inputs:
            add(base)
        for digit in piece.digits:
            for size in (digit.extent, digit.into, *digit.read):
                add(size)
    return list(found)


def _common(*sizes: Size) -> int:
    """The greatest number that divides all of them, whatever the unknowns are."""
    return math.gcd(*(number for size in sizes for number in terms_of(size).values()))


def _is_at_least_zero(size: Size, positive: Collection[Unknown]) -> bool:
    """The same, where it is known what the sign of what is 1 or more is."""
    signs = {unknown: 1 for unknown in unknowns_in(size) if unknown.sign_of in positive}
    return is_at_least_zero(evaluate(size, signs), positive)


# -- parts: bits that lie in one element on either side -------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Step:
    """A digit: steps in elements of either side, and in bits of the element that is read."""

    extent: Size
    into: Size
    read: Size = 0
    bit: int = 0


@dataclasses.dataclass(frozen=True)
class _Part:
    """Bits ``low`` to ``low + width`` of the elements of a box.

    They are bits from ``bit`` on of elements of `param`, xor a pattern; or, if it is None, the
    pattern.
    """

    steps: tuple[_Step, ...]
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


def _parts(piece: Piece, width: int, widths: Mapping[int, int]) -> Iterator[_Part]:
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
        chosen[-1] = [_Choice((), k * into, k * read, k) for k in range(_number(count))]
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
                _Step(extent, _exact(to, width), *_whole_and_rest(by, wide))
                for extent, to, by in inner.digits
            )
            place = element, _number(low), unit
            yield _Part(steps, *place, param, source, _number(bit), bits)


def _by_element(extent: Size, into: Size, read: Size, width: int, wide: int) -> Iterator[_Choice]:
    """Each value of a digit that lies in one element of the output, by itself."""
    period = width // math.gcd(width, _common(into))
    count = over(extent, period)
    if count is None:
        count = _number(extent) // period
    if count != 0:
        outer = count, into * period, read * period
        for choice in _by_source(*outer, wide):
            for value in range(period):
                start = choice.into + value * into, choice.read + value * read
                yield _Choice(choice.digits, *start, value)
    if isinstance(extent, int):
        for value in range(_number(count) * period, extent):
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
        whole = _number(extent) // period * period
        if whole:
            yield from _by_source(whole, into, read, wide)
        rest = _number(extent) - whole
        digits = ((rest, into, read),) if rest > 1 else ()
        yield _Choice(digits, whole * into, whole * read)


def _within(
    digits: Sequence[tuple[Size, Size, Size]], read: Size, unit: int, wide: int
) -> Iterator[_Choice]:
    """The digits, if bits that they say lie in one element; those of these that do not, cut up."""
    inner = [digit for digit in digits if _common(digit[2]) % wide]
    rests = [(_number(extent) - 1) * _whole_and_rest(by, wide)[1] for extent, _, by in inner]
    bit = _number(divided(read, wide)[1])
    low, high = (bit + sum(r for r in rests if (r < 0) is below) for below in (True, False))
    if low >= 0 and high + unit <= wide:
        yield _Choice(tuple(digits))
        return
    outer = tuple(digit for digit in digits if digit not in inner)
    for values in itertools.product(*(range(_number(extent)) for extent, _, _ in inner)):
        steps = list(zip(values, inner, strict=True))
        to: Size = sum(value * into for value, (_, into, _) in steps)
        yield _Choice(outer, to, sum(value * by for value, (_, _, by) in steps))


def _whole_and_rest(step: Size, wide: int) -> tuple[Size, int]:
    """A step in elements, and in bits; both fall if it falls."""
    if isinstance(step, int) and step < 0:
        elements, bits = divmod(-step, wide)
        return -elements, -bits
    count, rest = divided(step, wide)
    return count, _number(rest)


def _number(size: Size) -> int:
    if not isinstance(size, int):
        raise NoKernel("moves bits to or from places that are not known")
    return size


def _exact(size: Size, by: Size) -> Size:
    quotient = over(size, by)
    assert quotient is not None
    return quotient


# -- groups: the parts of the same elements --------------------------------------------------------


def _groups(parts: Iterable[_Part]) -> list[list[_Part]]:
    """The parts of the same elements of the output, each from the lowest bit on."""
    found: dict[object, list[_Part]] = {}
    for part in parts:
        found.setdefault((_box(part.steps), part.into), []).append(part)
    return [_without_seams(group) for group in found.values()]


def _box(steps: Iterable[_Step]) -> tuple[tuple[Size, Size], ...]:
    """Where they write: as few steps as possible."""
    merged: list[tuple[Size, Size]] = []
    for step in sorted(steps, key=lambda step: -nominal(step.into)):
        if merged and merged[-1][1] == step.into * step.extent:
            merged[-1] = merged[-1][0] * step.extent, step.into
        else:
            merged.append((step.extent, step.into))
    return tuple(merged)


def _without_seams(parts: Iterable[_Part]) -> list[_Part]:
    """Bits that follow each other on both sides are one part."""
    found: list[_Part] = []
    for part in sorted(parts, key=lambda part: part.low):
        last = found[-1] if found else None
        if last is not None and _follows(last, part):
            pattern = last.pattern | part.pattern << last.width
            width = last.width + part.width
            found[-1] = dataclasses.replace(last, width=width, pattern=pattern)
        else:
            found.append(part)
    return found


def _follows(one: _Part, two: _Part) -> bool:
    if one.param != two.param or one.low + one.width != two.low:
        return False
    if one.param is None:
        return True
    return (one.steps, one.read, one.bit + one.width) == (two.steps, two.read, two.bit)


# -- indices ---------------------------------------------------------------------------------------


class _Axes:
    """The axes of a tensor.

    Attributes
    ----------
    sizes : list of Size
    steps : list of Size
        Elements from one index to the next.
    dtype : str
    bits : int
        Of an element.
    count : Size
        Of elements.
    """

    def __init__(self, sizes: list[Size], dtype: str) -> None:
        self.sizes, self.dtype, self.bits = sizes, dtype, bits_of(dtype)
        if not self.bits:
            raise NoKernel("has elements that are not whole bytes")
        self.steps: list[Size] = []
        step: Size = 1
        for size in reversed(sizes):
            self.steps.insert(0, step)
            step = step * size
        self.count = step


@dataclasses.dataclass
class _Joint:
    """Neighbouring axes that are counted as one.

    Attributes
    ----------
    sizes : list of Size
        Of its axes.
    first : int
        Of its axes.
    base : Size
        The place where all digits are 0.
    steps : dict
        How much further each digit goes, by its number.
    """

    sizes: list[Size]
    first: int
    base: Size
    steps: dict[int, Size]


def _joints(
    steps: Sequence[_Step], sides: Sequence[tuple[str, _Axes, Size]]
) -> tuple[list[_Step], list[list[_Joint]]]:
    """Steps that stay in one axis of each side, where they can; and the axes that are one for it.

    ``sides``: what a step is called on that side, its axes, and where all digits are 0.
    """
    borders = [list(range(1, len(axes.sizes))) for _, axes, _ in sides]
    while True:
        found = _steps_between(steps, sides, borders)
        if found is not None:
            return found


def _steps_between(
    steps: Sequence[_Step], sides: Sequence[tuple[str, _Axes, Size]], borders: list[list[int]]
) -> tuple[list[_Step], list[list[_Joint]]] | None:
    """The same with borders between these axes; None if one had to be given up."""
    for (side, axes, _), kept in zip(sides, borders, strict=True):
        for border in kept:
            cut = _cut_at(steps, side, axes.steps[border - 1])
            if cut is None:
                kept.remove(border)
                return None
            steps = cut
    joints = []
    positive = factors_in(step.extent for step in steps)
    for (side, axes, base), kept in zip(sides, borders, strict=True):
        left = {
            at: getattr(step, side) for at, step in enumerate(steps) if getattr(step, side) != 0
        }
        found = []
        for first, end in itertools.pairwise([0, *kept]):
            length = axes.steps[end - 1]
            inner = {at: step for at, step in left.items() if over(step, length) is None}
            spans = {at: (steps[at].extent - 1) * step for at, step in inner.items()}
            falls = sum(span for at, span in spans.items() if nominal(inner[at]) < 0)
            count, least = divided(base + falls, length)
            most = least - falls + sum(s for at, s in spans.items() if nominal(inner[at]) > 0)
            if not all(_is_at_least_zero(rest, positive) for rest in (least, length - 1 - most)):
                kept.remove(end)
                return None
            outer = {at: _exact(step, length) for at, step in left.items() if at not in inner}
            found.append(_Joint(axes.sizes[first:end], first, count, outer))
            left, base = inner, base - count * length
        first = kept[-1] if kept else 0
        found.append(_Joint(axes.sizes[first:], first, base, left))
        joints.append(found)
    return list(steps), joints


def _cut_at(steps: Sequence[_Step], side: str, length: Size) -> list[_Step] | None:
    """No step goes on across a length; None where that cannot be."""
    found = []
    for step in steps:
        by = getattr(step, side)
        size = by if nominal(by) >= 0 else -by
        if over(by, length) is not None or nominal(size * (step.extent - 1)) < nominal(length):
            found.append(step)
            continue
        inner = over(length, size)
        outer = None if inner is None else over(step.extent, inner)
        if inner is None or outer is None:
            return None
        further = step.into * inner, step.read * inner, step.bit * _number(inner) if step.bit else 0
        found += [_Step(outer, *further), dataclasses.replace(step, extent=inner)]
    return found


def _flat(indices: Sequence[Any], sizes: Sequence[Size]) -> Any:
    flat = indices[0]
    for index, size in zip(indices[1:], sizes[1:], strict=True):
        flat = flat * expression(size) + index
    return flat


class _Digits:
    """The digits of an element, by its indices; and whether it is of the box at all.

    Parameters
    ----------
    count : Size
        Of elements of the output: where there is one, what divides it is no 0.
    """

    def __init__(self, count: Size, positive: Collection[Unknown]) -> None:
        self._count, self._positive = count, positive
        self.values: dict[int, tuple[Any, Size]] = {}  # that of each digit, and what it is above 0
        self.conditions: list[ir.Expr] = []

    def read(self, joint: _Joint, extents: Sequence[Size], indices: Sequence[Any]) -> None:
        """Digits along axes, by the indices of these."""
        flat = _flat(indices, joint.sizes)
        size: Size = functools.reduce(lambda a, b: a * b, joint.sizes)
        base = joint.base
        order = sorted(joint.steps.items(), key=lambda item: -nominal(item[1]))
        for place, (at, step) in enumerate(order):
            self._require_a_divisor(step)
            span = sum((extents[inner] - 1) * by for inner, by in order[place + 1 :])
            if not self._is_at_least(step - 1, span):
                raise NoKernel("writes to places that do not follow each other")
            first, rest = divided(base, step)
            if not (self._is_at_least(rest, 0) and self._is_at_least(step, rest)):
                raise NoKernel("writes to places that do not follow each other")
            goes_on = not self._is_at_least(step - 1, rest + span)
            if first != 0 or goes_on:
                self.conditions.append(flat >= expression(base))
            if not self._is_at_least((first + extents[at]) * step, size):
                end = base + (extents[at] - 1) * step + span + 1
                self.conditions.append(flat < expression(end))
            if goes_on:  # in the next step: counted from there, it does not
                flat, size = flat + expression(step - rest), size + step - rest
                first, rest = first + 1, 0
            index = flat if step == 1 else tirx.floordiv(flat, expression(step))
            self.values[at] = index, first
            flat = tirx.floormod(flat, expression(step)) if step != 1 else None
            size, base = step, rest
        if size != 1:
            self.conditions.append(tirx.EQ(flat, expression(base)))

    def _require_a_divisor(self, size: Size) -> None:
        if not self._is_at_least(size, 1) and over(self._count, size) is None:
            raise NoKernel("divides by a size that may be 0")

    def _is_at_least(self, size: Size, other: Size) -> bool:
        return _is_at_least_zero(size - other, self._positive)

    def indices(self, joint: _Joint) -> list[Any]:
        """The indices of axes that are read."""
        falls = {nominal(step) < 0 for step in joint.steps.values()}
        if len(joint.sizes) == 1:
            return [self.sum(joint.base, joint.steps)]
        if len(falls) > 1:
            raise NoKernel("reads forwards and backwards across an axis")
        for size in joint.sizes[1:]:
            self._require_a_divisor(size)
        # A rest of `c - i` is miscompiled by TVM 0.27: it is counted from the end.
        end = functools.reduce(lambda a, b: a * b, joint.sizes) - 1
        backwards = falls == {True}
        if backwards:
            flat = self.sum(end - joint.base, {at: -step for at, step in joint.steps.items()})
        else:
            flat = self.sum(joint.base, joint.steps)
        found: list[Any] = []
        for size in reversed(joint.sizes[1:]):
            found.insert(0, tirx.floormod(flat, expression(size)))
            flat = tirx.floordiv(flat, expression(size))
        found.insert(0, flat)
        if not backwards:
            return found
        return [expression(s - 1) - index for s, index in zip(joint.sizes, found, strict=True)]

    def sum(self, base: Size, steps: Mapping[int, Size]) -> Any:
        """What digits add to a base, by how much each goes further."""
        base = base - sum(self.values[at][1] * step for at, step in steps.items())

        def product(at: int, step: Size) -> Any:
            value = self.values[at][0]
            return value if step == 1 else value * expression(step)

        rising = [product(at, step) for at, step in steps.items() if nominal(step) > 0]
        falling = [product(at, -step) for at, step in steps.items() if nominal(step) < 0]
        if base != 0 or not rising:
            rising.append(expression(base))
        total = functools.reduce(lambda a, b: a + b, rising)
        return functools.reduce(lambda a, b: a - b, falling, total)


# -- elements --------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Field:
    """Bits of an element of the output, from ``low`` on.

    Those of one element that is read, from ``shift`` on, xor a pattern; or, if `param` is None, the
    pattern.
    """

    low: int
    width: int
    pattern: int
    param: int | None = None
    indices: list[Any] = dataclasses.field(default_factory=list)
    shift: Any = 0

    def is_same(self, other: _Field) -> bool:
        """Whether they are the same expression."""
        places = ([*field.indices, tirx.const(0) + field.shift] for field in (self, other))
        alike = [(f.low, f.width, f.pattern, f.param, len(f.indices)) for f in (self, other)]
        return alike[0] == alike[1] and tvm_ffi.structural_equal(*places)


@dataclasses.dataclass(eq=False)
class _Value:
    """What an element of the output may be, and which groups say so."""

    fields: list[_Field]
    groups: list[Sequence[_Part]]

    def has(self, fields: Sequence[_Field]) -> bool:
        """Whether these are its fields."""
        pairs = zip(self.fields, fields, strict=False)
        return len(fields) == len(self.fields) and all(one.is_same(two) for one, two in pairs)

    def is_whole(self, width: int) -> bool:
        """Whether they are all bits of the element."""
        return sum(field.width for field in self.fields) == width

    @property
    def is_constant(self) -> bool:
        """Whether nothing is read."""
        return all(field.param is None for field in self.fields)


class _Output:
    """Elements of the output.

    Parameters
    ----------
    into : _Axes
    read : mapping
        The axes of each parameter that is read.
    given, ends : mapping
        The tensor for each, and the sizes that it has.
    """

    def __init__(
        self,
        into: _Axes,
        read: Mapping[int, _Axes],
        given: Mapping[int, te.Tensor],
        ends: Mapping[int, Sequence[Size]],
    ) -> None:
        self._into, self._read, self._given, self._ends = into, read, given, ends
        self._unsigned = f"uint{into.bits}"
        self._positive = factors_in(into.sizes)  # where there is an element

    def element(self, groups: Sequence[Sequence[_Part]], at: Sequence[Any]) -> ir.Expr:
        """The element at indices."""
        choices = self._choices(groups, at)
        whole = [choice for choice in choices if choice.is_whole(self._into.bits)]
        if len(whole) < len(choices):
            zero = tirx.const(0, self._unsigned)
            bits = (
                _chosen(self._conditions(group, at), self._bits(choice), zero)
                for choice in choices
                if choice not in whole
                for group in choice.groups
            )
            value = self._of_bits(functools.reduce(lambda a, b: a | b, bits))
        else:
            value = self._value(whole.pop()) if whole else tirx.const(0, self._into.dtype)
        for choice in reversed(whole):
            for group in reversed(choice.groups):
                value = _chosen(self._conditions(group, at), self._value(choice), value)
        return value

    def _choices(self, groups: Iterable[Sequence[_Part]], at: Sequence[Any]) -> list[_Value]:
        """What an element may be; what is best left without conditions last."""
        found: list[_Value] = []
        for group in groups:
            fields = [self._field(part, at) for part in group]
            for known in found:
                if known.has(fields):
                    known.groups.append(group)
                    break
            else:
                found.append(_Value(fields, [group]))
        return sorted(found, key=lambda choice: (choice.is_constant, len(choice.groups)))

    def _conditions(self, group: Sequence[_Part], at: Sequence[Any]) -> list[ir.Expr]:
        part = min(group, key=lambda part: len(part.steps))
        box = [_Step(step.extent, step.into) for step in part.steps]
        steps, (joints,) = _joints(box, [("into", self._into, part.into)])
        return self._digits(steps, joints, at).conditions

    def _digits(
        self, steps: Sequence[_Step], joints: Iterable[_Joint], at: Sequence[Any]
    ) -> _Digits:
        digits = _Digits(self._into.count, self._positive)
        for joint in joints:
            extents = [step.extent for step in steps]
            digits.read(joint, extents, at[joint.first : joint.first + len(joint.sizes)])
        return digits

    def _value(self, choice: _Value) -> ir.Expr:
        (field, *more) = choice.fields
        dtype = self._into.dtype
        if choice.is_constant:
            pattern = sum(field.pattern << field.low for field in choice.fields)
            if pattern == 0 or dtype.startswith(("int", "uint")):
                return tirx.const(_signed(pattern, dtype), dtype)
        if more or field.param is None or self._read[field.param].bits != self._into.bits:
            return self._of_bits(self._bits(choice))
        source = self._read[field.param].dtype
        element = self._element(field)
        if not field.pattern:
            return _reinterpreted(element, source, dtype)
        if dtype.startswith(("int", "uint")):
            element = _reinterpreted(element, source, dtype)
            return element ^ tirx.const(_signed(field.pattern, dtype), dtype)
        bits = _reinterpreted(element, source, self._unsigned)
        return self._of_bits(bits ^ tirx.const(field.pattern, self._unsigned))

    def _of_bits(self, bits: ir.Expr) -> ir.Expr:
        return _reinterpreted(bits, self._unsigned, self._into.dtype)

    def _bits(self, choice: _Value) -> ir.Expr:
        """The bits of an element, in their places, as an unsigned number."""
        pattern = sum(field.pattern << field.low for field in choice.fields)
        read = [self._bits_of(field) for field in choice.fields if field.param is not None]
        constant = tirx.const(pattern, self._unsigned)
        if not read:
            return constant
        bits = functools.reduce(lambda a, b: a | b, read)
        return bits ^ constant if pattern else bits

    def _bits_of(self, field: _Field) -> ir.Expr:
        assert field.param is not None
        axes, shift = self._read[field.param], field.shift
        unsigned = f"uint{axes.bits}"
        bits = _reinterpreted(self._element(field), axes.dtype, unsigned)
        if isinstance(shift, int):
            bits = bits >> tirx.const(shift, unsigned) if shift else bits
        else:
            bits = bits >> shift.astype(unsigned)
        if not isinstance(shift, int) or shift + field.width < axes.bits:
            bits = bits & tirx.const((1 << field.width) - 1, unsigned)
        bits = _reinterpreted(bits, unsigned, self._unsigned)
        return bits << tirx.const(field.low, self._unsigned) if field.low else bits

    def _element(self, field: _Field) -> ir.Expr:
        assert field.param is not None
        element = self._given[field.param](*field.indices)
        axes, ends = self._read[field.param], self._ends[field.param]
        inside = [
            index < expression(end)
            for index, size, end in zip(field.indices, axes.sizes, ends, strict=True)
            if size != end
        ]
        return _chosen(inside, element, tirx.const(0, axes.dtype))

    def _field(self, part: _Part, at: Sequence[Any]) -> _Field:
        if part.param is None:
            return _Field(part.low, part.width, part.pattern)
        sides = ("into", self._into, part.into), ("read", self._read[part.param], part.read)
        steps, (into, read) = _joints(part.steps, sides)
        digits = self._digits(steps, into, at)
        indices = [index for joint in read for index in digits.indices(joint)]
        bits = {number: step.bit for number, step in enumerate(steps) if step.bit}
        shift = digits.sum(part.bit, bits) if bits else part.bit
        return _Field(part.low, part.width, part.pattern, part.param, indices, shift)


def _chosen(conditions: Sequence[ir.Expr], inside: ir.Expr, outside: ir.Expr) -> ir.Expr:
    """One value where conditions hold, and another one elsewhere."""
    return te.if_then_else(tirx.all(*conditions), inside, outside) if conditions else inside


def _reinterpreted(value: ir.Expr, source: str, dtype: str) -> ir.Expr:
    """The same bits."""
    if source == dtype:
        return value
    if "bool" in (source, dtype):
        raise NoKernel("changes bits of what is true or false")
    plain = all(one.startswith(("int", "uint")) for one in (source, dtype))
    return value.astype(dtype) if plain else tirx.reinterpret(dtype, value)


def _signed(pattern: int, dtype: str) -> int:
    bits = bits_of(dtype)
    return pattern - (1 << bits) if dtype.startswith("int") and pattern >> bits - 1 else pattern
