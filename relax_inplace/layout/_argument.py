"""What a layout checks of the tensors it is given, while the expression is made.

Sizes that are known are compared. Of a symbolic size, what a layout needs has to be provable:
``n`` may be any number, ``n * 8`` is a multiple of 8, and so is ``n // 8 * 8``, to which
``R.match_cast`` can cast a tensor of unknown size: that is checked when the function runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tvm import ir, relax, sym, tirx

from ..errors import StructuredError

__all__ = [
    "LayoutError",
    "codes_in_word",
    "require",
    "require_equal",
    "require_multiple",
    "shape_of",
    "text_of",
]


class LayoutError(StructuredError):
    """A layout cannot be made of what it was given.

    Attributes
    ----------
    where : str
        The function that was called.
    given : str
    expected : str
    remedy : str
        What to do.
    """

    template = "layout.{where}: {given}, expected {expected}; {remedy}"


def require(condition: bool, where: str, given: str, expected: str, remedy: str) -> None:
    """Raise a LayoutError unless the condition holds."""
    if not condition:
        raise LayoutError.of(where=where, given=given, expected=expected, remedy=remedy)


def codes_in_word(where: str, bits: int, remedy: str) -> int:
    """How many codes of so many bits a word has, if they are 4 or 8."""
    require(bits in (4, 8), where, f"bits={bits!r} given", "4 or 8", remedy)
    return 32 // bits


def shape_of(
    where: str, name: str, value: Any, dtypes: Sequence[str], axes: Sequence[str]
) -> list[ir.Expr]:
    """The sizes of a tensor, if it is one of these dtypes with these axes.

    Parameters
    ----------
    where : str
        The layout that asks, for the error.
    name : str
        Of its parameter.
    value : relax.Expr
        Of known type.
    dtypes : sequence of str
        That it may have; any if empty.
    axes : sequence of str
        What they are called, for the error.
    """
    form = f"{'/'.join(dtypes) or 'a tensor'} ({', '.join(axes)})"
    shape: Any = getattr(value.ty, "shape", None)  # None, too, of a tensor of unknown shape
    require(
        isinstance(shape, relax.ShapeExpr) and len(shape.values) == len(axes),
        where,
        f"`{name}` is {value.ty}",
        form,
        "the type of a weight has to say its shape: annotate the parameter, or use R.match_cast",
    )
    require(
        value.ty.dtype is not None and (not dtypes or str(value.ty.dtype) in dtypes),
        where,
        f"`{name}` is {value.ty.dtype}",
        form,
        "layouts move bits and never convert numbers: give the tensor as it is stored",
    )
    return list(shape.values)


def require_multiple(where: str, what: str, size: ir.Expr, factor: int, remedy: str) -> None:
    """Raise unless a size is a multiple of a number, or, if it is symbolic, provably one."""
    if isinstance(size, tirx.IntImm):
        require(
            size.value % factor == 0,
            where,
            f"{size.value} {what} given",
            f"a multiple of {factor}",
            remedy,
        )
        return
    require(
        sym.Analyzer().can_prove_equal(tirx.floormod(size, factor), 0),
        where,
        f"{text_of(size)} {what} given",
        f"a multiple of {factor}",
        f"write that size as `m * {factor}`, or let R.match_cast check it when the function runs: "
        f"`({text_of(size)}) // {factor} * {factor}`",
    )


def require_equal(
    where: str, what: str, size: ir.Expr, expected: ir.Expr | int, because: str, remedy: str
) -> None:
    """Raise unless two sizes are equal, or, if one is symbolic, provably so."""
    analyzer = sym.Analyzer()
    wanted = str(expected) if isinstance(expected, int) else text_of(analyzer.simplify(expected))
    if not isinstance(size, tirx.IntImm):
        remedy += f"; TVM has to be able to prove it: write that size as `{wanted}`"
    require(
        analyzer.can_prove_equal(size, expected),
        where,
        f"{text_of(size)} {what} given",
        f"{wanted} ({because})",
        remedy,
    )


def text_of(size: ir.Expr) -> str:
    """A size as one would write it: TVM prints ``T.int64(4)``."""
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(size))
