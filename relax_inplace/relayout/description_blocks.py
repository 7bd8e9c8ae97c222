"""In which blocks an output may be computed over an input.

Definition
----------
The output may lie in the memory of an input, from its first byte, if there are two numbers of bits,
``written`` and ``read``, such that bits of the output from ``written * t`` on, up to the next
block, are made of bits of the input from ``read * t`` on, up to the next one, and of other inputs;
if ``written`` is not above ``read``; and if the output is not larger than the input. Then a block
that is read before it is written reads what the input held, if no block further on has been
written. Blocks of the same size may be made in any order. Where those of the output are smaller,
block t is written where blocks up to t were: these have to be read by then.

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
from .fields import bits_of
from .size import Size, divided, is_at_least_zero, over

__all__ = ["INPLACE", "MOST_SCRATCH", "Blocks", "Parts", "find_blocks", "in_blocks", "parts_of"]

INPLACE = "relax_inplace.inplace"  # of a kernel: pairs of parameters that may be one memory
MOST_SCRATCH = 256 * 1024  # bytes for each thread


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
            if param != source:
                continue
            sizes: list[tuple[Size, Size]] = [(d.read[at], d.into) for d in piece.digits]
            if piece.value is not None:
                sizes.append((bits_of(str(piece.value.slots[at].ty)), piece.value.bits))
            for read, written in sizes:
                if isinstance(read, int) and isinstance(written, int) and 0 < written <= read:
                    yield read, written


def _is_local(piece: Piece, source: int, read: int, written: int) -> bool:
    """Whether each block that is written reads, of an input, the one there."""
    for at, (param, base) in enumerate(piece.inputs):
        if param != source:
            continue
        parts = parts_of(piece, written)
        if parts is None:
            return False
        if any(d.read[at] * written != d.into * read for d in parts.outer):
            return False
        bits = 1 if piece.value is None else bits_of(str(piece.value.slots[at].ty))
        there = _block_of(base, [(d.extent, d.read[at]) for d in parts.inner], read, bits)
        if there != parts.number:
            return False
    return True


@dataclasses.dataclass(frozen=True)
class Parts:
    """The digits of a piece, those from block to block and those in one: see the definition.

    Attributes
    ----------
    number : Size
        Of the block where all digits are 0.
    outer, inner : tuple of Digit
    """

    number: Size
    outer: tuple[Digit, ...]
    inner: tuple[Digit, ...]


def parts_of(piece: Piece, written: int) -> Parts | None:
    """The digits of a piece that writes blocks of so many bits; None if one of them is neither."""
    outer: list[Digit] = []
    inner: list[Digit] = []
    for digit in piece.digits:
        length = over(written, digit.into)
        count = over(digit.extent, length) if length is not None else None
        if over(digit.into, written) is not None:
            outer.append(digit)
        elif length is not None and count is not None and count != 1:
            steps = tuple(step * length for step in digit.read)
            outer.append(Digit(count, digit.into * length, steps))
            inner.append(Digit(length, digit.into, digit.read))
        else:
            inner.append(digit)
    bits = piece.value.bits if piece.value is not None else 1
    number = _block_of(piece.into, [(d.extent, d.into) for d in inner], written, bits)
    return None if number is None else Parts(number, tuple(outer), tuple(inner))


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
