"""Loops for a CPU that compute elements: near the speed of a copy.

Definition
----------
A *nest* (:class:`Nest`) computes an element for each point of a box of loops, from elements at
places that are sums of them. It becomes

- *rows*, where what is written one after the other is read one after the other: vectors;
- *tiles*, where it is not, but another loop is read one after the other. A tile is a line of the
  cache, 64 bytes, of each of as many rows as make a line of the output. It is copied to the stack,
  transposed in registers (:mod:`.register_transpose`), and computed from there in whole lines.

The stack is what keeps powers of two from being slow: lines of rows that are a power of two apart
share a few places of the cache, and are there for one visit only. Tiles run along the rows of the
input for as many elements as the processor can know pages of the output, then come the next rows.

Where a size is not a multiple of a tile, the last tile begins earlier, and writes some elements a
second time; or, in a nest that may write over what it reads, what makes no tile is rows: these
compute each element once, from what was there before. Outer loops are one parallel loop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import tvm_ffi
from tvm import ir, relax, sym, tirx

from .register_transpose import VECTOR_BYTES, transpose_square

__all__ = [
    "Access",
    "Loop",
    "Nest",
    "constant",
    "integer",
    "loop",
    "loops_of",
    "point_of",
    "rows_of",
    "sequence",
    "simplify",
]

_LINE = 64  # bytes of a line of the cache
_RUN = 512  # elements of a row of the input, before the next rows: at most
_TLB_BYTES = 2048 * 4096  # of the pages whose places a core knows
_PART = 256  # elements of a row of the output, in one task
_LEAST_SIDE = 4  # elements of a tile
_CHUNK = 32768  # bytes of a long row, in one task
_TASKS = 64  # as many are enough for any number of threads
_SMALL = 32768  # bytes that are not worth a second thread
_SHORT = 2048  # bytes of a row that is not worth a division of its place

At: TypeAlias = Mapping[relax.Var, ir.Expr]


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A variable from 0 to below ``extent``."""

    var: relax.Var
    extent: ir.Expr


@dataclasses.dataclass(frozen=True, eq=False)
class Access:
    """A place in a flat buffer, in elements: ``base + sum(stride * loop)``.

    Attributes
    ----------
    buffer : relax.Var or None
        None: the place is the number that is meant.
    bits : relax.Var or None
        The same, as unsigned integers.
    base : tvm.ir.Expr
    strides : dict
        Of each variable that it depends on.
    """

    buffer: relax.Var | None
    bits: relax.Var | None
    base: ir.Expr
    strides: dict[relax.Var, ir.Expr]

    def inside(self, at: At, along: Sequence[Loop]) -> Access:
        """What is left for some loops, where variables have these values when they begin."""
        strides = {one.var: self.strides[one.var] for one in along if one.var in self.strides}
        return dataclasses.replace(self, base=self.at(at), strides=strides)

    def step(self, along: Loop) -> int | None:
        """How far the next value of a loop is, if that is known."""
        return integer(self.strides[along.var]) if along.var in self.strides else 0

    def at(self, values: At) -> ir.Expr:
        """The place for these values; a variable that is left out is 0."""
        place = self.base
        for var, stride in self.strides.items():
            if var in values:
                place = place + stride * values[var]
        return place

    @property
    def size(self) -> int:
        """Bytes of an element; 0 of a number."""
        return 0 if self.buffer is None else tvm_ffi.dtype(str(self.buffer.ty.dtype)).itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Nest:
    """What is computed: see the definition.

    Attributes
    ----------
    loops : list of Loop
        Outermost first, as the output lies in memory.
    output : Access
    inputs : dict
        The variable stands for the element, or the number, in ``value``.
    value : tvm.ir.Expr
    is_exact : bool
        Whether it is the same in vectors as it is element by element.
    is_vector : bool
        Whether it is to be made in vectors.
    """

    loops: list[Loop]
    output: Access
    inputs: dict[relax.Var, Access]
    value: ir.Expr
    is_exact: bool
    is_vector: bool

    @property
    def widest(self) -> int:
        """Bytes of the widest element."""
        return max(access.size for access in (self.output, *self.inputs.values()))

    @property
    def is_small(self) -> bool:
        """Whether it is not worth a second thread."""
        count = _points(self.loops)
        return count is not None and count * self.output.size < _SMALL

    def part(self, along: Loop, begin: int, extent: int) -> Nest:
        """A part of the box: so many values of a loop."""
        part = Loop(along.var, constant(extent))
        loops = [part if each.var.same_as(along.var) else each for each in self.loops]
        at = {along.var: constant(begin)}
        output = self.output.inside(at, loops)
        inputs = {var: access.inside(at, loops) for var, access in self.inputs.items()}
        return dataclasses.replace(self, loops=loops, output=output, inputs=inputs)

    def computed(self, at: At, instead: At | None = None) -> ir.Expr:
        """An element; some that it is computed from may be elsewhere."""
        values = {}
        for var, access in self.inputs.items():
            if instead and var in instead:
                found = instead[var]
            elif access.buffer is None:
                found = access.at(at).astype(str(var.ty))
            else:
                found = tirx.BufferLoad(access.buffer, [access.at(at)])
            values[var] = _as(str(var.ty), found)
        return tvm_ffi.structural_map(self.value, (relax.Var, lambda var: values.get(var, var)))

    def stored(self, at: At, instead: At | None = None) -> tirx.Stmt:
        """Write an element."""
        value = self.computed(at, instead)
        return tirx.BufferStore(self.output.buffer, value, [self.output.at(at)])


