"""A layout in a line: the digits of a place, from the outermost one, in and out.

Definition
----------
``"K k:8, N, e:2 c:4 b:4 -> N c e, K, k b"``: a tensor of axes of K * 8 and N, of elements of 32
bits, becomes one of axes of N * 8 and K. A bit of an element is at digits ``K k N e c b``, each
from 0 to below its extent; in the result it is where the same digits are in the other order.

- A *word* is a digit: ``name:extent``, given once, or a name, whose extent follows from a shape.
- A *comma* ends an axis. What follows the last axis are the bits of an element, if they are as
  many, or else an axis and these bits.
- ``@144+16`` says that what follows in the tensor takes 144 bits, and begins at the 16th: a field
  of a struct.
- ``1/2`` is a digit of extent 2 that is 1: the second half of what is outside of it.
- ``^0x88``, at the end, turns over bits of the innermost digit.
- Each line, with what follows it from an arrow on, is a piece. Together they say where every bit
  comes from, and where it goes to.

So a line read from right to left is the layout back again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from tvm import ir, relax, sym, te, tirx

from ..relayout.description import Digit, Piece, Relayout, normal
from ..relayout.description_kernel import described, sizes_of
from ..relayout.fields import bits_of
from ..relayout.size import Size, divided, expression, over
from ._kernel import call_kernel

__all__ = ["Declaration", "call_declared"]

_WORD = re.compile(r"(?P<name>[A-Za-z]\w*)(:(?P<extent>\d+))?|@\d+\+\d+|\d+/\d+")


@dataclasses.dataclass(frozen=True)
class _Line:
    """A piece: the words of each axis of what is read, and of the result."""

    read: tuple[tuple[str, ...], ...]
    into: tuple[tuple[str, ...], ...]
    flip: int


class Declaration:
    """A layout as lines: see the definition.

    Parameters
    ----------
    text : str
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._extents: dict[str, int] = {}
        self._lines = [self._line(line) for line in _lines_of(text)]

    def __str__(self) -> str:
        return "\n".join(_lines_of(self.text))

    def _line(self, line: str) -> _Line:
        moved, _, flip = line.partition("^")
        read, into = map(self._axes, moved.split("->"))
        if sorted(_names(read)) != sorted(_names(into)):
            raise ValueError(f"{line}: not the same digits on both sides")
        if flip and read[-1][-1] != into[-1][-1]:
            raise ValueError(f"{line}: the innermost digit is not that of both sides")
        return _Line(read, into, int(flip or "0", 16))

    def _axes(self, side: str) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(map(self._word, axis.split())) for axis in side.split(","))

    def _word(self, word: str) -> str:
        found = _WORD.fullmatch(word)
        if found is None:
            raise ValueError(f"{word}: neither a digit nor a field")
        if found["name"] and found["extent"]:
            if found["name"] in self._extents:
                raise ValueError(f"{word}: its extent is given twice")
            self._extents[found["name"]] = int(found["extent"])
        return found["name"] or word

    def of_each(self, name: str) -> Declaration:
        """The same for each index of an axis in front."""
        lines = (line.split("->") for line in _lines_of(self.text))
        return Declaration(
            "\n".join(f"{name}, {read.strip()} -> {name}, {into.strip()}" for read, into in lines)
        )

    @property
    def back(self) -> Declaration:
        """The layout from right to left."""
        other = Declaration("")
        other.text, other._extents = self.text, self._extents
        other._lines = [_Line(line.into, line.read, line.flip) for line in self._lines]
        return other

    def factors(self, rank: int) -> list[int]:
        """Of what each axis that is read is a multiple, whatever the sizes are."""
        known = [_extent(axis, self._extents)[0] for axis in self._lines[0].read]
        return [_whole(size) for size in known[:rank]]

    # -- of sizes ----------------------------------------------------------------------------------

    def extents(self, shape: Sequence[Size], bits: int) -> Mapping[str, Size]:
        """The extent of each digit, where a tensor of this shape is read.

        Parameters
        ----------
        shape : sequence of Size
        bits : int
            Of an element.
        """
        extents: dict[str, Size] = dict(self._extents)
        for line in self._lines:
            counts = [*shape[: len(line.read) - 1]]
            counts.append(bits * (shape[-1] if len(line.read) == len(shape) else 1))
            if len(line.read) not in (len(shape), len(shape) + 1):
                raise ValueError(f"{self.text}: not of {len(shape)} axes")
            for axis, count in zip(line.read, counts, strict=True):
                known, unknown = _extent(axis, extents)
                if unknown is None:
                    if known != count:
                        raise ValueError(f"{' '.join(axis)}: {count} given")
                    continue
                found = over(count, known)
                if found is None:
                    raise ValueError(f"{' '.join(axis)}: not of {count}")
                extents[unknown] = found
        return extents

    def shape(self, extents: Mapping[str, Size], bits: int) -> list[Size]:
        """That of the result, of elements of so many bits."""
        (shape, *others) = (self._shape_of(line, extents, bits) for line in self._lines)
        if any(other != shape for other in others):
            raise ValueError(f"{self.text}: lines of several shapes")
        return shape

    def _shape_of(self, line: _Line, extents: Mapping[str, Size], bits: int) -> list[Size]:
        *sizes, last = (_extent(axis, extents)[0] for axis in line.into)
        count, rest = divided(last, bits)
        if rest != 0:
            raise ValueError(f"{self.text}: not of whole elements of {bits} bits")
        return sizes if count == 1 else [*sizes, count]

    def relayout(self, extents: Mapping[str, Size]) -> Relayout:
        """The description of parameter 1, of parameter 0."""
        pieces = []
        for line in self._lines:
            (read, start, taken), (into, to, made) = (
                _strides([word for axis in side for word in axis], extents)
                for side in (line.read, line.into)
            )
            digits = tuple(Digit(extents[name], into[name], (read[name],)) for name in into)
            pieces.append(Piece(digits, to, ((0, start),), line.flip))
        return Relayout(1, normal(pieces), ((0, taken), (1, made)))


