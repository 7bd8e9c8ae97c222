"""Descriptions that move bits, as the runtime takes them.

Definition
----------
A description *moves* if no piece computes. It moves *in runs of bytes* if, in the output and in
each input, bits lie together in whole bytes, and all else is steps of whole bytes: nibbles whose
order changes within bytes do, a nibble spread to a byte doesn't. It is a *bijection* of an input if
each bit of the input goes to one place of the output, and nothing else does: so the output may be
made in the input's memory, by exchanges alone. It is *nested* if no digit's step ends within what
digits of shorter steps reach, so that places are found without a search.

What the runtime takes of a piece are numbers (cpp/relayout.h), in bits: a run, where the first is
read and written, 64 bits of a pattern, whether it is a constant, and the digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .coverage import tile
from .description import Digit, Piece, Relayout
from .size import Size, is_at_least_zero, nominal, over

__all__ = ["Call", "calls_of", "is_bijection", "is_nested", "is_of_pages"]

_WORD = 64


@dataclasses.dataclass(frozen=True)
class Call:
    """What one call of the runtime moves.

    Attributes
    ----------
    source : int or None
        The parameter that is read; None if nothing is.
    numbers : tuple of Size
        How many pieces there are, and the numbers of each.
    """

    source: int | None
    numbers: tuple[Size, ...]


def calls_of(relayout: Relayout) -> list[Call] | None:
    """The calls that carry a description out, one for each input; None if it is not for them.

    Those are for runs of bytes. Constants beside each of many short runs are none either: to widen
    numbers is a computation's part, whose registers have room for the zeros.
    """
    of_source: dict[int | None, list[Piece]] = {}
    for piece in relayout.pieces:
        cut = _cut_by_pattern(piece)
        if piece.value is not None or cut is None or not _is_in_bytes(piece):
            return None
        of_source.setdefault(piece.inputs[0][0] if piece.inputs else None, []).extend(cut)
    constants = of_source.pop(None, [])
    first = next(iter(of_source), None)
    of_source[first] = of_source.get(first, []) + constants
    return [
        Call(source, (len(pieces), *(number for piece in pieces for number in _numbers(piece))))
        for source, pieces in of_source.items()
        if pieces
    ]


def _cut_by_pattern(piece: Piece) -> list[Piece] | None:
    """The same with patterns of 1, 2, 4 to 64 bits: those that repeat in a word."""
    pattern = piece.flip or piece.fill
    if not pattern or not piece.digits:
        return [piece]
    *outer, run = piece.digits
    if run.into != 1 or any(step != 1 for step in run.read):
        return None
    assert isinstance(run.extent, int)
    found = []
    done = 0
    while done < run.extent:
        width = min(_WORD, 1 << (run.extent - done).bit_length() - 1)
        bits = pattern >> done & (1 << width) - 1
        word = sum(bits << at for at in range(0, _WORD, width))
        found.append(
            dataclasses.replace(
                piece,
                digits=(*outer, dataclasses.replace(run, extent=width)),
                into=piece.into + done,
                inputs=tuple((param, base + done) for param, base in piece.inputs),
                flip=word if piece.flip else 0,
                fill=word if piece.fill is not None else None,
            )
        )
        done += width
    return found


def _numbers(piece: Piece) -> list[Size]:
    digits = list(piece.digits)
    run: Size = 1
    if digits and digits[-1].into == 1 and all(step == 1 for step in digits[-1].read):
        run = digits.pop().extent
    pattern = piece.flip or piece.fill or 0
    base = piece.inputs[0][1] if piece.inputs else 0
    signed = pattern - (pattern >> _WORD - 1 << _WORD)
    found: list[Size] = [run, base, piece.into, signed, int(piece.fill is not None), len(digits)]
    for digit in digits:
        found += [digit.extent, digit.into, digit.read[0] if digit.read else 0]
    return found


def _is_in_bytes(piece: Piece) -> bool:
    sides = [(piece.into, [digit.into for digit in piece.digits])]
    for at, (_, base) in enumerate(piece.inputs):
        sides.append((base, [digit.read[at] for digit in piece.digits]))
    if piece.fill is not None and _is_beside_short_runs(piece):
        return False
    return all(
        over(base, 8) is not None and _are_in_bytes(piece.digits, steps) for base, steps in sides
    )


def _are_in_bytes(digits: tuple[Digit, ...], steps: list[Size]) -> bool:
    run: Size = 1
    left = dict(enumerate(steps))
    while over(run, 8) is None:
        at = next((at for at, step in left.items() if step == run or step == -run), None)
        if at is None:
            return False
        run = run * digits[at].extent
        del left[at]
    return all(over(step, 8) is not None for step in left.values())


def _is_beside_short_runs(piece: Piece) -> bool:
    run: Size = 1
    for digit in reversed(piece.digits):
        if digit.into != run:
            short = nominal(run) < _WORD
            return short and isinstance(digit.into, int) and digit.into <= 2 * _WORD
        run = run * digit.extent
    return False


def is_bijection(relayout: Relayout) -> bool:
    """Whether the output is all bits of one input, each once: proved for all sizes."""
    if len(relayout.inputs) != 1 or not all(piece.moves for piece in relayout.pieces):
        return False
    (source,) = relayout.inputs
    return _is_read_once(relayout.pieces, relayout.bits_of(source))


def is_of_pages(relayouts: Sequence[Relayout], source: int) -> bool:
    """Whether an input is moved in runs of consecutive bits, each bit once at most.

    Parameters
    ----------
    relayouts : sequence of Relayout
        All of a kernel, of moves.
    source : int
    """
    pieces = [
        piece
        for relayout in relayouts
        for piece in relayout.pieces
        if any(param == source for param, _ in piece.inputs)
    ]
    if not pieces or not all(_is_a_run(piece) for piece in pieces):
        return False
    return len(pieces) == 1 or _is_read_once(pieces, relayouts[0].bits_of(source))


def _is_a_run(piece: Piece) -> bool:
    return all(digit.into == 1 and digit.read == (1,) for digit in piece.digits)


def _is_read_once(pieces: Sequence[Piece], bits: Size) -> bool:
    """Whether moves of one input read all of it, each bit once: proved for all sizes."""
    boxes = (
        (piece.inputs[0][1], tuple((digit.extent, digit.read[0]) for digit in piece.digits))
        for piece in pieces
    )
    return tile(boxes, bits)


def is_nested(relayout: Relayout) -> bool:
    """Whether the pieces of a bijection are nested, on both sides: proved for all sizes."""
    return all(
        _are_nested([(digit.extent, step) for digit, step in zip(piece.digits, steps, strict=True)])
        for piece in relayout.pieces
        for steps in (
            [digit.into for digit in piece.digits],
            [digit.read[0] for digit in piece.digits],
        )
    )


def _are_nested(digits: list[tuple[Size, Size]]) -> bool:
    reach: Size = 1
    rising = [(extent, step if nominal(step) >= 0 else -step) for extent, step in digits]
    for extent, step in sorted(rising, key=lambda digit: nominal(digit[1])):
        if not is_at_least_zero(step - reach):
            return False
        reach = reach + step * (extent - 1)
    return True