def _as(dtype: str, value: ir.Expr) -> ir.Expr:
    """The same bits."""
    if str(value.ty) == dtype:
        return value
    return value.astype(dtype) if dtype == "bool" else tirx.reinterpret(dtype, value)


def constant(number: int) -> ir.Expr:
    """A number as indices have it."""
    return tirx.const(number, "int64")


def integer(expr: ir.Expr) -> int | None:
    """The number that an expression is."""
    return int(expr) if isinstance(expr, tirx.IntImm) else None


def _points(loops: Sequence[Loop]) -> int | None:
    """How many points a box has, if that is known."""
    count = 1
    for each in loops:
        extent = integer(each.extent)
        if extent is None:
            return None
        count *= extent
    return count


def simplify(expr: ir.Expr) -> ir.Expr:
    """A simpler expression."""
    return sym.Analyzer().simplify(expr)


def sequence(statements: Iterable[tirx.Stmt]) -> tirx.Stmt:
    """One statement."""
    found = list(statements)
    return tirx.SeqStmt(found) if len(found) != 1 else found[0]


def loop(
    name: str,
    extent: ir.Expr | int,
    body: Callable[[relax.Var], tirx.Stmt],
    kind: tirx.ForKind = tirx.ForKind.SERIAL,
) -> tirx.Stmt:
    """A loop from 0 on."""
    var = tirx.Var(name, "int64")
    extent = constant(extent) if isinstance(extent, int) else extent
    return tirx.For(var, constant(0), extent, kind, body(var))


# -- outer loops -----------------------------------------------------------------------------------


def _over(
    loops: Sequence[Loop], body: Callable[[At], tirx.Stmt], tasks: float, parallel: bool
) -> tirx.Stmt:
    """Loops, the first of them as one parallel loop: as many as make that number of tasks."""
    count = 0
    known = 1.0
    while parallel and count < len(loops) and known < tasks:
        known *= integer(loops[count].extent) or (1 if tasks == math.inf else _TASKS)
        count += 1
    outer, inner = loops[:count], loops[count:]

    def serial(at: At, left: Sequence[Loop]) -> tirx.Stmt:
        if not left:
            return body(at)
        first = left[0]
        if integer(first.extent) == 1:
            return serial({**at, first.var: constant(0)}, left[1:])
        return loop(first.var.name, first.extent, lambda v: serial({**at, first.var: v}, left[1:]))

    if all(integer(each.extent) == 1 for each in outer):
        return serial({}, loops)

    def task(number: relax.Var) -> tirx.Stmt:
        statements, at = point_of(outer, number)
        return sequence([*statements, serial(at, inner)])

    total = simplify(math.prod((each.extent for each in outer), start=constant(1)))
    return loop("task", total, task, tirx.ForKind.PARALLEL)