def _lines_of(text: str) -> list[str]:
    lines = re.sub(r"\n\s*->", " ->", text).splitlines()
    return [line.strip() for line in lines if line.strip()]


def _names(axes: Sequence[Sequence[str]]) -> Iterator[str]:
    return (word for axis in axes for word in axis if word[0].isalpha())


def _two_numbers(word: str) -> tuple[int, int]:
    """Bits of a field, and where it begins; or the only value of a digit, and its extent."""
    one, two = re.split(r"[+/]", word.removeprefix("@"))
    return int(one), int(two)


def _whole(size: Size) -> int:
    assert isinstance(size, int)
    return size


def _extent(axis: Sequence[str], extents: Mapping[str, Size]) -> tuple[Size, str | None]:
    """The extent of an axis, or a factor of it, and the name of the digit that is the other one."""
    known: Size = 1
    unknown = None
    for word in reversed(axis):
        if word.startswith("@"):
            known = _two_numbers(word)[0]
        elif not word[0].isalpha():
            known = known * _two_numbers(word)[1]
        elif word in extents:
            known = known * extents[word]
        elif unknown is None:
            unknown = word
        else:
            raise ValueError(f"{' '.join(axis)}: {unknown} and {word} have no extent")
    return known, unknown


def _strides(
    words: Sequence[str], extents: Mapping[str, Size]
) -> tuple[dict[str, Size], Size, Size]:
    """Bits to the next value of each digit; where all are 0; and all bits."""
    width: Size = 1
    base: Size = 0
    strides: dict[str, Size] = {}
    for word in reversed(words):
        if word.startswith("@"):
            size, start = _two_numbers(word)
            if not isinstance(width, int) or start + width > size:
                raise ValueError(f"{word}: holds less than {width} bits")
            width, base = size, base + start
        elif not word[0].isalpha():
            value, extent = _two_numbers(word)
            base, width = base + value * width, width * extent
        else:
            strides[word] = width
            width = width * extents[word]
    return dict(reversed(strides.items())), base, width


# -- as a kernel -----------------------------------------------------------------------------------


def call_declared(
    where: str,
    name: str,
    declaration: Declaration,
    weight: relax.Expr,
    *,
    dtype: str | None = None,
    is_back: bool = False,
    keeps_shape: bool = False,
    pads: bool = False,
    end: Sequence[ir.Expr] | None = None,
) -> relax.Expr:
    """Call the kernel that a layout is, or that which undoes it.

    Parameters
    ----------
    where : str
        The layout that calls, for the error.
    name : str
        For the PrimFunc.
    declaration : Declaration
    weight : relax.Expr
        What is given.
    dtype : str, optional
        Of the result, if it is not that of what is given.
    is_back : bool
        Whether the layout is undone.
    keeps_shape : bool
        Whether the result has the shape of what is given, which the line's left side tells.
    pads : bool
        Whether zeros are appended along axes, as far as the line wants; `end` : what is left of
        each axis of the result.
    """

    def kernel(given: te.Tensor, *end: ir.Expr) -> te.Tensor:
        result = dtype or str(given.dtype)
        way = declaration.back if is_back else declaration
        shape, whole = given.shape[:], {}
        if pads:
            factors = way.factors(len(shape))
            shape = [tirx.ceildiv(s, f) * f for s, f in zip(shape, factors, strict=True)]
            whole[0] = shape
        sizes = sizes_of(shape)
        extents = (declaration if keeps_shape else way).extents(sizes, bits_of(str(given.dtype)))
        sizes = sizes if keeps_shape else way.shape(extents, bits_of(result))
        made = [sym.Analyzer().simplify(expression(size)) for size in sizes]
        if end:
            whole[1] = made
        return described(way.relayout(extents), {0: given}, end or made, result, whole)

    return call_kernel(where, name, kernel, weight, *(end or ()))
