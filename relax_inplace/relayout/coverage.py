"""That boxes of places are all places from 0 on, each once: proved for all sizes.

Definition
----------
A *box* is the places ``base + sum(d * stride)``, each digit d from 0 to below its extent. Boxes
*tile* a size if each place from 0 to below it is of exactly one point of exactly one box. That
follows from any of these:

1. the size is 0, and there is no box;
2. one box, from 0 on, whose digits are one of stride 1 and of that extent;
3. the size is a sum, and each summand is tiled by some of the boxes, moved to 0;
4. the size is *rows* of ``s`` places, and a rest below them; each box has a digit of stride s, or
   is in one row, so it is the same box in some consecutive rows; between two rows where one
   begins or ends, those that are there tile s.

In 4, a digit that goes on in further rows is cut first: into what is in its first row, whole rows,
and what is left.

How sums and rows are chosen is a guess by nominal sizes: a bad one proves nothing, and is no error.
Nothing else is supposed of sizes than that unknowns and extents are 0 or more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from .size import Polynomial, Size, divided, is_at_least_zero, nominal, over, unknowns_in

__all__ = ["Box", "tile"]

# The base; extent and stride of each digit.
Box: TypeAlias = tuple[Size, tuple[tuple[Size, Size], ...]]

_MOST_BOXES = 1024


def tile(boxes: Iterable[Box], size: Size) -> bool:
    """Whether it is proved that boxes are all places from 0 to below a size, each once."""
    boxes = list(boxes)
    return _all_tile(boxes, size) or _all_tile([_without_signs(box) for box in boxes], size)


def _all_tile(boxes: Sequence[Box], size: Size) -> bool:
    plain = [_plain(box) for box in boxes]
    return _tile([box for box in plain if box is not None], size, {})


def _without_signs(box: Box) -> Box:
    """The same places: a digit that is there if there is anything is left out.

    A rim of ``n % 16`` rows is in a last tile, of which there are ``(n % 16 + 15) // 16``; one of
    ``n % 2`` rows is in ``n % 2`` tiles.
    """
    base, digits = box
    found = list(digits)
    for at, (extent, stride) in enumerate(digits):
        for unknown in unknowns_in(extent):
            rim = unknown.sign_of or (unknown if unknown.high == 1 else None)
            others = [other for place, (other, _) in enumerate(found) if place != at]
            without = over(found[at][0], Polynomial.of(unknown))
            if rim is None or without is None:
                continue
            if any(over(other, Polynomial.of(rim)) is not None for other in others):
                found[at] = without, stride
    return base, tuple(found)


def _plain(box: Box) -> Box | None:
    """The same places: digits of rising stride, outermost first, merged; None if there are none."""
    base, digits = box
    rising: list[tuple[Size, Size]] = []
    for extent, stride in digits:
        if extent == 0:
            return None
        if nominal(stride) < 0:
            base, stride = base + stride * (extent - 1), -stride
        if extent != 1:
            rising.append((extent, stride))
    rising.sort(key=lambda digit: -nominal(digit[1]))
    merged: list[tuple[Size, Size]] = []
    for extent, stride in rising:
        if merged and merged[-1][1] == extent * stride:
            merged[-1] = merged[-1][0] * extent, stride
        else:
            merged.append((extent, stride))
    return base, tuple(merged)


def _tile(boxes: Sequence[Box], size: Size, known: dict) -> bool:
    if not boxes:
        return size == 0
    if len(boxes) > _MOST_BOXES:
        return False
    if len(boxes) == 1:
        base, digits = boxes[0]
        return base == 0 and digits == (() if size == 1 else ((size, 1),))
    key = frozenset(boxes), size
    if len(key[0]) < len(boxes):
        return False  # a box is there twice
    if key not in known:
        groups = _apart(boxes)
        whole = _tile_sum(groups, size, known) if len(groups) > 1 else False
        known[key] = whole or _tile_rows(boxes, size, known)
    return known[key]


def _apart(boxes: Sequence[Box]) -> list[list[Box]]:
    """Groups of boxes, in the order of places, that seem to have nothing between each other."""
    groups: list[list[Box]] = []
    end = 0
    for box in sorted(boxes, key=lambda box: nominal(box[0])):
        base, digits = box
        if groups and nominal(base) < end:
            groups[-1].append(box)
        else:
            groups.append([box])
        last = sum(nominal(stride) * (nominal(extent) - 1) for extent, stride in digits)
        end = max(end, nominal(base) + last + 1)
    return groups


def _tile_sum(groups: Sequence[Sequence[Box]], size: Size, known: dict) -> bool:
    starts = [group[0][0] for group in groups]
    if starts[0] != 0:
        return False
    ends = [*starts[1:], size]
    return all(
        _tile([(base - start, digits) for base, digits in group], end - start, known)
        for group, start, end in zip(groups, starts, ends, strict=True)
    )


def _tile_rows(boxes: Sequence[Box], size: Size, known: dict) -> bool:
    strides = [stride for _, digits in boxes for _, stride in digits]
    if not strides:
        return False
    row = max(strides, key=nominal)
    if nominal(row) < 2:
        return False
    rows, rest = divided(size, row)
    placed = [part for box in boxes for part in _in_rows(box, row)]
    # Where the boxes that are there change: before the first, and behind the last row, too.
    borders = {0: 0, rows: 0} | {border: 0 for low, high, _ in placed for border in (low, high)}
    if rest != 0:
        borders[rows + 1] = 0
    order = sorted(borders, key=nominal)
    number = {border: at for at, border in enumerate(order)}
    if order[0] != 0 or order[-1] != (rows if rest == 0 else rows + 1):
        return False
    if not all(is_at_least_zero(b - a) for a, b in itertools.pairwise(order)):
        return False
    for at in range(len(order) - 1):
        there = [box for low, high, box in placed if number[low] <= at < number[high]]
        below = rest if rest != 0 and order[at] == rows else row
        if not _tile(there, below, known):
            return False
    return True


def _in_rows(box: Box, row: Size) -> list[tuple[Size, Size, Box]]:
    """The rows from and to which a box is, and its places in each; several if it goes on."""
    base, digits = box
    low, base = divided(base, row)
    if digits and digits[0][1] == row:
        return [(low, low + digits[0][0], (base, digits[1:]))]
    if digits:
        (extent, stride), inner = digits[0], digits[1:]
        length = over(row, stride)
        last = nominal(base) + (nominal(extent) - 1) * nominal(stride)
        if length is not None and (last >= nominal(row) or over(extent, length) is not None):
            start, offset = divided(base, stride)
            first, parts = low, []
            if start != 0:
                head = length - start
                parts.append((low, low + 1, _of(offset + start * stride, head, stride, inner)))
                low, extent = low + 1, extent - head
            whole, rest = divided(extent, length)
            if not all(map(is_at_least_zero, (length - start, whole, rest))):
                return [(first, first + 1, (base, digits))]
            if whole != 0:
                parts.append((low, low + whole, _of(offset, length, stride, inner)))
            if rest != 0:
                parts.append((low + whole, low + whole + 1, _of(offset, rest, stride, inner)))
            return parts
    return [(low, low + 1, (base, digits))]


def _of(base: Size, extent: Size, stride: Size, inner: tuple[tuple[Size, Size], ...]) -> Box:
    box = _plain((base, ((extent, stride), *inner)))
    return (base, ((0, 1),)) if box is None else box