def point_of(loops: Sequence[Loop], number: ir.Expr) -> tuple[list[tirx.Stmt], At]:
    """The values of loops at the point of a number, in order; and what computes them."""
    at: dict[relax.Var, ir.Expr] = {}
    statements: list[tirx.Stmt] = []

    def named(name: str, value: ir.Expr) -> ir.Expr:
        var = tirx.Var(name, "int64")
        statements.append(tirx.Bind(var, value))
        return var

    rest = number
    for each in reversed(loops[1:]):
        # Not floordiv: by a symbolic size it becomes a choice by signs (lower_intrin.cc), and
        # three of them, one in the other, took TVM 20 s to simplify.
        # Nor by 0: TVM sees it where a condition makes a size 0, and fails to compile.
        by = each.extent if integer(each.extent) else tirx.max(each.extent, constant(1))
        at[each.var] = named(each.var.name, tirx.truncmod(rest, by))
        rest = named("rest", tirx.truncdiv(rest, by))
    if loops:
        at[loops[0].var] = rest
    return statements, at


def loops_of(nest: Nest, *, parallel: bool, over_inputs: bool) -> tirx.Stmt:
    """The loops of a nest.

    Parameters
    ----------
    nest : Nest
    parallel : bool
        Whether to use threads.
    over_inputs : bool
        Whether it may write over what it reads: each element over those it is computed from.
    """
    tiles = _tiles_of(nest) if nest.is_vector else None
    left = []
    for cut in (tiles.written, tiles.read) if tiles is not None and over_inputs else ():
        extent = integer(cut.loop.extent)
        if extent is None:
            return rows_of(nest, parallel=parallel)
        if extent % cut.size:
            whole = extent - extent % cut.size
            left.append(rows_of(nest.part(cut.loop, whole, extent - whole), parallel=parallel))
            nest = nest.part(cut.loop, 0, whole)
    if left:
        return sequence([loops_of(nest, parallel=parallel, over_inputs=True), *left])
    return rows_of(nest, parallel=parallel) if tiles is None else _in_tiles(nest, tiles, parallel)


# -- rows ------------------------------------------------------------------------------------------


