"""Loops over a box in which indices are affine: no division is left, and no choice by index.

Definition
----------
An index ``(x + b) // c`` or ``(x + b) % c`` is affine in ``x // f`` and ``x % f`` for a multiple or
a divisor f of c; where the sum passes one multiple of c alone, it is affine on either side. A
choice ``x < c`` is made on either side of c. So a loop is *split* in two nested ones, or *cut* in
two that follow each other, until neither helps. The order of the box stays. Of an axis that divides
at other places than its length allows, indices stay as they are: they are right, and slower.

The innermost loop becomes one of vectors where each element is beside the last or the same. Where
elements are moved, those along another axis are beside each other, and the order is free, the two
axes are cut into squares, and these transposed in registers (:mod:`.register_transpose`).
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import tvm_ffi
from tvm import ir, relax, sym, tirx

from .emulated_floats import can_be_vector
from .inplace_kernel import flat_index
from .register_transpose import VECTOR_BYTES, transpose_block
from .simple_indices import with_simple_indices
from .te_block import loads_in

__all__ = ["affine_loops"]

_VECTOR = 64  # bytes
_LEAST_VECTOR = 8  # bytes
_MOST_UNROLLED = 16  # stores
_REINTERPRET = ir.Op.get("tirx.reinterpret")
_MOST_CUTS = 64  # each makes another copy of the loops further in
_COMPARISONS = {
    tirx.LT: operator.lt,
    tirx.LE: operator.le,
    tirx.GT: operator.gt,
    tirx.GE: operator.ge,
    tirx.EQ: operator.eq,
    tirx.NE: operator.ne,
}


@dataclasses.dataclass
class _Axis:
    var: relax.Var
    extent: ir.Expr
    lanes: relax.Var | None = None  # of the last axis, if it is a square's: its other axis


def affine_loops(
    box: Sequence[tuple[relax.Var, ir.Expr]],
    store: tirx.BufferStore,
    analyzer: sym.Analyzer,
    *,
    in_order: bool = True,
) -> tirx.Stmt:
    """The loops that store an element for each point of a box.

    Parameters
    ----------
    box : sequence of (relax.Var, tvm.ir.Expr)
        The indices and their extents, from 0 on, the last one innermost.
    store : tvm.tirx.BufferStore
        At one index.
    analyzer : tvm.sym.Analyzer
        Knows the ranges of other variables.
    in_order : bool
        Whether an element may be read from where one before it is stored.
    """
    axes = []
    for var, extent in box:
        axes.append(_Axis(var, _bound(var, extent, analyzer)))
    return _Loops(analyzer, in_order).over(axes, 0, _simple(store, analyzer))


def _bound(var: relax.Var, extent: ir.Expr, analyzer: sym.Analyzer) -> ir.Expr:
    """The extent, simplified; the analyzer then knows the variable's range."""
    extent = analyzer.simplify(extent)
    analyzer.bind(var, ir.Range.from_min_extent(tirx.const(0, var.ty.dtype), extent))
    return extent


def _simple(store: tirx.BufferStore, analyzer: sym.Analyzer) -> tirx.BufferStore:
    indices = [analyzer.simplify(index) for index in store.indices[:]]
    return tirx.BufferStore(
        store.buffer, with_simple_indices(store.value, analyzer.simplify), indices
    )


