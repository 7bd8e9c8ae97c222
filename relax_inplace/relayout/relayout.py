"""What a relayout kernel moves, as loops without divisions.

Definition
----------
A TE block (:mod:`relax_inplace.relayout.te_block`) is a *relayout* if no index depends on an
element. Its box is cut into *pieces*: boxes of *digits*, small variables of which the indices are
sums, so that in each piece

- the place of the written element is ``base + sum(stride * digit)``, and so is that of most read
  ones: those are *strided*;
- comparisons of a digit with a size are settled.

So ``A[i // 16, j, i % 16]`` is read at ``a * s + j * 16 + b``, and a concatenation is two copies.
What cannot be said in that way, a clamped index or a rim, stays in the value as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import tvm
import tvm_ffi
from tvm import ir, relax, sym, tirx

from .simple_indices import with_simple_indices
from .te_block import TEBlock, loads_in

__all__ = [
    "Access",
    "Digit",
    "FlatBuffers",
    "Piece",
    "constant",
    "element_bytes",
    "integer",
    "is_multiple",
    "relayout_pieces",
    "simplify",
]

_MOST_PIECES = 32
_LARGEST = 1 << 48  # no size is so large
_IF = ir.Op.get("prim.if_then_else")


@dataclasses.dataclass(frozen=True, eq=False)
class Digit:
    """A loop from 0 to below ``extent``."""

    var: relax.Var
    extent: ir.Expr


@dataclasses.dataclass
class Access:
    """A place in a buffer, in elements from its first one.

    Attributes
    ----------
    buffer : relax.Var
        A flat view of a parameter.
    base : tvm.ir.Expr
    strides : dict
        Of each digit that it depends on.
    """

    buffer: relax.Var
    base: ir.Expr
    strides: dict[relax.Var, ir.Expr]

    def stride(self, digit: Digit) -> ir.Expr:
        """How far the next value of the digit is."""
        return self.strides.get(digit.var, constant(0))

    def at(self, values: Mapping[relax.Var, ir.Expr]) -> ir.Expr:
        """The place for these values of the digits; a digit that is left out is 0."""
        place = self.base
        for var, stride in self.strides.items():
            if var in values:
                place = place + stride * values[var]
        return place


@dataclasses.dataclass
class Piece:
    """A part of a relayout: see the definition.

    Attributes
    ----------
    digits : list of Digit
        Outermost first, as the output lies in memory. Those of extent 1 are left out.
    output : Access
    inputs : dict
        What is read at strided places; the variable stands for the element in ``value``.
    value : tvm.ir.Expr
        Of an element. It has digits in it only where something is not strided.
    """

    digits: list[Digit]
    output: Access
    inputs: dict[relax.Var, Access]
    value: ir.Expr

    @property
    def moves_only(self) -> bool:
        """Whether elements stay as they are."""
        return isinstance(self.value, relax.Var) and self.value in self.inputs


def constant(number: int) -> ir.Expr:
    """A number as indices have it."""
    return tirx.const(number, "int64")


def simplify(expr: ir.Expr) -> ir.Expr:
    """A simpler expression of sizes and digits: none of them is negative."""
    return _analyzer([expr]).simplify(expr)


def is_multiple(expr: ir.Expr, factor: int) -> bool:
    """Whether an expression of sizes is sure to be a multiple of a number."""
    return integer(simplify(tirx.floormod(expr, constant(factor)))) == 0


def integer(expr: ir.Expr) -> int | None:
    """The number that an expression is."""
    return int(expr) if isinstance(expr, tirx.IntImm) else None


class FlatBuffers:
    """Views of parameters as if they had one axis, of their own dtype or another one."""

    def __init__(self) -> None:
        self._views: dict[tuple[relax.Var, str], relax.Var] = {}
        self._params: dict[relax.Var, relax.Var] = {}

    def of(self, buffer: relax.Var, dtype: str = "") -> relax.Var:
        """The view of a parameter, or of what another view is of."""
        param = self._params.get(buffer, buffer)
        dtype = dtype or str(param.ty.dtype)
        if (param, dtype) not in self._views:
            size: ir.Expr = constant(1)
            for extent in param.ty.shape[:]:
                size = size * _int64(extent)
            scale = element_bytes(dtype) // element_bytes(str(param.ty.dtype))
            size = simplify(tirx.floordiv(size, constant(max(scale, 1))))
            view = tirx.decl_buffer((size,), dtype, f"{param.name}_{dtype}", layout=None)
            self._views[param, dtype] = view
            self._params[view] = param
        return self._views[param, dtype]

    def declared(self, body: tirx.Stmt) -> tirx.Stmt:
        """The statement after what declares the views."""
        used = set(tirx.analysis.undefined_vars(body))
        views = [
            tirx.DeclBuffer(view, data=param.data)
            for (param, _), view in self._views.items()
            if view in used
        ]
        return tirx.SeqStmt([*views, body])


def element_bytes(dtype: str) -> int:
    """Of an element; 0 where elements share bytes."""
    bits = tvm.DataType(dtype).bits if dtype != "bool" else 8
    return bits // 8 if bits % 8 == 0 else 0


def relayout_pieces(block: TEBlock, flat: FlatBuffers) -> list[Piece] | None:
    """The pieces of a TE block; None if it is no relayout.

    Parameters
    ----------
    block : TEBlock
    flat : FlatBuffers
        Where the views are, and come to be, that the pieces read and write.
    """
    sources = [load.source for load in loads_in(block.value)]
    if not all(_is_plain(buffer) for buffer in (block.buffer, *sources)):
        return None
    if any(loads_in(index) for load in loads_in(block.value) for index in load.indices[:]):
        return None
    if any(str(index.ty.dtype) != "int64" for index in block.box):
        return None

    def flat_load(load: ir.TensorLoad) -> ir.Expr:
        place = _flat_place(load.source, load.indices[:])
        return tirx.BufferLoad(flat.of(load.source), [place])

    place = _flat_place(block.buffer, block.realize.block.body.indices[:])
    box = [Digit(var, _int64(extent)) for var, extent in block.box.items()]
    value = tvm_ffi.structural_map(block.value, (ir.TensorLoad, flat_load))
    whole = _of_one_digit(_Part(box, place, value))
    pieces = [_piece(flat.of(block.buffer), part) for part in _parts(whole)]
    found = [piece for piece in pieces if piece is not None]
    return found if len(found) == len(pieces) else None


def _is_plain(buffer: relax.Var) -> bool:
    """Whether a buffer is contiguous from its first byte on, and has elements."""
    return (
        not len(buffer.ty.strides)
        and integer(buffer.ty.elem_offset) == 0
        and all(integer(size) != 0 for size in buffer.ty.shape[:])
    )


def _flat_place(buffer: relax.Var, indices: Sequence[ir.Expr]) -> ir.Expr:
    place: ir.Expr = constant(0)
    for index, size in zip(indices, buffer.ty.shape[:], strict=True):
        place = place * _int64(size) + _int64(index)
    return place


def _int64(expr: ir.Expr) -> ir.Expr:
    if isinstance(expr, tirx.IntImm):
        return constant(int(expr))
    return expr if str(expr.ty.dtype) == "int64" else expr.astype("int64")


def _analyzer(exprs: Sequence[ir.Expr]) -> sym.Analyzer:
    analyzer = sym.Analyzer()
    variables = {var for expr in exprs for var in tirx.analysis.undefined_vars(expr)}
    for var in variables:
        if str(var.ty.dtype) == "int64":
            analyzer.bind(var, ir.Range.from_min_extent(constant(0), constant(_LARGEST)))
    return analyzer


# -- cutting the box -------------------------------------------------------------------------------


@dataclasses.dataclass
class _Part:
    """A box on its way to be a piece: ``output[place] = value``."""

    box: list[Digit]
    place: ir.Expr
    value: ir.Expr

    def where(self, var: relax.Var, value: ir.Expr, instead: Sequence[Digit]) -> _Part:
        """The part with other digits in the place of one."""
        at = {var: value}
        box = [
            new for digit in self.box for new in (instead if digit.var.same_as(var) else [digit])
        ]
        return _Part(box, _substitute(self.place, at), _substitute(self.value, at))


def _of_one_digit(part: _Part) -> _Part:
    """With one digit, the place of the output, where a division has digits of several axes.

    Blocks of memory need not be blocks of the box: ``(i * 56 + j // 128) % 64`` cannot be cut, and
    is ``place % 8192 // 128``.
    """
    part = _simplified(part)
    divisions = _divisions_in(part)
    if all(len(_digits_in(division.a, part.box)) < 2 for division in divisions):
        return part
    extents = [integer(digit.extent) for digit in part.box]
    if not all(extents):
        return part
    whole = left = math.prod(extent or 0 for extent in extents)
    place = tirx.Var("place", "int64")
    one = part
    for digit, extent in zip(part.box, extents, strict=True):
        value = place if left == whole else tirx.floormod(place, constant(left))
        left //= extent or 1
        one = one.where(digit.var, tirx.floordiv(value, constant(left)), [])
    one = _simplified(dataclasses.replace(one, box=[Digit(place, constant(whole))]))
    better = one.place.same_as(place) and len(_divisions_in(one)) <= len(divisions)
    return one if better else part


def _parts(whole: _Part) -> Iterator[_Part]:
    waiting = [whole]
    count = 1
    while waiting:
        part = _simplified(waiting.pop())
        cut = _cut(part) if count < _MOST_PIECES else None
        if cut is None:
            yield part
        else:
            count += len(cut) - 1
            waiting += reversed(cut)


def _cut(part: _Part) -> list[_Part] | None:
    """The part in two, or with a digit in two, so that a condition or a division can go."""
    for condition in _conditions_in(part.value):
        for atom in _comparisons_in(condition):
            if (cut := _settled(part, atom)) is not None:
                return cut
    for division in _divisions_in(part):
        if (cut := _divided(part, division)) is not None:
            return cut
    return None


def _settled(part: _Part, atom: ir.Expr) -> list[_Part] | None:
    """Cut where a comparison of one digit changes; its outcome is put in."""
    below, bound = atom.a, atom.b
    for digit in part.box:
        form = sym.detect_linear_equation(below - bound, [digit.var])
        if not len(form) or integer(form[0]) not in (1, -1):
            continue
        if _digits_in(form[1], part.box):
            continue
        # below < bound, or below <= bound: is form[0] * digit + form[1] < 0, or <= 0.
        least = constant(0 if isinstance(atom, tirx.LT) else 1)
        rising = integer(form[0]) == 1
        # Rising: holds for digits below the border. Falling: from the border on.
        border = least - form[1] if rising else form[1] + constant(1) - least
        zero = constant(0)
        border = tirx.max(zero, tirx.min(border, digit.extent))
        border = simplify(border)
        sides = []
        for begin, end, holds in ((zero, border, rising), (border, digit.extent, not rising)):
            extent = simplify(end - begin)
            if integer(extent) == 0:
                continue
            value = tvm_ffi.structural_map(
                part.value,
                (type(atom), lambda e, holds=holds: _outcome(e, atom, holds)),
            )
            new = Digit(_fresh(digit.var), extent)
            known = dataclasses.replace(part, value=value)
            sides.append(known.where(digit.var, new.var + begin, [new]))
        return sides
    return None


def _outcome(expr: ir.Expr, atom: ir.Expr, holds: bool) -> ir.Expr:
    return tirx.const(holds, "bool") if tvm_ffi.structural_equal(expr, atom) else expr


def _divided(part: _Part, division: ir.Expr) -> list[_Part] | None:
    """Cut so that a quotient, or a remainder, by a constant can be computed without dividing."""
    divisor = integer(division.b)
    if divisor is None or divisor <= 1:
        return None
    form = sym.detect_linear_equation(division.a, [digit.var for digit in part.box])
    if not len(form):
        return None
    offset = integer(form[-1])
    for digit, coefficient in zip(part.box, form, strict=False):
        step, extent = integer(coefficient), integer(digit.extent)
        if not step or step < 0 or divisor % step:
            continue
        factor = divisor // step
        if factor == 1 or (extent is not None and extent <= 1):
            continue
        # From where on the digit counts whole factors.
        first = (-(offset or 0) // step) % factor if offset is not None else 0
        if extent is not None:
            if first >= extent:
                first = 0
            if extent > factor and first:
                return _cut_at(part, digit, constant(first))
            if extent <= factor:
                crosses = first and first < extent
                return _cut_at(part, digit, constant(first)) if crosses else None
        whole = simplify(tirx.floordiv(digit.extent, constant(factor)))
        rest = simplify(digit.extent - whole * factor)
        if integer(whole) == 0:
            continue
        if integer(rest) != 0 and not is_multiple(digit.extent, factor):
            return _cut_at(part, digit, simplify(whole * factor))
        if is_multiple(digit.extent, factor):
            outer = Digit(_fresh(digit.var, "o"), whole)
            inner = Digit(_fresh(digit.var, "i"), constant(factor))
            value = outer.var * constant(factor) + inner.var
            return [part.where(digit.var, value, [outer, inner])]
    return None


def _cut_at(part: _Part, digit: Digit, border: ir.Expr) -> list[_Part]:
    rest = simplify(digit.extent - border)
    low, high = Digit(_fresh(digit.var), border), Digit(_fresh(digit.var), rest)
    return [
        part.where(digit.var, low.var, [low]),
        part.where(digit.var, high.var + border, [high]),
    ]


def _fresh(var: relax.Var, suffix: str = "") -> relax.Var:
    return tirx.Var(f"{var.name}{suffix}", "int64")


def _conditions_in(value: ir.Expr) -> list[ir.Expr]:
    found: list[ir.Expr] = []
    tvm_ffi.structural_walk(
        value,
        [
            (tirx.Select, lambda select: found.append(select.condition)),
            (ir.Call, lambda call: found.append(call.args[0]) if call.op.same_as(_IF) else None),
        ],
    )
    return [condition for condition in found if not loads_in(condition)]


def _comparisons_in(condition: ir.Expr) -> list[ir.Expr]:
    found: list[ir.Expr] = []
    tvm_ffi.structural_walk(condition, ((tirx.LT, tirx.LE), lambda atom: found.append(atom)))
    return [atom for atom in found if str(atom.a.ty.dtype) == "int64"]


def _divisions_in(part: _Part) -> list[ir.Expr]:
    found: list[ir.Expr] = []
    indices = [load.indices[0] for load in loads_in(part.value)]
    for expr in indices + _conditions_in(part.value) + _numbers_in(part.value):
        tvm_ffi.structural_walk(
            expr, ((tirx.FloorDiv, tirx.FloorMod), lambda division: found.append(division))
        )
    return found


def _numbers_in(value: ir.Expr) -> list[ir.Expr]:
    """What is computed from digits alone: by how much to shift."""
    found: list[ir.Expr] = []
    tvm_ffi.structural_walk(value, (tirx.Cast, lambda cast: found.append(cast)))
    return [cast.value for cast in found if _is_of_digits(cast)]


def _is_of_digits(cast: tirx.Cast) -> bool:
    return str(cast.value.ty) == "int64" and "int" in str(cast.ty) and not loads_in(cast)


def _digits_in(expr: ir.Expr, box: Sequence[Digit]) -> set[relax.Var]:
    return {
        var for var in tirx.analysis.undefined_vars(expr) if any(var.same_as(d.var) for d in box)
    }


def _substitute(expr: ir.Expr, values: Mapping[relax.Var, ir.Expr]) -> ir.Expr:
    return tvm_ffi.structural_map(expr, (relax.Var, lambda var: values.get(var, var)), order="post")


def _simplified(part: _Part) -> _Part:
    """Simpler indices and conditions; operations on elements are left alone."""
    part = dataclasses.replace(part)
    for digit in part.box:
        if integer(digit.extent) == 1:
            part = part.where(digit.var, constant(0), [])
    analyzer = _analyzer([digit.extent for digit in part.box])
    with contextlib.ExitStack() as scopes:
        for digit in part.box:
            analyzer.bind(digit.var, ir.Range.from_min_extent(constant(0), digit.extent))
            if integer(digit.extent) is None:
                # A range of symbolic extent is not used as a bound (const_int_bound.cc).
                scopes.enter_context(analyzer.constraint_scope(digit.var >= 0))
                scopes.enter_context(analyzer.constraint_scope(digit.var < digit.extent))

        value = with_simple_indices(
            part.value, lambda index: analyzer.simplify(_within(index, part.box))
        )
        return _Part(part.box, analyzer.simplify(part.place), value)


def _within(expr: ir.Expr, box: Sequence[Digit]) -> ir.Expr:
    """``d % n`` is ``d`` for a digit below n: the analyzer does not see it of a symbolic n."""
    extents = {digit.var: digit.extent for digit in box if integer(digit.extent) is None}

    def remainder(mod: ir.Expr) -> ir.Expr:
        known = extents.get(mod.a) if isinstance(mod.a, relax.Var) else None
        return mod.a if known is not None and tvm_ffi.structural_equal(known, mod.b) else mod

    if not extents:
        return expr
    expr = simplify(expr)
    return tvm_ffi.structural_map(expr, (tirx.FloorMod, remainder))


# -- pieces ----------------------------------------------------------------------------------------


def _piece(buffer: relax.Var, part: _Part) -> Piece | None:
    output = _access(buffer, part.place, part.box)
    if output is None:
        return None
    inputs: dict[relax.Var, Access] = {}

    def load(expr: ir.TensorLoad) -> ir.Expr:
        access = _access(expr.source, expr.indices[0], part.box)
        if access is None:
            return expr
        for var, known in inputs.items():
            if known.buffer.same_as(access.buffer) and _same_place(known, access):
                return var
        var = tirx.Var(f"x{len(inputs)}", expr.ty.dtype)
        inputs[var] = access
        return var

    value = tvm_ffi.structural_map(part.value, (ir.TensorLoad, load))
    return _merged(Piece(part.box, output, inputs, value))


def _same_place(left: Access, right: Access) -> bool:
    return (
        tvm_ffi.structural_equal(left.base, right.base)
        and left.strides.keys() == right.strides.keys()
        and all(
            tvm_ffi.structural_equal(stride, right.strides[var])
            for var, stride in left.strides.items()
        )
    )


def _access(buffer: relax.Var, place: ir.Expr, box: Sequence[Digit]) -> Access | None:
    form = list(sym.detect_linear_equation(place, [digit.var for digit in box])) if box else [place]
    if not form:
        return None
    strides = {
        digit.var: stride for digit, stride in zip(box, form, strict=False) if integer(stride) != 0
    }
    return Access(buffer, form[-1], strides)


def _merged(piece: Piece) -> Piece:
    """Digits that are next to each other everywhere are one."""
    accesses = [piece.output, *piece.inputs.values()]
    fixed = _digits_in(piece.value, piece.digits)
    analyzer = _analyzer([digit.extent for digit in piece.digits])
    digits: list[Digit] = []
    for digit in piece.digits:
        if digits and not {digit.var, digits[-1].var} & fixed:
            outer = digits[-1]
            if all(
                analyzer.can_prove_equal(a.stride(outer), a.stride(digit) * digit.extent)
                for a in accesses
            ):
                extent = analyzer.simplify(outer.extent * digit.extent)
                digits[-1] = Digit(digit.var, extent)
                continue
        digits.append(digit)
    kept = {digit.var for digit in digits}

    def access(old: Access) -> Access:
        return Access(old.buffer, old.base, {v: s for v, s in old.strides.items() if v in kept})

    inputs = {var: access(old) for var, old in piece.inputs.items()}
    return Piece(digits, access(piece.output), inputs, piece.value)
