"""In which blocks an output may be computed over an input.

Definition
----------
The output may lie in the memory of an input, from its first byte, if there are two numbers of bits,
``written`` and ``read``, such that bits of the output from ``written * t`` on, up to the next
block, are made of bits of the input from ``read * t`` on, up to the next one, and of other inputs;
if ``written`` is not above ``read``; and if the output is not larger than the input. Blocks are
then made one after another, each from a copy of what is there: see :mod:`.inplace_kernel`.

Each digit of a piece is *outer*, and goes one block further on both sides with ``written`` bits of
the output; or *inner*, or is two digits, of which one is outer and one is inner. What inner digits
reach has to lie in one block, on both sides in the same.

An input that several outputs are made of is not written over: the second needs what was there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from .description import Digit, Piece, Relayout
from .size import Size, divided, is_at_least_zero, over

__all__ = ["Blocks", "find_blocks", "in_blocks"]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """An output that may lie in the memory of an input: see the definition.

    Attributes
    ----------
    input, output : int
        Parameters.
    read, written : int
        Bytes of a block.
    """

    input: int
    output: int
    read: int
    written: int


def find_blocks(relayouts: Sequence[Relayout], most: int) -> list[Blocks]:
    """All outputs of a kernel that may lie in the memory of an input.

    Parameters
    ----------
    relayouts : sequence of Relayout
        All of the kernel.
    most : int
        Bytes of an input's block that fit into scratch memory.
    """
    found = []
    for relayout in relayouts:
        for source in relayout.inputs:
            if sum(source in other.inputs for other in relayouts) == 1:
                blocks = in_blocks(relayout, source, most)
                if not isinstance(blocks, str):
                    found.append(blocks)
    return found


def in_blocks(relayout: Relayout, source: int, most: int) -> Blocks | str:
    """The smallest blocks in which an output may be computed over an input, or why in none.

    Parameters
    ----------
    relayout : Relayout
    source : int
        The input.
    most : int
        Bytes of its block that fit into scratch memory.
    """
    if not is_at_least_zero(relayout.bits_of(source) - relayout.bits_of(relayout.output)):
        return "makes larger elements, or more of them"
    for read, written in sorted(set(_candidates(relayout, source))):
        times = math.lcm(8 // math.gcd(8, read), 8 // math.gcd(8, written))
        if read * times > most * 8:
            break
        if all(_is_local(piece, source, read, written) for piece in relayout.pieces):
            return Blocks(source, relayout.output, read * times // 8, written * times // 8)
    return f"has no blocks of up to {most} bytes that are computed from those there"


def _candidates(relayout: Relayout, source: int) -> Iterator[tuple[int, int]]:
    for piece in relayout.pieces:
        for at, (param, _) in enumerate(piece.inputs):
            for digit in piece.digits if param == source else ():
                read, written = digit.read[at], digit.into
                if isinstance(read, int) and isinstance(written, int) and 0 < written <= read:
                    yield read, written


def _is_local(piece: Piece, source: int, read: int, written: int) -> bool:
    """Whether each block that is written reads, of an input, the one there."""
    for at, (param, base) in enumerate(piece.inputs):
        if param != source:
            continue
        inner: list[Digit] = []
        for digit in piece.digits:
            parts = _parts(digit, at, read, written)
            if parts is None:
                return False
            inner += parts
        bits = piece.value.bits if piece.value is not None else 1
        there = _block_of(base, [(d.extent, d.read[at]) for d in inner], read, bits)
        here = _block_of(piece.into, [(d.extent, d.into) for d in inner], written, bits)
        if here is None or here != there:
            return False
    return True


def _parts(digit: Digit, at: int, read: int, written: int) -> list[Digit] | None:
    """What of a digit stays in a block; None if it leaves it otherwise than by whole ones."""
    blocks = over(digit.into, written)
    if blocks is not None:
        return [] if digit.read[at] == blocks * read else None
    length = over(written, digit.into)
    if length is not None and digit.read[at] * length == read and over(digit.extent, length):
        return [Digit(length, digit.into, digit.read)]
    return [digit] if isinstance(digit.into, int) and digit.into < written else None


def _block_of(
    base: Size, digits: Sequence[tuple[Size, Size]], block: int, bits: int
) -> Size | None:
    """The number of the one block that a box lies in."""
    number, low = divided(base, block)
    if not isinstance(low, int):
        return None
    high = low + bits - 1
    for extent, stride in digits:
        if not isinstance(extent, int) or not isinstance(stride, int):
            return None
        low, high = low + min(stride * (extent - 1), 0), high + max(stride * (extent - 1), 0)
    return number + low // block if low // block == high // block else None
