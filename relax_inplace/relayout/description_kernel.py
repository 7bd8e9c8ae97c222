"""The kernel that a description of moves is, as a tensor expression.

Definition
----------
Each element of the output is computed from its indices: the digits of a piece are quotients and
rests of them, and say where the piece reads. An element of several pieces is their bits, put
together (:mod:`.element_parts`); where pieces have other elements, conditions choose. Which indices
these are says :mod:`.element_indices`. :mod:`.read_description` reads the same description off the
kernel.

What computes has no kernel here; nor have bits of a number of elements that is not known, and
places that do not follow each other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import tvm
import tvm_ffi
from tvm import ir, relax, te, tirx

from .description import Piece, Relayout
from .element_indices import Axes, DigitIndices, Joint, joints_of
from .element_parts import NoKernel, Part, Step, groups_of, parts_of
from .fields import bits_of
from .index import NoRelayout, Restart, Sizes
from .size import (
    Polynomial,
    Size,
    Unknown,
    evaluate,
    expression,
    factors_in,
    unknowns_in,
)
from .tir_forms import IndexReader

__all__ = ["described", "kernel_of", "sizes_of"]

_MOST_RESTARTS = 16
_Shape: TypeAlias = Sequence[ir.Expr | int]


def kernel_of(
    relayout: Relayout, shapes: Mapping[int, _Shape], dtypes: Mapping[int, str]
) -> tirx.PrimFunc | str:
    """A kernel that does what a description says, or why there is none.

    Parameters
    ----------
    relayout : Relayout
        Of moves.
    shapes, dtypes : mapping
        Of each parameter that it reads or writes; of as many bits as the description says.

    Returns
    -------
    tvm.tirx.PrimFunc or str
        Of the inputs, in order; of the sizes, by name, that no axis of an input is alone; and of
        the output. Variables are new.
    """
    shapes = {param: _whole_numbers(shape) for param, shape in shapes.items()}
    given = {
        param: te.placeholder(shapes[param], dtypes[param], f"given{at or ''}")
        for at, param in enumerate(relayout.inputs)
    }
    try:
        made = described(relayout, given, shapes[relayout.output], dtypes[relayout.output])
    except NoKernel as error:
        return str(error)
    axes = [size for tensor in given.values() for size in tensor.shape]
    known = [size for size in axes if isinstance(size, relax.Var)]
    free: dict[relax.Var, None] = {}
    for size in (*axes, *made.shape):
        free |= dict.fromkeys(tirx.analysis.undefined_vars(size))
    sizes = [var for var in free if not any(var.same_as(one) for one in known)]
    sizes.sort(key=lambda var: str(var.name))
    kernel = te.create_prim_func([*given.values(), *sizes, made], "int64")
    return tvm.get_global_func("s_tir.RenewDefs")(kernel.without_attr("global_symbol"))


def described(
    relayout: Relayout,
    given: Mapping[int, te.Tensor],
    shape: _Shape,
    dtype: str,
    whole: Mapping[int, _Shape] | None = None,
) -> te.Tensor:
    """What a description makes of tensors. Raises NoKernel.

    Parameters
    ----------
    relayout : Relayout
        Of moves, in the variables of the shapes.
    given : mapping
        The tensor for each parameter that is read.
    shape : sequence
    dtype : str
        Of the result.
    whole : mapping, optional
        The shapes that the description is of, of parameters that end earlier along some axes: zeros
        are read there, and nothing is written.
    """
    if any(piece.value is not None for piece in relayout.pieces):
        raise NoKernel("computes new numbers")
    known = _KnownSizes(relayout)
    shape = _whole_numbers(shape)
    order = [relayout.output, *given]
    real = [shape, *(tensor.shape[:] for tensor in given.values())]
    described_as = [
        _whole_numbers((whole or {}).get(param, own))
        for param, own in zip(order, real, strict=True)
    ]
    sizes = iter(known.sizes(size for one in (*described_as, *real) for size in one))
    dtypes = [dtype, *(str(tensor.dtype) for tensor in given.values())]
    axes = {
        param: Axes([next(sizes) for _ in one], element)
        for param, one, element in zip(order, described_as, dtypes, strict=True)
    }
    ends = {param: [next(sizes) for _ in own] for param, own in zip(order, real, strict=True)}
    into = axes.pop(relayout.output)
    widths = {param: one.bits for param, one in axes.items()}
    pieces = known.of(relayout).pieces
    groups = groups_of(part for piece in pieces for part in parts_of(piece, into.bits, widths))
    output = _Output(into, axes, given, ends)

    def element(*at: Any) -> ir.Expr:
        return output.element(groups, at)

    return te.compute(shape, element, "made")


def sizes_of(shape: Iterable[ir.Expr]) -> list[Size]:
    """What is known of the sizes of axes. Raises NoKernel."""
    return _KnownSizes().sizes(shape)


def _whole_numbers(shape: _Shape) -> list[ir.Expr]:
    return [tirx.const(size, "int64") if isinstance(size, int) else size for size in shape]


# -- sizes -----------------------------------------------------------------------------------------


class _KnownSizes:
    """Sizes of shapes, in the unknowns of a description: those that it divides are divided."""

    def __init__(self, relayout: Relayout | None = None) -> None:
        self._sizes = Sizes()
        for unknown in _unknowns_of(relayout) if relayout is not None else ():
            if unknown.kind == "%" or (unknown.kind == "//" and unknown.high is None):
                self._divide(*unknown.args)

    def _divide(self, size: Size, by: int) -> None:
        try:
            self._sizes.floordiv(size, by)
        except Restart:
            return

    def sizes(self, shape: Iterable[ir.Expr]) -> list[Size]:
        """Of each axis."""
        shape = list(shape)
        for _ in range(_MOST_RESTARTS):
            try:
                return [IndexReader(self._sizes, {}).size(axis) for axis in shape]
            except Restart:
                continue
            except NoRelayout as error:
                raise NoKernel(str(error)) from error
        raise NoKernel("divides sizes in too many ways")

    def of(self, relayout: Relayout) -> Relayout:
        """The description, in unknowns as they are thought of by now."""
        known = {u: self._sizes.of(u) for u in _unknowns_of(relayout)}

        def size(one: Size) -> Size:
            return evaluate(one, known)

        def piece(one: Piece) -> Piece:
            digits = tuple(
                dataclasses.replace(
                    digit,
                    extent=size(digit.extent),
                    into=size(digit.into),
                    read=tuple(map(size, digit.read)),
                )
                for digit in one.digits
            )
            inputs = tuple((param, size(base)) for param, base in one.inputs)
            return dataclasses.replace(one, digits=digits, into=size(one.into), inputs=inputs)

        return dataclasses.replace(relayout, pieces=tuple(map(piece, relayout.pieces)))


def _unknowns_of(relayout: Relayout) -> list[Unknown]:
    """Those of a description, and what they are made of; what is made comes last."""
    found: dict[Unknown, None] = {}

    def add(size: Size) -> None:
        for unknown in sorted(unknowns_in(size), key=lambda one: one.name):
            for arg in unknown.args:
                if isinstance(arg, Polynomial):
                    add(arg)
            found[unknown] = None

    for _, bits in relayout.bits:
        add(bits)
    for piece in relayout.pieces:
        add(piece.into)
        for _, base in piece.inputs:
            add(base)
        for digit in piece.digits:
            for size in (digit.extent, digit.into, *digit.read):
                add(size)
    return list(found)


# -- elements --------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Field:
    """Bits of an element of the output, from ``low`` on.

    Those of one element that is read, from ``shift`` on, xor a pattern; or, if `param` is None, the
    pattern.
    """

    low: int
    width: int
    pattern: int
    param: int | None = None
    indices: list[Any] = dataclasses.field(default_factory=list)
    shift: Any = 0

    def is_same(self, other: _Field) -> bool:
        """Whether they are the same expression."""
        places = ([*field.indices, tirx.const(0) + field.shift] for field in (self, other))
        alike = [(f.low, f.width, f.pattern, f.param, len(f.indices)) for f in (self, other)]
        return alike[0] == alike[1] and tvm_ffi.structural_equal(*places)


@dataclasses.dataclass(eq=False)
class _Value:
    """What an element of the output may be, and which groups say so."""

    fields: list[_Field]
    groups: list[Sequence[Part]]

    def has(self, fields: Sequence[_Field]) -> bool:
        """Whether these are its fields."""
        pairs = zip(self.fields, fields, strict=False)
        return len(fields) == len(self.fields) and all(one.is_same(two) for one, two in pairs)

    def is_whole(self, width: int) -> bool:
        """Whether they are all bits of the element."""
        return sum(field.width for field in self.fields) == width

    @property
    def is_constant(self) -> bool:
        """Whether nothing is read."""
        return all(field.param is None for field in self.fields)


class _Output:
    """Elements of the output.

    Parameters
    ----------
    into : Axes
    read : mapping
        The axes of each parameter that is read.
    given, ends : mapping
        The tensor for each, and the sizes that it has.
    """

    def __init__(
        self,
        into: Axes,
        read: Mapping[int, Axes],
        given: Mapping[int, te.Tensor],
        ends: Mapping[int, Sequence[Size]],
    ) -> None:
        self._into, self._read, self._given, self._ends = into, read, given, ends
        self._unsigned = f"uint{into.bits}"
        self._positive = factors_in(into.sizes)  # where there is an element

    def element(self, groups: Sequence[Sequence[Part]], at: Sequence[Any]) -> ir.Expr:
        """The element at indices."""
        choices = self._choices(groups, at)
        whole = [choice for choice in choices if choice.is_whole(self._into.bits)]
        if len(whole) < len(choices):
            zero = tirx.const(0, self._unsigned)
            bits = (
                _chosen(self._conditions(group, at), self._bits(choice), zero)
                for choice in choices
                if choice not in whole
                for group in choice.groups
            )
            value = self._of_bits(functools.reduce(lambda a, b: a | b, bits))
        else:
            value = self._value(whole.pop()) if whole else tirx.const(0, self._into.dtype)
        for choice in reversed(whole):
            for group in reversed(choice.groups):
                value = _chosen(self._conditions(group, at), self._value(choice), value)
        return value

    def _choices(self, groups: Iterable[Sequence[Part]], at: Sequence[Any]) -> list[_Value]:
        """What an element may be; what is best left without conditions last."""
        found: list[_Value] = []
        for group in groups:
            fields = [self._field(part, at) for part in group]
            for known in found:
                if known.has(fields):
                    known.groups.append(group)
                    break
            else:
                found.append(_Value(fields, [group]))
        return sorted(found, key=lambda choice: (choice.is_constant, len(choice.groups)))

    def _conditions(self, group: Sequence[Part], at: Sequence[Any]) -> list[ir.Expr]:
        part = min(group, key=lambda part: len(part.steps))
        box = [Step(step.extent, step.into) for step in part.steps]
        steps, (joints,) = joints_of(box, [("into", self._into, part.into)])
        return self._digits(steps, joints, at).conditions

    def _digits(
        self, steps: Sequence[Step], joints: Iterable[Joint], at: Sequence[Any]
    ) -> DigitIndices:
        digits = DigitIndices(self._into.count, self._positive)
        for joint in joints:
            extents = [step.extent for step in steps]
            digits.read(joint, extents, at[joint.first : joint.first + len(joint.sizes)])
        return digits

    def _value(self, choice: _Value) -> ir.Expr:
        (field, *more) = choice.fields
        dtype = self._into.dtype
        if choice.is_constant:
            pattern = sum(field.pattern << field.low for field in choice.fields)
            if pattern == 0 or dtype.startswith(("int", "uint")):
                return tirx.const(_signed(pattern, dtype), dtype)
        if more or field.param is None or self._read[field.param].bits != self._into.bits:
            return self._of_bits(self._bits(choice))
        source = self._read[field.param].dtype
        element = self._element(field)
        if not field.pattern:
            return _reinterpreted(element, source, dtype)
        if dtype.startswith(("int", "uint")):
            element = _reinterpreted(element, source, dtype)
            return element ^ tirx.const(_signed(field.pattern, dtype), dtype)
        bits = _reinterpreted(element, source, self._unsigned)
        return self._of_bits(bits ^ tirx.const(field.pattern, self._unsigned))

    def _of_bits(self, bits: ir.Expr) -> ir.Expr:
        return _reinterpreted(bits, self._unsigned, self._into.dtype)

    def _bits(self, choice: _Value) -> ir.Expr:
        """The bits of an element, in their places, as an unsigned number."""
        pattern = sum(field.pattern << field.low for field in choice.fields)
        read = [self._bits_of(field) for field in choice.fields if field.param is not None]
        constant = tirx.const(pattern, self._unsigned)
        if not read:
            return constant
        bits = functools.reduce(lambda a, b: a | b, read)
        return bits ^ constant if pattern else bits

    def _bits_of(self, field: _Field) -> ir.Expr:
        assert field.param is not None
        axes, shift = self._read[field.param], field.shift
        unsigned = f"uint{axes.bits}"
        bits = _reinterpreted(self._element(field), axes.dtype, unsigned)
        if isinstance(shift, int):
            bits = bits >> tirx.const(shift, unsigned) if shift else bits
        else:
            bits = bits >> shift.astype(unsigned)
        if not isinstance(shift, int) or shift + field.width < axes.bits:
            bits = bits & tirx.const((1 << field.width) - 1, unsigned)
        bits = _reinterpreted(bits, unsigned, self._unsigned)
        return bits << tirx.const(field.low, self._unsigned) if field.low else bits

    def _element(self, field: _Field) -> ir.Expr:
        assert field.param is not None
        element = self._given[field.param](*field.indices)
        axes, ends = self._read[field.param], self._ends[field.param]
        inside = [
            index < expression(end)
            for index, size, end in zip(field.indices, axes.sizes, ends, strict=True)
            if size != end
        ]
        return _chosen(inside, element, tirx.const(0, axes.dtype))

    def _field(self, part: Part, at: Sequence[Any]) -> _Field:
        if part.param is None:
            return _Field(part.low, part.width, part.pattern)
        sides = ("into", self._into, part.into), ("read", self._read[part.param], part.read)
        steps, (into, read) = joints_of(part.steps, sides)
        digits = self._digits(steps, into, at)
        indices = [index for joint in read for index in digits.indices(joint)]
        bits = {number: step.bit for number, step in enumerate(steps) if step.bit}
        shift = digits.sum(part.bit, bits) if bits else part.bit
        return _Field(part.low, part.width, part.pattern, part.param, indices, shift)


def _chosen(conditions: Sequence[ir.Expr], inside: ir.Expr, outside: ir.Expr) -> ir.Expr:
    """One value where conditions hold, and another one elsewhere."""
    return te.if_then_else(tirx.all(*conditions), inside, outside) if conditions else inside


def _reinterpreted(value: ir.Expr, source: str, dtype: str) -> ir.Expr:
    """The same bits."""
    if source == dtype:
        return value
    if "bool" in (source, dtype):
        raise NoKernel("changes bits of what is true or false")
    plain = all(one.startswith(("int", "uint")) for one in (source, dtype))
    return value.astype(dtype) if plain else tirx.reinterpret(dtype, value)


def _signed(pattern: int, dtype: str) -> int:
    bits = bits_of(dtype)
    return pattern - (1 << bits) if dtype.startswith("int") and pattern >> bits - 1 else pattern
