"""What of its inputs an output needs for a slice along an axis.

Definition
----------
An output is *sliced* along an axis if its positions from a to b along it are made of positions from
a to b along one axis of an input, or of all of the input, for each input and all a and b. So it can
be made slice by slice, by the same kernel on smaller tensors.

Of each piece one digit goes along the whole axis, alone; along it the input is read along an axis
of the same size, or it stays where it is. All other digits stay in one position of the axis, on
both sides. If the size of the axis is symbolic, nothing but the axis depends on it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from tvm import relax

from .description import Digit, Piece, Relayout
from .size import Size, Unknown, divided, factors_in, is_at_least_zero, over, unknowns_in

__all__ = ["sliced_axes"]


def sliced_axes(
    relayout: Relayout, shapes: Mapping[int, Sequence[Size]], axis: int
) -> dict[int, int | None] | None:
    """For each input the axis that is sliced with the output's, None where all of it is read.

    None if the output is not sliced along the axis.

    Parameters
    ----------
    relayout : Relayout
    shapes : mapping
        The shape of each parameter.
    axis : int
        Of the output.
    """
    axes: dict[int, int | None] = {}
    steps: dict[int, list[Size]] = {}
    for param, bits in relayout.bits:
        found_steps = _steps(shapes[param], bits)
        if found_steps is None:
            return None
        steps[param] = found_steps
    size, step = shapes[relayout.output][axis], steps[relayout.output][axis]
    for piece in relayout.pieces:
        # A piece without points reads nothing.
        positive = factors_in(digit.extent for digit in piece.digits)
        parts = _parts(piece, size, step, positive)
        if parts is None:
            return None
        along, inner = parts
        for at, (param, base) in enumerate(piece.inputs):
            found = _axis_of(along.read[at], size, shapes[param], steps[param])
            if found == -1:
                return None
            reach = [(digit.extent, digit.read[at]) for digit in inner]
            if found is not None:
                if not _stays(base, reach, steps[param][found], size, positive):
                    return None
            elif not _is_free((base, *(stride for _, stride in reach)), size):
                return None
            if axes.setdefault(param, found) != found:
                return None
    return axes


def _steps(shape: Sequence[Size], bits: Size) -> list[Size] | None:
    """How many bits further the next position along each axis is."""
    steps = []
    for size in shape:
        step = over(bits, size)
        if step is None:
            return None
        steps.append(bits := step)
    return steps


def _parts(
    piece: Piece, size: Size, step: Size, positive: Collection[Unknown]
) -> tuple[Digit, list[Digit]] | None:
    """The digit along the axis, and the others; None if there is no such one."""
    along: list[Digit] = []
    others: list[Digit] = []
    for digit in piece.digits:
        if is_at_least_zero(step - 1 - digit.into * (digit.extent - 1), positive):
            others.append(digit)
            continue
        length = over(step, digit.into)
        if length is not None:  # from inside a position to further ones
            outer = over(digit.extent, length)
            if outer is None:
                return None
            if length != 1:
                others.append(Digit(length, digit.into, digit.read))
            digit = _times(digit, outer, length)
        if digit.into == step:
            outer = over(digit.extent, size)
            if outer is None:
                return None
            along.append(Digit(size, digit.into, digit.read))
            digit = _times(digit, outer, size)
        if digit.extent != 1:
            if over(digit.into, step * size) is None:
                return None
            others.append(digit)
    if len(along) != 1 or not _is_free((digit.extent for digit in others), size):
        return None
    inside = [(digit.extent, digit.into) for digit in others]
    return (along[0], others) if _stays(piece.into, inside, step, size, positive) else None


def _times(digit: Digit, extent: Size, length: Size) -> Digit:
    """So many values of the digit, `length` apart."""
    return Digit(extent, digit.into * length, tuple(step * length for step in digit.read))


def _axis_of(read: Size, size: Size, shape: Sequence[Size], steps: Sequence[Size]) -> int | None:
    """The axis along which a digit reads; None if it stays; -1 if it is none."""
    if read == 0:
        return None
    found = [at for at, step in enumerate(steps) if step == read and shape[at] == size]
    return found[0] if len(found) == 1 else -1


def _stays(
    base: Size,
    digits: Sequence[tuple[Size, Size]],
    step: Size,
    size: Size,
    positive: Collection[Unknown],
) -> bool:
    """Whether all places are in the first position of an axis, but for the axis itself."""
    position, low = divided(base, step)
    outer = over(position, size)
    if outer is None or not _is_free((outer, low, step), size):
        return False
    high = low
    for extent, stride in digits:
        times = over(stride, step * size)
        if not _is_free((stride if times is None else times,), size):
            return False
        if times is not None:
            continue
        reach = stride * (extent - 1)
        if is_at_least_zero(stride, positive):
            high = high + reach
        elif is_at_least_zero(-stride, positive):
            low = low + reach
        else:
            return False
    return all(is_at_least_zero(end, positive) for end in (low, step - 1 - high))


def _is_free(numbers: Iterable[Size], size: Size) -> bool:
    """Whether numbers do not depend on the size of the axis."""
    own = _variables_in(size)
    return all(own.isdisjoint(_variables_in(number)) for number in numbers)


def _variables_in(size: Size) -> set[relax.Var]:
    found = set()
    for unknown in unknowns_in(size):
        if unknown.kind == "size":
            found.add(unknown.variable)
        else:
            found |= {var for arg in unknown.args for var in _variables_in(arg)}
    return found