@dataclasses.dataclass
class _Loops:
    analyzer: sym.Analyzer
    in_order: bool
    cuts: int = 0

    def over(self, axes: Sequence[_Axis], depth: int, store: tirx.BufferStore) -> tirx.Stmt:
        """The loops over all axes from a depth on."""
        if depth == len(axes):
            return store
        var, extent = axes[depth].var, axes[depth].extent
        if axes[depth].lanes is not None:
            return _square(axes[depth], store, self.analyzer)
        if not isinstance(extent, tirx.IntImm):
            return self._over_any_size(axes, depth, store)
        size = int(extent)
        if size == 1:
            return self.over(axes, depth + 1, self._at(store, var, tirx.const(0, var.ty.dtype)))
        factor = self._split(store, var, size)
        if factor is not None:
            return self._nested(axes, depth, store, factor)
        place = self._cut(store, var, size)
        if place is not None:
            return self._in_turn(axes, depth, store, place)
        side = self._side_of_square(axes, depth, store)
        if side is not None:
            whole = size - size % side
            if whole < size:
                return self._in_turn(axes, depth, store, whole)
            return self._in_squares(axes, depth, store, side)
        kind = tirx.ForKind.SERIAL
        if depth == len(axes) - 1 and _is_beside(store, var):
            lanes = _VECTOR // _widest(store)
            if size > lanes and size % lanes == 0:
                return self._nested(axes, depth, store, lanes)
            whole = size - size % lanes or 1 << (size.bit_length() - 1)
            if whole < size:
                return self._in_turn(axes, depth, store, whole)
            # Few bytes that are computed are left to LLVM.
            wide = size * _widest(store) >= _LEAST_VECTOR
            few = size <= lanes and (wide or _moved(store.value) is not None)
            if few and can_be_vector(store.value):
                kind = tirx.ForKind.VECTORIZED
        body = self.over(axes, depth + 1, store)
        if kind == tirx.ForKind.SERIAL and depth and size * _stores(body) <= _MOST_UNROLLED:
            kind = tirx.ForKind.UNROLLED  # LLVM makes vectors of the loop outside
        return tirx.For(var, tirx.const(0, var.ty.dtype), extent, kind, body)

    def _over_any_size(
        self, axes: Sequence[_Axis], depth: int, store: tirx.BufferStore
    ) -> tirx.Stmt:
        """A loop of symbolic extent, the last one of vectors and of what they leave."""
        var, extent = axes[depth].var, axes[depth].extent
        lanes = _VECTOR // _widest(store)
        if depth < len(axes) - 1 or not _is_beside(store, var):
            body = self.over(axes, depth + 1, store)
            return tirx.For(var, tirx.const(0, var.ty.dtype), extent, tirx.ForKind.SERIAL, body)
        vectors = tirx.floordiv(extent, lanes)
        outer, inner, left = self._new(var, vectors), self._new(var, lanes), self._new(var, None)
        zero = tirx.const(0, var.ty.dtype)
        body = self._at(store, var, outer * lanes + inner)
        is_vector = can_be_vector(store.value)
        kind = tirx.ForKind.VECTORIZED if is_vector else tirx.ForKind.SERIAL
        body = tirx.For(inner, zero, tirx.const(lanes, var.ty.dtype), kind, body)
        rest = self._at(store, var, vectors * lanes + left)
        count = self.analyzer.simplify(extent - vectors * lanes)
        return tirx.SeqStmt(
            [
                tirx.For(outer, zero, vectors, tirx.ForKind.SERIAL, body),
                tirx.For(left, zero, count, tirx.ForKind.SERIAL, rest),
            ]
        )

    def _nested(
        self, axes: Sequence[_Axis], depth: int, store: tirx.BufferStore, factor: int
    ) -> tirx.Stmt:
        var, size = axes[depth].var, int(axes[depth].extent)
        outer, inner = self._new(var, size // factor), self._new(var, factor)
        parts = [
            _Axis(outer, tirx.const(size // factor, var.ty.dtype)),
            _Axis(inner, tirx.const(factor, var.ty.dtype)),
        ]
        changed = [*axes[:depth], *parts, *axes[depth + 1 :]]
        return self.over(changed, depth, self._at(store, var, outer * factor + inner))

    def _in_turn(
        self, axes: Sequence[_Axis], depth: int, store: tirx.BufferStore, place: int
    ) -> tirx.Stmt:
        self.cuts += 1
        var, size = axes[depth].var, int(axes[depth].extent)
        parts = []
        for start, length in ((0, place), (place, size - place)):
            part = self._new(var, length)
            axis = _Axis(part, tirx.const(length, var.ty.dtype))
            # Each part has its own variables in the loops further in.
            inner = [_Axis(self._new(a.var, a.extent), a.extent) for a in axes[depth + 1 :]]
            values = {a.var: b.var for a, b in zip(axes[depth + 1 :], inner, strict=True)}
            values[var] = part + start
            changed = [*axes[:depth], axis, *inner]
            parts.append(self.over(changed, depth, _simple(_with(store, values), self.analyzer)))
        return tirx.SeqStmt(parts)

    def _side_of_square(
        self, axes: Sequence[_Axis], depth: int, store: tirx.BufferStore
    ) -> int | None:
        """Of squares of this axis and the last that are transposed, if that is how to do it."""
        last, axis = axes[-1], axes[depth]
        load = _moved(store.value)
        if self.in_order or load is None or last.lanes is not None or axis is last:
            return None
        if not isinstance(last.extent, tirx.IntImm):
            return None
        flat = flat_index(load.source.ty.shape[:], load.indices[:])
        steps = [_step(flat, axis.var), _step(flat, last.var)]
        beside = (
            steps[0] == 1
            and steps[1] not in (0, 1, None)
            and _step(store.indices[0], last.var) == 1
        )
        if not beside or self._split(store, last.var, int(last.extent)):
            return None
        most = min(VECTOR_BYTES // _widest(store), int(axis.extent), int(last.extent))
        side = 1 << (most.bit_length() - 1)
        return side if side > 2 else None

    def _in_squares(
        self, axes: Sequence[_Axis], depth: int, store: tirx.BufferStore, side: int
    ) -> tirx.Stmt:
        var, last = axes[depth].var, axes[-1]
        size, length = int(axes[depth].extent), int(last.extent)
        if length % side:
            # The last axis comes to be cut inside of all loops: what is left has no squares.
            parts = []
            whole = length - length % side
            for start, part in ((0, whole), (whole, length - whole)):
                inner = [_Axis(self._new(a.var, a.extent), a.extent) for a in axes[depth:-1]]
                end = _Axis(self._new(last.var, part), tirx.const(part, last.var.ty.dtype))
                values = {a.var: b.var for a, b in zip(axes[depth:-1], inner, strict=True)}
                values[last.var] = end.var + start
                there = _simple(_with(store, values), self.analyzer)
                parts.append(self.over([*axes[:depth], *inner, end], depth, there))
            return tirx.SeqStmt(parts)
        outer, lane = self._new(var, size // side), self._new(var, side)
        across, row = self._new(last.var, length // side), self._new(last.var, side)
        there = _with(store, {var: outer * side + lane, last.var: across * side + row})
        changed = [
            *axes[:depth],
            _Axis(outer, tirx.const(size // side, var.ty.dtype)),
            *axes[depth + 1 : -1],
            _Axis(across, tirx.const(length // side, last.var.ty.dtype)),
            _Axis(row, tirx.const(side, last.var.ty.dtype), lane),
        ]
        return self.over(changed, depth, _simple(there, self.analyzer))

    def _new(self, like: relax.Var, extent: ir.Expr | int | None) -> relax.Var:
        var = tirx.Var(like.name, like.ty.dtype)
        if extent is not None:
            size = tirx.const(extent, var.ty.dtype) if isinstance(extent, int) else extent
            _bound(var, size, self.analyzer)
        return var

    def _at(self, store: tirx.BufferStore, var: relax.Var, value: ir.Expr) -> tirx.BufferStore:
        return _simple(_with(store, {var: value}), self.analyzer)

    # -- where to split, and where to cut ---------------------------------------------------------

    def _split(self, store: tirx.BufferStore, var: relax.Var, size: int) -> int | None:
        """The largest factor that a division by a constant asks for."""
        factors = {1}
        for node in _divisions(store):
            found = _linear(node.a, var)
            if found is not None:
                factor = int(node.b) // math.gcd(found[0], int(node.b))
                if size % factor == 0 and factor < size:
                    factors.add(factor)
        return max(factors) if max(factors) > 1 else None

    def _cut(self, store: tirx.BufferStore, var: relax.Var, size: int) -> int | None:
        """The first place where a choice changes, or a quotient of this variable alone."""
        if self.cuts == _MOST_CUTS:
            return None
        places = set()
        for node in _nodes(store, tuple(_COMPARISONS)):
            if loads_in(node) or str(node.a.ty) != str(var.ty):
                continue
            found = _linear(node.a - node.b, var)
            if found is not None and isinstance(found[1], tirx.IntImm):
                places.update(_changes(_COMPARISONS[type(node)], found[0], int(found[1])))
        for node in _divisions(store):
            found = _linear(node.a, var)
            if found is not None and isinstance(found[1], tirx.IntImm):
                by, start = int(node.b), int(found[1])
                quotients = [(start + found[0] * at) // by for at in (0, size - 1)]
                if found[0] > 0 and quotients[1] == quotients[0] + 1:
                    places.add(-((start - quotients[1] * by) // found[0]))
        inside = [place for place in places if 0 < place < size]
        return min(inside) if inside else None


def _changes(holds: Callable[[int, int], bool], step: int, start: int) -> list[int]:
    """Where ``start + step * x`` comes to compare with 0 otherwise than one place before."""
    zero = -start // step
    return [
        at
        for at in range(zero - 1, zero + 3)
        if holds(start + step * at, 0) != holds(start + step * (at - 1), 0)
    ]


def _linear(expr: ir.Expr, var: relax.Var) -> tuple[int, ir.Expr] | None:
    """The coefficient of a variable, if it is a constant other than 0, and what is left."""
    if not any(other.same_as(var) for other in tirx.analysis.undefined_vars(expr)):
        return None
    found = sym.detect_linear_equation(expr, [var])
    if len(found) != 2 or not isinstance(found[0], tirx.IntImm) or int(found[0]) == 0:
        return None
    return int(found[0]), found[1]


def _nodes(store: tirx.BufferStore, kinds: tuple[type, ...]) -> list[ir.Expr]:
    nodes: list[ir.Expr] = []
    for expr in (store.value, *store.indices[:]):
        tvm_ffi.structural_walk(expr, (kinds, lambda node: nodes.append(node)))
    return nodes


def _divisions(store: tirx.BufferStore) -> list[ir.Expr]:
    nodes = _nodes(store, (tirx.FloorDiv, tirx.FloorMod))
    return [node for node in nodes if isinstance(node.b, tirx.IntImm) and int(node.b) > 0]


def _with(part: Any, values: dict[relax.Var, ir.Expr]) -> Any:
    return tvm_ffi.structural_map(part, (relax.Var, lambda var: values.get(var, var)))


# -- squares ---------------------------------------------------------------------------------------


def _moved(value: ir.Expr) -> ir.TensorLoad | None:
    """The element that a value is, bit by bit."""
    if isinstance(value, ir.Call) and value.op.same_as(_REINTERPRET):
        value = value.args[0]
    return value if isinstance(value, ir.TensorLoad) else None


def _square(axis: _Axis, store: tirx.BufferStore, analyzer: sym.Analyzer) -> tirx.Stmt:
    """The square of the last axis and another, read along the other."""
    row, lane, side = axis.var, axis.lanes, int(axis.extent)
    load = _moved(store.value)
    assert load is not None and lane is not None
    flat = flat_index(load.source.ty.shape[:], load.indices[:])
    dtype = row.ty.dtype
    zero = tirx.const(0, dtype)

    def beside(index: ir.Expr, place: dict[relax.Var, ir.Expr]) -> ir.Expr:
        first = analyzer.simplify(_with(index, place))
        return tirx.Ramp(first, tirx.const(1, dtype), side)

    def read(i: int) -> ir.Expr:
        place = {row: tirx.const(i, dtype), lane: zero}
        return tirx.BufferLoad(load.source, [beside(flat, place)])

    def write(k: int, vector: ir.Expr) -> tirx.Stmt:
        place = {row: zero, lane: tirx.const(k, dtype)}
        if load is not store.value:
            vector = tirx.reinterpret(f"{store.buffer.ty.dtype}x{side}", vector)
        return tirx.BufferStore(store.buffer, vector, [beside(store.indices[0], place)])

    return transpose_block(side, side, side.bit_length() - 1, read, write)


# -- vectors ---------------------------------------------------------------------------------------


def _stores(body: tirx.Stmt) -> float:
    """How many stores a body is, once its loops are unrolled; infinite if some are not to be."""
    if isinstance(body, tirx.For) and body.kind == tirx.ForKind.UNROLLED:
        return int(body.extent) * _stores(body.body)
    return 1 if isinstance(body, tirx.BufferStore) else math.inf


def _is_beside(store: tirx.BufferStore, var: relax.Var) -> bool:
    """Whether the next element of each buffer is the one beside, or the same."""
    if any(
        _uses(node, var) for node in _nodes(store, (*_COMPARISONS, tirx.FloorDiv, tirx.FloorMod))
    ):
        return False
    if any("float8" in f"{node.ty}{node.value.ty}" for node in _nodes(store, (tirx.Cast,))):
        return False  # TVM computes them by choices, and has none of vectors (codegen_llvm.cc)
    flat = [flat_index(load.source.ty.shape[:], load.indices[:]) for load in loads_in(store.value)]
    steps = [_step(index, var) for index in flat]
    return _step(store.indices[0], var) == 1 and all(step in (0, 1) for step in steps)


def _uses(expr: ir.Expr, var: relax.Var) -> bool:
    return any(other.same_as(var) for other in tirx.analysis.undefined_vars(expr))


def _step(index: ir.Expr, var: relax.Var) -> int | None:
    if not _uses(index, var):
        return 0
    if loads_in(index):
        return None
    found = _linear(index, var)
    return None if found is None else found[0]


def _widest(store: tirx.BufferStore) -> int:
    """Bytes of the widest element."""
    buffers = [store.buffer, *(load.source for load in loads_in(store.value))]
    return max(tvm_ffi.dtype(str(buffer.ty.dtype)).itemsize for buffer in buffers)
