"""The description that undoes another one.

Definition
----------
A description is undone by reading where it wrote, and writing where it read. That is a description
if each bit of its one input is read once, which is proved as it is of the output. What is constant
is left out. So tiles with a rim that is filled up have an inverse, and what leaves out, repeats or
computes has none.
"""

from __future__ import annotations

import dataclasses

from .coverage import tile
from .description import Digit, Piece, Relayout, box_of, normal

__all__ = ["inverse"]


def inverse(relayout: Relayout) -> Relayout | str:
    """What makes the input of a description again from its output, or why nothing is known to.

    Parameters
    ----------
    relayout : Relayout
        Its output and its input become the input and the output.
    """
    moves = [piece for piece in relayout.pieces if piece.fill is None]
    if any(piece.value is not None for piece in moves):
        return "computes new numbers"
    if len(relayout.inputs) != 1:
        return "reads several tensors" if relayout.inputs else "reads no tensor"
    (source,) = relayout.inputs
    pieces = normal(_turned_round(piece, relayout.output) for piece in moves)
    if not tile((box_of(piece) for piece in pieces), relayout.bits_of(source)):
        return "is not proved to keep every element"
    return Relayout(source, pieces, relayout.bits)


def _turned_round(piece: Piece, output: int) -> Piece:
    ((_, base),) = piece.inputs
    digits = tuple(Digit(d.extent, d.read[0], (d.into,)) for d in piece.digits)
    return dataclasses.replace(piece, digits=digits, into=base, inputs=((output, piece.into),))