def rows_of(nest: Nest, *, parallel: bool) -> tirx.Stmt:
    """What is written one after the other, in vectors."""
    parallel = parallel and not nest.is_small
    if not nest.loops:
        return nest.stored({})
    *outer, row = nest.loops
    steps = [access.step(row) for access in nest.inputs.values() if access.buffer is not None]
    if not nest.is_vector or nest.output.step(row) != 1 or not all(s in (0, 1) for s in steps):
        return _over(nest.loops, nest.stored, _TASKS, parallel)
    lanes = max(_LINE // nest.widest, 1)
    chunk = _CHUNK // nest.widest
    known = math.prod(integer(each.extent) or 1 for each in outer)
    extent = integer(row.extent)
    if parallel and (extent is None or extent >= 2 * chunk) and known < _TASKS:
        count = simplify(tirx.ceildiv(row.extent, constant(chunk)))
        part = Loop(tirx.Var("chunk", "int64"), count)

        def body(at: At) -> tirx.Stmt:
            begin = at[part.var] * constant(chunk)
            is_whole = extent is not None and extent % chunk == 0
            length = constant(chunk)
            if not is_whole:
                length = tirx.min(length, row.extent - begin)
            return _row(nest, at, row, begin, length, lanes)

        return _over([*outer, part], body, math.inf, parallel)
    short = extent is not None and extent * nest.widest < _SHORT

    def whole(at: At) -> tirx.Stmt:
        return _row(nest, at, row, constant(0), row.extent, lanes)

    return _over(outer, whole, _TASKS if short else math.inf, parallel)


def _row(nest: Nest, at: At, row: Loop, begin: ir.Expr, length: ir.Expr, lanes: int) -> tirx.Stmt:
    def vector(place: ir.Expr, width: int) -> tirx.Stmt:
        if width == 1:
            return nest.stored({**at, row.var: place})
        return loop(
            "lane",
            width,
            lambda lane: nest.stored({**at, row.var: place + lane}),
            tirx.ForKind.VECTORIZED,
        )

    size = integer(length)
    if size is None:
        whole = tirx.truncdiv(length, constant(lanes))
        return sequence(
            [
                loop("vector", whole, lambda v: vector(begin + v * lanes, lanes)),
                loop(
                    "element",
                    tirx.truncmod(length, constant(lanes)),
                    lambda v: vector(begin + whole * lanes + v, 1),
                ),
            ]
        )
    statements = []
    done = size - size % lanes
    if size >= 2 * lanes:
        statements.append(loop("vector", size // lanes, lambda v: vector(begin + v * lanes, lanes)))
    elif done:
        statements.append(vector(begin, lanes))
    while done < size:
        width = 1 << ((size - done).bit_length() - 1)
        statements.append(vector(begin + done, width))
        done += width
    return sequence(statements)


# -- tiles -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Tiles:
    """How a nest is cut.

    Attributes
    ----------
    written, read : _Cut
        Of the loop that is next to each other in the output, and of the one that is in the inputs
        that are transposed.
    transposed : list of relax.Var
        Those inputs.
    """

    written: _Cut
    read: _Cut
    transposed: list[relax.Var]

    @property
    def rows(self) -> int:
        """Of a tile of an input."""
        return self.written.size

    @property
    def columns(self) -> int:
        """Of a tile of an input."""
        return self.read.size


@dataclasses.dataclass
class _Cut:
    """A loop in tiles of one size; the last one begins earlier if there is not enough left."""

    loop: Loop
    size: int

    @property
    def is_exact(self) -> bool:
        extent = integer(self.loop.extent)
        return extent is not None and extent % self.size == 0

    @property
    def count(self) -> ir.Expr:
        return simplify(tirx.ceildiv(self.loop.extent, constant(self.size)))

    def groups(self, number: int) -> ir.Expr:
        """How many groups there are of that many tiles."""
        return simplify(tirx.ceildiv(self.count, constant(number)))

    def in_group(self, first: ir.Expr, number: int) -> ir.Expr:
        """How many tiles are in a group, by its first one."""
        count = integer(self.count)
        if count is not None and (count % number == 0 or count < number):
            return constant(min(count, number))
        return tirx.min(constant(number), self.count - first)

    def begin(self, tile: ir.Expr) -> ir.Expr:
        """Where a tile begins."""
        place = tile * self.size
        return place if self.is_exact else tirx.min(place, self.loop.extent - self.size)


def _tiles_of(nest: Nest) -> _Tiles | None:
    """How to cut a nest, if it has to be."""
    if not nest.loops or nest.output.step(nest.loops[-1]) != 1:
        return None
    *others, last = nest.loops
    for first in others:
        # What does not depend on the last loop is in rows: the same element again and again.
        transposed = [
            var
            for var, access in nest.inputs.items()
            if access.size and access.step(first) == 1 and access.step(last) not in (0, 1)
        ]
        if not transposed:
            continue
        sizes = [nest.inputs[var].size for var in transposed]
        rows = max(_LINE // nest.output.size, VECTOR_BYTES // min(sizes))
        columns = max(_LINE // size for size in sizes)
        written, read = (
            _Cut(each, _power_of_two(min(size, integer(each.extent) or size)))
            for each, size in ((last, rows), (first, columns))
        )
        if min(written.size, read.size) >= _LEAST_SIDE:
            return _Tiles(written, read, transposed)
    return None


def _power_of_two(number: int) -> int:
    """The largest one that is not larger."""
    return 1 << (number.bit_length() - 1)


def _in_tiles(nest: Nest, tiles: _Tiles, parallel: bool) -> tirx.Stmt:
    written, read = tiles.written.loop, tiles.read.loop
    run = max(_run_of(nest.output, read) // tiles.columns, 1)
    runs = Loop(tirx.Var("run", "int64"), tiles.read.groups(run))
    outer = [each for each in nest.loops if each not in (written, read)]
    known = math.prod(integer(each.extent) or 1 for each in (*outer, runs))
    count = integer(tiles.written.count) or _PART
    part = max(min(_PART // tiles.rows, count * known // _TASKS), 1)
    parts = Loop(tirx.Var("part", "int64"), tiles.written.groups(part))

    def task(at: At) -> tirx.Stmt:
        first_row, first_column = at[parts.var] * part, at[runs.var] * run

        def tile(i: ir.Expr, j: ir.Expr) -> tirx.Stmt:
            begin = {
                written.var: tiles.written.begin(first_row + i),
                read.var: tiles.read.begin(first_column + j),
            }
            return _tile(nest, tiles, {**at, **begin})

        return loop(
            "tile_row",
            tiles.written.in_group(first_row, part),
            lambda i: loop(
                "tile_column", tiles.read.in_group(first_column, run), lambda j: tile(i, j)
            ),
        )

    size = _points([written, read])
    tasks = _TASKS if size is not None and size * nest.output.size < _SHORT else math.inf
    in_tiles = _over([*outer, runs, parts], task, tasks, parallel and not nest.is_small)
    cuts = [cut for cut in (tiles.written, tiles.read) if integer(cut.loop.extent) is None]
    if not cuts:
        return in_tiles
    fits = tirx.all(*(cut.loop.extent >= cut.size for cut in cuts))
    return tirx.IfThenElse(fits, in_tiles, rows_of(nest, parallel=parallel))


def _run_of(output: Access, read: Loop) -> int:
    """How many rows of the output to write to in turn, so that their pages stay known.

    Pages that are a power of two apart share a few places of the TLB; half of these are for others.
    """
    step = (output.step(read) or 1) * output.size
    apart = step & -step  # the largest power of two that divides it
    return max(min(_RUN, _TLB_BYTES // apart // 2), _LINE)


def _tile(nest: Nest, tiles: _Tiles, at: At) -> tirx.Stmt:
    """A tile: rows of the inputs to the stack, transposed, rows of the output."""
    written, read = tiles.written.loop.var, tiles.read.loop.var
    size = tiles.rows * tiles.columns
    statements: list[tirx.Stmt] = []
    read_back: dict[relax.Var, relax.Var] = {}
    for var in tiles.transposed:
        access = nest.inputs[var]
        assert access.bits is not None  # TVM makes bfloat16 that it keeps float32
        dtype = str(access.bits.ty.dtype)
        lines, turned = (
            tirx.decl_buffer((size,), dtype, f"{var.name}_{name}", scope="local", layout=None)
            for name in ("rows", "turned")
        )
        read_back[var] = turned

        def row(i: relax.Var, access: Access = access, lines: relax.Var = lines) -> tirx.Stmt:
            begin = access.at({**at, written: at[written] + i})
            value = tirx.BufferLoad(access.bits, [_places(begin, tiles.columns)])
            return tirx.BufferStore(lines, value, [_places(i * tiles.columns, tiles.columns)])

        statements += [tirx.AllocBuffer(lines), tirx.AllocBuffer(turned)]
        statements.append(loop("row", tiles.rows, row))
        statements.append(_transposed(tiles, lines, turned))

    def line(column: relax.Var) -> tirx.Stmt:
        def element(row: relax.Var) -> tirx.Stmt:
            turned = {
                var: tirx.BufferLoad(buffer, [column * tiles.rows + row])
                for var, buffer in read_back.items()
            }
            here = {**at, written: at[written] + row, read: at[read] + column}
            return nest.stored(here, turned)

        return loop("lane", tiles.rows, element, tirx.ForKind.VECTORIZED)

    return sequence([*statements, loop("column", tiles.columns, line)])


def _places(begin: ir.Expr, count: int) -> ir.Expr:
    return tirx.Ramp(begin, constant(1), count)


def _transposed(tiles: _Tiles, lines: relax.Var, turned: relax.Var) -> tirx.Stmt:
    """The rows of a tile as columns, square by square."""
    size = tvm_ffi.dtype(str(lines.ty.dtype)).itemsize
    lanes = min(VECTOR_BYTES // size, tiles.rows, tiles.columns)

    def square(column: ir.Expr, row: ir.Expr) -> tirx.Stmt:
        def load(i: int) -> ir.Expr:
            place = (row + i) * tiles.columns + column
            return tirx.BufferLoad(lines, [_places(place, lanes)])

        def store(j: int, vector: ir.Expr) -> tirx.Stmt:
            place = (column + j) * tiles.rows + row
            return tirx.BufferStore(turned, vector, [_places(place, lanes)])

        return transpose_square(lanes, load, store)

    return loop(
        "square_column",
        tiles.columns // lanes,
        lambda j: loop("square_row", tiles.rows // lanes, lambda i: square(j * lanes, i * lanes)),
    )
