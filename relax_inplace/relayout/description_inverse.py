"""The description that undoes another one.

Definition
----------
A description is undone by reading where it wrote, and writing where it read. That is a description
if each bit of its one input is read once, which is proved as it is of the output. What is constant
is left out. So tiles with a rim that is filled up have an inverse, and what leaves out, repeats or
mixes has none.

What computes is undone if each of its elements is computed from one, by the same exact casts
(:mod:`.exact_cast`), xor with a constant, and ``not``: then the inverse computes, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tvm_ffi
from tvm import ir, tirx

from .coverage import tile
from .description import Computed, Digit, Piece, Relayout, box_of, normal
from .exact_cast import cast_back, lossy
from .fields import bits_of

__all__ = ["inverse"]


def inverse(relayout: Relayout) -> Relayout | str:
    """What makes the input of a description again from its output, or why nothing is known to.

    Parameters
    ----------
    relayout : Relayout
        Its output and its input become the input and the output.

    Returns
    -------
    Relayout or str
        Its pieces all move, or all compute the same.
    """
    kept = [piece for piece in relayout.pieces if piece.fill is None]
    undone = _undone([piece.value for piece in kept])
    if isinstance(undone, str):
        return undone
    if len(relayout.inputs) != 1:
        return "reads several tensors" if relayout.inputs else "reads no tensor"
    (source,) = relayout.inputs
    pieces = normal(_turned_round(piece, relayout.output, undone) for piece in kept)
    if not tile((box_of(piece) for piece in pieces), relayout.bits_of(source)):
        return "is not proved to keep every element"
    return Relayout(source, pieces, relayout.bits)


def _turned_round(piece: Piece, output: int, value: Computed | None) -> Piece:
    ((_, base),) = piece.inputs
    digits = tuple(Digit(d.extent, d.read[0], (d.into,)) for d in piece.digits)
    return dataclasses.replace(
        piece, digits=digits, into=base, inputs=((output, piece.into),), value=value
    )


# -- what computes ---------------------------------------------------------------------------------


def _undone(values: Sequence[Computed | None]) -> Computed | str | None:
    """What undoes all of these; None if nothing is computed; or why nothing does."""
    computed = [value for value in values if value is not None]
    if not computed:
        return None
    first = computed[0]
    if len(first.slots) != 1 or len(computed) < len(values):
        return "computes new numbers"
    (slot,) = first.slots
    if not all(tvm_ffi.structural_equal(_as_function(v), _as_function(first)) for v in computed):
        return "computes new numbers"
    steps = _steps_back(first.value, slot)
    if isinstance(steps, str):
        return steps
    given = tirx.Var("x", str(first.value.ty))
    made: ir.Expr = given
    for step in steps:
        made = step(made)
    return Computed(made, (given,), bits_of(str(slot.ty)))


def _as_function(computed: Computed) -> tirx.PrimFunc:
    return tirx.PrimFunc(list(computed.slots), tirx.Evaluate(computed.value))


def _steps_back(value: ir.Expr, slot: ir.Expr) -> list[Callable[[ir.Expr], ir.Expr]] | str:
    """What undoes a value of one element, the last operation first."""
    steps: list[Callable[[ir.Expr], ir.Expr]] = []
    while not value.same_as(slot):
        is_integer = str(value.ty).startswith(("int", "uint"))
        if isinstance(value, tirx.Cast):
            source, target = str(value.value.ty), str(value.ty)
            back = cast_back(source, target)
            if back is None:
                return f"casts: {lossy(source, target)}"
            steps.append(back)
            value = value.value
        elif isinstance(value, tirx.BitwiseNot) and is_integer:
            steps.append(lambda made: ~made)
            value = value.a
        elif isinstance(value, tirx.BitwiseXor) and isinstance(value.b, tirx.IntImm):
            steps.append(_flip(value.b))
            value = value.a
        else:
            return "computes new numbers"
    return steps


def _flip(bits: ir.Expr) -> Callable[[ir.Expr], ir.Expr]:
    return lambda made: made ^ bits
