"""The indices of elements, by the digits of a part: along which axes, and how they are divided.

Definition
----------
A digit stays in one axis where it can: one that crosses the end of an axis is cut into two there.
Where that cannot be done (the axes of both sides have no common divisor, or sizes are not known),
neighbouring axes are a joint: they are counted as one, and divided again.
The digits of an element of the output are quotients and rests of its indices; what they say of an
input are sums of them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tvm import ir, tirx

from .element_parts import NoKernel, Step, exact_quotient, number_of
from .fields import bits_of
from .size import (
    Size,
    Unknown,
    divided,
    evaluate,
    expression,
    factors_in,
    is_at_least_zero,
    nominal,
    over,
    unknowns_in,
)

__all__ = ["Axes", "DigitIndices", "Joint", "joints_of"]


class Axes:
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
class Joint:
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


def joints_of(
    steps: Sequence[Step], sides: Sequence[tuple[str, Axes, Size]]
) -> tuple[list[Step], list[list[Joint]]]:
    """Steps that stay in one axis of each side, where they can; and the axes that are one for it.

    ``sides``: what a step is called on that side, its axes, and where all digits are 0.
    """
    borders = [list(range(1, len(axes.sizes))) for _, axes, _ in sides]
    while True:
        found = _steps_between(steps, sides, borders)
        if found is not None:
            return found


def _steps_between(
    steps: Sequence[Step], sides: Sequence[tuple[str, Axes, Size]], borders: list[list[int]]
) -> tuple[list[Step], list[list[Joint]]] | None:
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
            outer = {
                at: exact_quotient(step, length) for at, step in left.items() if at not in inner
            }
            found.append(Joint(axes.sizes[first:end], first, count, outer))
            left, base = inner, base - count * length
        first = kept[-1] if kept else 0
        found.append(Joint(axes.sizes[first:], first, base, left))
        joints.append(found)
    return list(steps), joints


def _cut_at(steps: Sequence[Step], side: str, length: Size) -> list[Step] | None:
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
        further = (
            step.into * inner,
            step.read * inner,
            step.bit * number_of(inner) if step.bit else 0,
        )
        found += [Step(outer, *further), dataclasses.replace(step, extent=inner)]
    return found


def _flat(indices: Sequence[Any], sizes: Sequence[Size]) -> Any:
    flat = indices[0]
    for index, size in zip(indices[1:], sizes[1:], strict=True):
        flat = flat * expression(size) + index
    return flat


class DigitIndices:
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

    def read(self, joint: Joint, extents: Sequence[Size], indices: Sequence[Any]) -> None:
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

    def indices(self, joint: Joint) -> list[Any]:
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


def _is_at_least_zero(size: Size, positive: Collection[Unknown]) -> bool:
    """The same, where it is known what the sign of what is 1 or more is."""
    signs = {unknown: 1 for unknown in unknowns_in(size) if unknown.sign_of in positive}
    return is_at_least_zero(evaluate(size, signs), positive)
