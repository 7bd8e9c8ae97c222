"""Descriptions that move whole bytes of one input: what the runtime can carry out.

Definition
----------
A description *moves* if no piece computes. It moves *whole bytes* if all its strides and bases are
multiples of 8 bits, and runs of consecutive bits, too. It is a *bijection* of an input if each bit
of the input goes to one place of the output, and nothing else does: so the output may be made in
the input's memory, by exchanges alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .coverage import tile
from .description import Digit, Piece, Relayout
from .size import Size, over

__all__ = ["ByteDigit", "ByteMove", "byte_moves", "is_bijection", "is_move", "is_parted"]


@dataclasses.dataclass(frozen=True)
class ByteDigit:
    """A loop: how often, and how many bytes further it writes and reads each time."""

    extent: Size
    into: Size
    read: Size


@dataclasses.dataclass(frozen=True)
class ByteMove:
    """Runs of bytes that are moved.

    Attributes
    ----------
    width : Size
        Of a run, in bytes.
    digits : tuple of ByteDigit
        Outermost first.
    into : Size
        Where the first run goes, in bytes.
    source : int or None
        The parameter that is read; None if the bytes are constant.
    read : Size
        Where the first run is read, in bytes.
    pattern : bytes
        Xor with each run, or the constant, repeated along it; empty if it is 0.
    """

    width: Size
    digits: tuple[ByteDigit, ...]
    into: Size
    source: int | None
    read: Size
    pattern: bytes


def is_move(relayout: Relayout) -> bool:
    """Whether nothing is computed: bits stay, are turned over, or are constant."""
    return all(piece.value is None for piece in relayout.pieces)


def byte_moves(relayout: Relayout) -> list[ByteMove] | None:
    """The moves of whole bytes that a description is; None if it is none."""
    moves = [_byte_move(piece) for piece in relayout.pieces]
    found = [move for move in moves if move is not None]
    return found if len(found) == len(moves) else None


def _byte_move(piece: Piece) -> ByteMove | None:
    if piece.value is not None or not piece.digits:
        return None
    *outer, run = piece.digits
    if run.into != 1 or any(step != 1 for step in run.read):
        return None
    source, base = piece.inputs[0] if piece.inputs else (None, 0)
    width, into, read = (over(size, 8) for size in (run.extent, piece.into, base))
    digits = [_byte_digit(digit) for digit in outer]
    whole = [digit for digit in digits if digit is not None]
    if width is None or into is None or read is None or len(whole) < len(digits):
        return None
    number = piece.flip if piece.fill is None else piece.fill
    pattern = b""
    if number:
        if not isinstance(width, int):
            return None
        pattern = number.to_bytes(width, "little")
    # The digit of a pattern is by itself in a description: here it is repeated.
    while whole and whole[-1].into == width and (source is None or whole[-1].read == width):
        width = width * whole.pop().extent
    return ByteMove(width, tuple(whole), into, source, read, pattern)


def _byte_digit(digit: Digit) -> ByteDigit | None:
    into, read = over(digit.into, 8), over(digit.read[0] if digit.read else 0, 8)
    return None if into is None or read is None else ByteDigit(digit.extent, into, read)


def is_bijection(relayout: Relayout) -> bool:
    """Whether the output is all bits of one input, each once: proved for all sizes."""
    if len(relayout.inputs) != 1 or not all(piece.moves for piece in relayout.pieces):
        return False
    (source,) = relayout.inputs
    return is_parted([relayout], source)


def is_parted(relayouts: Sequence[Relayout], source: int) -> bool:
    """Whether descriptions read each bit of an input once: proved for all sizes."""
    pieces = [
        piece
        for relayout in relayouts
        for piece in relayout.pieces
        if any(read == source for read, _ in piece.inputs)
    ]
    if not all(piece.moves and len(piece.inputs) == 1 for piece in pieces):
        return False
    boxes = (
        (piece.inputs[0][1], tuple((digit.extent, digit.read[0]) for digit in piece.digits))
        for piece in pieces
    )
    return tile(boxes, relayouts[0].bits_of(source))
