"""Which axis of a stored weight is cut where its owner cuts an axis of the weight.

Definition
----------
A layout *keeps apart* the parts of an axis d, and axis j of what it makes has them, if the layout
of two weights side by side along d is their two layouts side by side along j. That is proved on the
bits. The layout of a weight that is twice as long along d is described
(:mod:`..relayout.description`); in each piece the digit that is outermost in axis d gets half its
extent; and what is left has to be the description for the weight itself. (So the first half fills
the first half of axis j, and the second one, which lies as it does, the other.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from tvm import ir, relax, tirx

from ..ir.kernels import Kernels
from ..ir.resolve import resolve
from ..ir.updates import bindings_of
from ..relayout.description import Digit, Piece, normal
from ..relayout.fields import bits_of
from ..relayout.inlining import with_producers_inlined
from ..relayout.read_description import read_relayouts

__all__ = ["Made", "axis_of_parts"]


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """What a layout makes of some tensors.

    Attributes
    ----------
    mod : tvm.ir.IRModule
        Of one function, ``main``, from the tensors to a tuple of what is made of them.
    """

    mod: ir.IRModule

    @functools.cached_property
    def types(self) -> list[relax.TensorType]:
        """Of what is made."""
        return list(self.mod["main"].ret_ty.fields[:])

    def pieces(self, index: int) -> tuple[Piece, ...]:
        """How the bits of parameter ``index`` come to result ``index``; none if unknown."""
        function = self.mod["main"]
        value_of = {one.var: one.value for one in bindings_of(function)}
        given = function.params[index]
        value = resolve(relax.TupleGetItem(function.body.body, index), value_of.get)
        if isinstance(value, relax.Var):
            return _unchanged(value.ty) if value.same_as(given) else ()
        legalized = Kernels(self.mod).of(value)
        read = relax.analysis.free_vars(value)[:]
        if legalized is None or legalized.operands != [0] or not read[0].same_as(given):
            return ()
        kernel = legalized.kernel
        relayouts = read_relayouts(with_producers_inlined(kernel) or kernel)
        return relayouts[0].pieces if isinstance(relayouts, list) and len(relayouts) == 1 else ()


def _unchanged(ty: relax.TensorType) -> tuple[Piece, ...]:
    shape = _constants(ty)
    if shape is None:
        return ()
    return normal([Piece((Digit(_spans(ty, shape)[-1], 1, (1,)),), 0, ((0, 0),))])


def axis_of_parts(
    one: Made, two: Made, index: int, ty: relax.TensorType, axis: int
) -> tuple[int, int] | None:
    """The axis of result ``index`` that has the parts of an axis of parameter ``index``.

    Parameters
    ----------
    one, two : Made
        Of a weight, and of one that is twice as long along the axis.
    index : int
    ty : relax.TensorType
        Of the weight.
    axis : int

    Returns
    -------
    tuple of int, or None
        The axis, and of how many elements along the given one parts are multiples. None if that is
        not proved.
    """
    given, short, long = map(_constants, (ty, one.types[index], two.types[index]))
    if given is None or short is None or long is None or len(short) != len(long):
        return None
    grown = [j for j, (size, more) in enumerate(zip(short, long, strict=True)) if size != more]
    if len(grown) != 1:
        return None
    given[axis] *= 2
    read = _Axis(_spans(ty, given), len(given) - 1 - axis)
    into = _Axis(_spans(two.types[index], long), len(long) - 1 - grown[0])
    halves, part = [], 1
    for piece in two.pieces(index):
        half, parts = _half(piece, read, into)
        if half is None:
            return None
        halves.append(half)
        part = math.lcm(part, given[axis] // 2 // parts)
    if not halves or normal(halves) != one.pieces(index):
        return None
    return grown[0], part


@dataclasses.dataclass(frozen=True)
class _Axis:
    """An axis of a tensor: the bits of an element, a row, ...; and how many axes are inside."""

    spans: list[int]
    inside: int

    @property
    def stride(self) -> int:
        return self.spans[self.inside]

    @property
    def end(self) -> int:
        return self.spans[self.inside + 1]

    def halved(self, stride: int) -> int:
        """Of a digit, once the axis is half as long."""
        return stride // 2 if stride >= self.end else stride

    def is_outermost(self, stride: int, extent: int) -> bool:
        return stride >= self.stride and stride * extent == self.end


def _half(piece: Piece, read: _Axis, into: _Axis) -> tuple[Piece | None, int]:
    """The piece for the first half of an axis, and how many parts that has."""
    if not piece.moves:
        return None, 1
    digits, parts = [], 0
    for extent, to, start in _cut(piece.digits, read.spans, into.spans):
        if read.is_outermost(start, extent) and extent % 2 == 0:
            parts = extent = extent // 2
        if extent > 1:
            digits.append(Digit(extent, into.halved(to), (read.halved(start),)))
    (param, base), place = piece.inputs[0], piece.into
    if parts == 0 or not isinstance(base, int) or not isinstance(place, int):
        return None, 1
    return dataclasses.replace(
        piece, digits=tuple(digits), inputs=((param, base),), into=place
    ), parts


def _constants(ty: relax.TensorType) -> list[int] | None:
    shape = getattr(ty.shape, "values", None)
    if shape is None or not all(isinstance(size, tirx.IntImm) for size in shape):
        return None
    return [int(size) for size in shape]


def _spans(ty: relax.TensorType, shape: Sequence[int]) -> list[int]:
    """The bits of an element, of a row of the innermost axis, and so on, to those of all."""
    spans = [bits_of(str(ty.dtype))]
    for size in reversed(shape):
        spans.append(spans[-1] * size)
    return spans


def _cut(
    digits: Sequence[Digit], read: Sequence[int], into: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Extents and strides of digits, into and read, cut where an axis ends on either side.

    None of those of symbolic sizes.
    """
    found: list[tuple[int, int, int]] = []
    for digit in digits:
        extent, to, start = digit.extent, digit.into, digit.read[0]
        if not (isinstance(extent, int) and isinstance(to, int) and isinstance(start, int)):
            return []
        found.append((extent, to, start))
    for side, spans in ((1, into), (2, read)):
        for span in spans:
            cut = []
            for sizes in found:
                extent, to, start = sizes
                stride = sizes[side]
                inner = span // stride if stride > 0 and span % stride == 0 else 0
                if 1 < inner < extent and extent % inner == 0:
                    cut.append((extent // inner, to * inner, start * inner))
                    cut.append((inner, to, start))
                else:
                    cut.append(sizes)
            found = cut
    return found
