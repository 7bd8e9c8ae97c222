"""A schedule rule for relayouts on a CPU: near the speed of a copy.

Definition
----------
Each piece of a relayout (:mod:`.relayout`) becomes one of two loop nests:

- *rows*, where what is written one after the other is read one after the other: vectors. Short
  rows are moved in blocks of 16 x 16, so that lines of the cache are used whole;
- *tiles*, where it is not, but another digit is read one after the other. A tile is a line of the
  cache, 64 bytes, of each of as many rows as make a line of the output. It is copied to the stack,
  transposed in registers (:mod:`.register_transpose`), and written as whole lines. Two, four or
  eight rows that become one, or one that becomes as many, need no stack.

The stack is what keeps powers of two from being slow: lines of rows that are a power of two apart
share a few places of the cache, and are there for one visit only. Tiles run along the rows of the
input for as many elements as the processor can know pages of the output, then come the next rows.

Where a size is not a multiple of a tile, the last tile begins earlier, and writes some elements a
second time. Outer loops are one parallel loop.

Nothing is computed otherwise than it was. There is no block any more: later passes see loops.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import tvm_ffi
from tvm import ir, relax, tirx
from tvm.target import Target

from ..analysis.te_block import buffer_params, te_blocks
from .inlining import with_producers_inlined
from .register_transpose import VECTOR_BYTES, transpose_block
from .relayout import (
    Access,
    Digit,
    FlatBuffers,
    Piece,
    constant,
    element_bytes,
    integer,
    is_multiple,
    relayout_pieces,
    simplify,
)

__all__ = ["schedule_cpu_relayout"]

_LINE = 64  # bytes of a line of the cache
_RUN = 512  # elements of a row of the input, before the next rows: at most
_TLB_BYTES = 2048 * 4096  # of the pages whose places a core knows
_PART = 256  # elements of a row of the output, in one task
_BLOCK = 16  # short rows of a block, in either direction
_CHUNK = 32768  # bytes of a long row, in one task
_TASKS = 64  # as many are enough for any number of threads
_SMALL = 32768  # bytes that are not worth a second thread
_SHORT = 2048  # bytes of a row that is not worth a division of its place

_At: TypeAlias = Mapping[relax.Var, ir.Expr]

# What is the same in vectors as it is element by element.
_EXACT_CALLS = {
    "prim.if_then_else",
    "tirx.bitwise_and",
    "tirx.bitwise_not",
    "tirx.bitwise_or",
    "tirx.bitwise_xor",
    "tirx.reinterpret",
    "tirx.shift_left",
    "tirx.shift_right",
}


def schedule_cpu_relayout(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc | None:
    """Schedule a kernel that moves elements to other places, and may compute with each.

    Parameters
    ----------
    function : tvm.tirx.PrimFunc
        Not scheduled: as LegalizeOps or FuseTIR leave it. Its outputs are other memory than its
        inputs.
    target : tvm.target.Target
        Of kind llvm.

    Returns
    -------
    tvm.tirx.PrimFunc or None
        None if it is not for this rule: another target, a reduction, indices that depend on
        elements, calls of functions.
    """
    if str(Target(target).kind.name) != "llvm":
        return None
    inlined = with_producers_inlined(function)
    blocks = te_blocks(inlined) if inlined is not None else None
    if not blocks:
        return None
    params = set(buffer_params(function))
    if any(not element_bytes(str(param.ty.dtype)) for param in params):
        return None
    flat = FlatBuffers()
    statements = []
    for block in blocks:
        pieces = relayout_pieces(block, flat) if _is_exact(block.value) else None
        if pieces is None or block.buffer not in params:
            return None
        statements += [_scheduled(_of_words(piece, flat), flat) for piece in pieces]
    body = tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]
    scheduled = function.with_body(flat.declared(body))
    return scheduled.with_attr("tirx.is_scheduled", True)


def _is_exact(value: ir.Expr) -> bool:
    calls: list[ir.Call] = []
    tvm_ffi.structural_walk(value, (ir.Call, lambda call: calls.append(call)))
    return all(isinstance(c.op, ir.Op) and c.op.name in _EXACT_CALLS for c in calls)


# -- words -----------------------------------------------------------------------------------------


def _of_words(piece: Piece, flat: FlatBuffers) -> Piece:
    """A piece that only moves elements, as one that moves unsigned integers: its bits.

    A short run of elements that stay together is one integer.
    """
    if not piece.moves_only:
        return piece
    element, source = piece.value, piece.inputs[piece.value]
    size = element_bytes(str(source.buffer.ty.dtype))
    digits = list(piece.digits)
    width = 1
    if digits and _is_one(piece.output.stride(digits[-1])) and _is_one(source.stride(digits[-1])):
        extent = integer(digits[-1].extent)
        if extent and extent * size in (2, 4, 8):
            others = digits[:-1]
            places = [
                place
                for access in (piece.output, source)
                for place in (access.base, *(access.stride(digit) for digit in others))
            ]
            if all(is_multiple(place, extent) for place in places):
                width, digits = extent, others
    dtype = f"uint{8 * size * width}"

    def words(access: Access) -> Access:
        strides = {
            digit.var: _divided(access.strides[digit.var], width)
            for digit in digits
            if digit.var in access.strides
        }
        return Access(flat.of(access.buffer, dtype), _divided(access.base, width), strides)

    word = tirx.Var(element.name, dtype)
    return Piece(digits, words(piece.output), {word: words(source)}, word)


def _divided(place: ir.Expr, factor: int) -> ir.Expr:
    return simplify(tirx.floordiv(place, constant(factor)))


def _is_one(expr: ir.Expr) -> bool:
    return integer(expr) == 1


# -- loops -----------------------------------------------------------------------------------------


def _loop(
    name: str,
    extent: ir.Expr | int,
    body: Callable[[relax.Var], tirx.Stmt],
    kind: tirx.ForKind = tirx.ForKind.SERIAL,
) -> tirx.Stmt:
    var = tirx.Var(name, "int64")
    extent = constant(extent) if isinstance(extent, int) else extent
    return tirx.For(var, constant(0), extent, kind, body(var))


def _nest(
    loops: Sequence[Digit], body: Callable[[_At], tirx.Stmt], tasks: float, parallel: bool
) -> tirx.Stmt:
    """Loops, the first of them as one parallel loop: as many as make that number of tasks."""
    count = 0
    known = 1.0
    while count < len(loops) and known < tasks:
        known *= integer(loops[count].extent) or (1 if tasks == math.inf else _TASKS)
        count += 1
    outer, inner = loops[:count], loops[count:]

    def serial(at: _At, left: Sequence[Digit]) -> tirx.Stmt:
        if not left:
            return body(at)
        digit = left[0]
        if _is_one(digit.extent):
            return serial({**at, digit.var: constant(0)}, left[1:])
        return _loop(digit.var.name, digit.extent, lambda v: serial({**at, digit.var: v}, left[1:]))

    if not parallel or all(_is_one(digit.extent) for digit in outer):
        return serial({}, loops)
    total: ir.Expr = constant(1)
    for digit in outer:
        total = total * digit.extent
    total = simplify(total)

    def task(number: relax.Var) -> tirx.Stmt:
        at: dict[relax.Var, ir.Expr] = {}
        statements: list[tirx.Stmt] = []

        def named(name: str, value: ir.Expr) -> ir.Expr:
            var = tirx.Var(name, "int64")
            statements.append(tirx.Bind(var, value))
            return var

        rest: ir.Expr = number
        for digit in reversed(outer[1:]):
            # Not floordiv: by a symbolic size it becomes a choice by signs (lower_intrin.cc), and
            # three of them, one in the other, took TVM 20 s to simplify.
            at[digit.var] = named(digit.var.name, tirx.truncmod(rest, digit.extent))
            rest = named("rest", tirx.truncdiv(rest, digit.extent))
        at[outer[0].var] = rest
        return _sequence([*statements, serial(at, inner)])

    return _loop("task", total, task, tirx.ForKind.PARALLEL)


def _sequence(statements: Sequence[tirx.Stmt]) -> tirx.Stmt:
    return tirx.SeqStmt(list(statements)) if len(statements) > 1 else statements[0]


def _scheduled(piece: Piece, flat: FlatBuffers) -> tirx.Stmt:
    tiles = _tiles_of(piece)
    return _rows(piece) if tiles is None else _in_tiles(piece, tiles, flat)


def _is_small(piece: Piece) -> bool:
    count = 1
    for digit in piece.digits:
        extent = integer(digit.extent)
        if extent is None:
            return False
        count *= extent
    return count * element_bytes(str(piece.output.buffer.ty.dtype)) < _SMALL


def _store(piece: Piece, at: _At, instead: Mapping[relax.Var, ir.Expr] | None = None) -> tirx.Stmt:
    """Write an element; some that it is computed from may be elsewhere."""
    values = dict(at)
    for var, access in piece.inputs.items():
        values[var] = tirx.BufferLoad(access.buffer, [access.at(at)])
    values.update(instead or {})
    value = tvm_ffi.structural_map(
        piece.value, (relax.Var, lambda var: values.get(var, var)), order="post"
    )
    return tirx.BufferStore(piece.output.buffer, value, [piece.output.at(at)])


# -- rows ------------------------------------------------------------------------------------------


def _rows(piece: Piece) -> tirx.Stmt:
    """What is written one after the other, in vectors."""
    digits = list(piece.digits)
    if not digits or not _is_one(piece.output.stride(digits[-1])) or _is_used(piece, digits[-1]):
        return _nest(digits, lambda at: _store(piece, at), _TASKS, not _is_small(piece))
    row = digits.pop()
    widest = max(
        element_bytes(str(access.buffer.ty.dtype))
        for access in (piece.output, *piece.inputs.values())
    )
    lanes = max(_LINE // widest, 1)
    chunk = _CHUNK // widest
    known = math.prod(integer(digit.extent) or 1 for digit in digits)
    extent = integer(row.extent)
    if (extent is None or extent >= 2 * chunk) and known < _TASKS:
        count = simplify(tirx.ceildiv(row.extent, constant(chunk)))
        part = Digit(tirx.Var("chunk", "int64"), count)

        def body(at: _At) -> tirx.Stmt:
            begin = at[part.var] * constant(chunk)
            length: ir.Expr = constant(chunk)
            if extent is None or extent % chunk:
                length = tirx.min(length, row.extent - begin)
            return _row(piece, at, row, begin, length, lanes)

        return _nest([*digits, part], body, math.inf, not _is_small(piece))

    def whole(at: _At) -> tirx.Stmt:
        return _row(piece, at, row, constant(0), row.extent, lanes)

    short = extent is not None and extent * widest < _SHORT
    if extent is not None and extent * widest <= 2 * _LINE:
        turned = _turned(piece, digits)
        if turned is not None:
            return _in_turned_order(piece, *turned, whole)
    return _nest(digits, whole, _TASKS if short else math.inf, not _is_small(piece))


def _is_used(piece: Piece, digit: Digit) -> bool:
    """Whether the value depends on a digit otherwise than by what it reads at strided places."""
    return any(var.same_as(digit.var) for var in tirx.analysis.undefined_vars(piece.value))


def _turned(piece: Piece, digits: Sequence[Digit]) -> tuple[Digit, Digit] | None:
    """The digits that are next to each other in the output and in the input, if they differ."""
    if len(piece.inputs) != 1 or len(digits) < 2:
        return None
    (access,) = piece.inputs.values()
    steps = [(integer(access.stride(digit)), digit) for digit in digits]
    known = [(step, digit) for step, digit in steps if step]
    if not known:
        return None
    _, read = min(known, key=lambda pair: abs(pair[0]))
    return None if read is digits[-1] else (digits[-1], read)


def _in_turned_order(
    piece: Piece, written: Digit, read: Digit, row: Callable[[_At], tirx.Stmt]
) -> tirx.Stmt:
    """Short rows in small blocks, so that lines of the input and of the output are used whole."""
    blocks = {
        digit.var: Digit(
            tirx.Var(f"{digit.var.name}_block", "int64"), _Cut(digit.extent, _BLOCK).count
        )
        for digit in (read, written)
    }

    def block(at: _At) -> tirx.Stmt:
        def along(digit: Digit, body: Callable[[_At], tirx.Stmt], at: _At) -> tirx.Stmt:
            begin = at[blocks[digit.var].var] * _BLOCK
            extent = integer(digit.extent)
            length: ir.Expr = constant(_BLOCK)
            if extent is None or extent % _BLOCK:
                length = tirx.min(length, digit.extent - begin)
            return _loop(digit.var.name, length, lambda v: body({**at, digit.var: begin + v}))

        return along(read, lambda at: along(written, row, at), at)

    others = [d for d in piece.digits[:-1] if d not in (written, read)]
    loops = [*others, blocks[read.var], blocks[written.var]]
    return _nest(loops, block, _TASKS, not _is_small(piece))


def _row(
    piece: Piece, at: _At, row: Digit, begin: ir.Expr, length: ir.Expr, lanes: int
) -> tirx.Stmt:
    def vector(place: ir.Expr, width: int) -> tirx.Stmt:
        if width == 1:
            return _store(piece, {**at, row.var: place})
        return _loop(
            "lane",
            width,
            lambda lane: _store(piece, {**at, row.var: place + lane}),
            tirx.ForKind.VECTORIZED,
        )

    size = integer(length)
    statements = []
    if size is None:
        whole = tirx.floordiv(length, constant(lanes))
        statements.append(_loop("vector", whole, lambda v: vector(begin + v * lanes, lanes)))
        rest = tirx.floormod(length, constant(lanes))
        statements.append(_loop("element", rest, lambda v: vector(begin + whole * lanes + v, 1)))
        return tirx.SeqStmt(statements)
    if size >= 2 * lanes:
        statements.append(
            _loop("vector", size // lanes, lambda v: vector(begin + v * lanes, lanes))
        )
    elif size >= lanes:
        statements.append(vector(begin, lanes))
    if size > lanes and size % lanes:
        statements.append(vector(begin + (size - lanes), lanes))
    elif size < lanes:
        done = 0
        while done < size:
            width = 1 << ((size - done).bit_length() - 1)
            statements.append(vector(begin + done, width))
            done += width
    return _sequence(statements)


# -- tiles -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Tiles:
    """How a piece is cut.

    Attributes
    ----------
    written, read : Digit
        The one that is next to each other in the output, and in the inputs that are transposed.
    transposed : list of relax.Var
        Those inputs.
    rows, columns : int
        Of a tile of an input: values of ``written``, and of ``read``.
    interleaves, deinterleaves : bool
        Whether nothing is computed, there are few rows, and a tile is contiguous in the output; or
        few columns, and contiguous in the input.
    """

    written: Digit
    read: Digit
    transposed: list[relax.Var]
    rows: int
    columns: int
    interleaves: bool
    deinterleaves: bool


def _tiles_of(piece: Piece) -> _Tiles | None:
    """How to cut a piece, if it has to be."""
    if not piece.digits or not _is_one(piece.output.stride(piece.digits[-1])):
        return None
    written = piece.digits[-1]
    for read in piece.digits[:-1]:
        transposed = [
            var
            for var, access in piece.inputs.items()
            if _is_one(access.stride(read)) and integer(access.stride(written)) not in (0, 1)
        ]
        if not transposed or _is_used(piece, read) or _is_used(piece, written):
            continue
        sizes = [_size_of(piece.inputs[var]) for var in transposed]
        lanes = VECTOR_BYTES // min(sizes)
        rows = max(_LINE // _size_of(piece.output), lanes)
        columns = max(_LINE // size for size in sizes)
        rows, columns = (
            min(tile, _power_of_two(integer(digit.extent) or tile))
            for tile, digit in ((rows, written), (columns, read))
        )
        few_rows = piece.moves_only and integer(written.extent) == rows < columns
        few_columns = piece.moves_only and integer(read.extent) == columns < rows
        step = integer(piece.inputs[transposed[0]].stride(written))
        return _Tiles(
            written,
            read,
            transposed,
            rows,
            columns,
            interleaves=few_rows and integer(piece.output.stride(read)) == rows,
            deinterleaves=few_columns and step == columns,
        )
    return None


def _size_of(access: Access) -> int:
    return element_bytes(str(access.buffer.ty.dtype))


def _power_of_two(number: int) -> int:
    """The largest one that is not larger."""
    return 1 << (number.bit_length() - 1)


def _in_tiles(piece: Piece, tiles: _Tiles, flat: FlatBuffers) -> tirx.Stmt:
    written, read = tiles.written, tiles.read
    down, across = _Cut(written.extent, tiles.rows), _Cut(read.extent, tiles.columns)
    run = max(_run_of(piece.output, read) // tiles.columns, 1)
    runs = Digit(tirx.Var("run", "int64"), across.groups(run))
    outer = [digit for digit in piece.digits if digit not in (written, read)]
    known = math.prod(integer(digit.extent) or 1 for digit in (*outer, runs))
    rows = min(_PART // tiles.rows, (integer(down.count) or _PART) * known // _TASKS)
    part = max(rows, 1)
    parts = Digit(tirx.Var("part", "int64"), down.groups(part))

    def task(at: _At) -> tirx.Stmt:
        first_row, first_column = at[parts.var] * part, at[runs.var] * run

        def tile(i: ir.Expr, j: ir.Expr) -> tirx.Stmt:
            begin = {
                written.var: down.begin(first_row + i),
                read.var: across.begin(first_column + j),
            }
            return _tile(piece, tiles, {**at, **begin}, flat)

        return _loop(
            "tile_row",
            down.in_group(first_row, part),
            lambda i: _loop(
                "tile_column", across.in_group(first_column, run), lambda j: tile(i, j)
            ),
        )

    nest = _nest([*outer, runs, parts], task, _tasks_of_tiles(piece, tiles), not _is_small(piece))
    fits = [
        digit.extent >= tile
        for digit, tile in ((written, tiles.rows), (read, tiles.columns))
        if integer(digit.extent) is None
    ]
    return tirx.IfThenElse(tirx.all(*fits), nest, _rows(piece)) if fits else nest


def _run_of(output: Access, read: Digit) -> int:
    """How many rows of the output to write to in turn, so that their pages stay known.

    Pages that are a power of two apart share a few places of the TLB; half of these are for others.
    """
    step = (integer(output.stride(read)) or 1) * _size_of(output)
    apart = step & -step  # the largest power of two that divides it
    return max(min(_RUN, _TLB_BYTES // apart // 2), _LINE)


def _tasks_of_tiles(piece: Piece, tiles: _Tiles) -> float:
    extents = [integer(digit.extent) for digit in (tiles.written, tiles.read)]
    if None in extents:
        return math.inf
    short = math.prod(e or 1 for e in extents) * _size_of(piece.output) < _SHORT
    return _TASKS if short else math.inf


@dataclasses.dataclass
class _Cut:
    """A range in tiles of one size; the last one begins earlier if there is not enough left."""

    extent: ir.Expr
    size: int

    @property
    def count(self) -> ir.Expr:
        return simplify(tirx.ceildiv(self.extent, constant(self.size)))

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
        extent = integer(self.extent)
        if extent is not None and extent % self.size == 0:
            return place
        return tirx.min(place, self.extent - self.size)


def _tile(piece: Piece, tiles: _Tiles, at: _At, flat: FlatBuffers) -> tirx.Stmt:
    """A tile: rows of the inputs to the stack, transposed, rows of the output."""
    rows, columns = tiles.rows, tiles.columns
    statements: list[tirx.Stmt] = []
    read_back: dict[relax.Var, relax.Var] = {}
    if tiles.interleaves or tiles.deinterleaves:
        (var,) = tiles.transposed
        interleaved = _interleaved if tiles.interleaves else _deinterleaved
        return interleaved(piece, tiles, at, piece.inputs[var])
    # Lines of the output in one go, if a square has less than a quarter of one.
    direct = piece.moves_only and _size_of(piece.output) >= 4
    for var in tiles.transposed:
        access = piece.inputs[var]
        size = _size_of(access)
        dtype = f"uint{8 * size}"
        source = flat.of(access.buffer, dtype)
        lines = tirx.decl_buffer(
            (rows * columns,), dtype, f"{var.name}_rows", scope="local", layout=None
        )
        statements += [tirx.AllocBuffer(lines), _copied_in(tiles, access, at, source, lines)]
        if direct:
            store = _to_output(piece, tiles, at)
        else:
            turned = tirx.decl_buffer(
                (rows * columns,), dtype, f"{var.name}_turned", scope="local", layout=None
            )
            statements.append(tirx.AllocBuffer(turned))
            read_back[var] = turned

            def store(
                row: ir.Expr, column: ir.Expr, vector: ir.Expr, turned: relax.Var = turned
            ) -> tirx.Stmt:
                place = tirx.Ramp(column * rows + row, constant(1), _lanes_of(vector))
                return tirx.BufferStore(turned, vector, [place])

        lanes = min(VECTOR_BYTES // size, rows, columns)
        statements.append(_squares(tiles, lanes, lines, store))
    if read_back:
        statements.append(_written_out(piece, tiles, at, read_back))
    return tirx.SeqStmt(statements)


def _lanes_of(vector: ir.Expr) -> int:
    return int(tvm_ffi.dtype(str(vector.ty.dtype)).lanes)


def _copied_in(
    tiles: _Tiles, access: Access, at: _At, source: relax.Var, lines: relax.Var
) -> tirx.Stmt:
    columns = tiles.columns

    def row(i: relax.Var) -> tirx.Stmt:
        begin = access.at({**at, tiles.written.var: at[tiles.written.var] + i})
        value = tirx.BufferLoad(source, [_places(begin, columns)])
        return tirx.BufferStore(lines, value, [_places(i * columns, columns)])

    return _loop("row", tiles.rows, row)


def _places(begin: ir.Expr, count: int) -> ir.Expr:
    return tirx.Ramp(begin, constant(1), count) if count > 1 else begin


def _squares(
    tiles: _Tiles,
    lanes: int,
    lines: relax.Var,
    store: Callable[[ir.Expr, ir.Expr, ir.Expr], tirx.Stmt],
) -> tirx.Stmt:
    """Each square of a tile, transposed: those of one row of the output after each other."""

    def square(column: ir.Expr, row: ir.Expr) -> tirx.Stmt:
        return transpose_block(
            lanes,
            lanes,
            _log2(lanes),
            lambda i: tirx.BufferLoad(lines, [_places((row + i) * tiles.columns + column, lanes)]),
            lambda j, vector: store(row, column + j, vector),
        )

    return _loop(
        "square_column",
        tiles.columns // lanes,
        lambda j: _loop("square_row", tiles.rows // lanes, lambda i: square(j * lanes, i * lanes)),
    )


def _to_output(
    piece: Piece, tiles: _Tiles, at: _At
) -> Callable[[ir.Expr, ir.Expr, ir.Expr], tirx.Stmt]:
    def store(row: ir.Expr, column: ir.Expr, vector: ir.Expr) -> tirx.Stmt:
        here = {
            **at,
            tiles.written.var: at[tiles.written.var] + row,
            tiles.read.var: at[tiles.read.var] + column,
        }
        place = _places(piece.output.at(here), _lanes_of(vector))
        return tirx.BufferStore(piece.output.buffer, vector, [place])

    return store


def _interleaved(piece: Piece, tiles: _Tiles, at: _At, access: Access) -> tirx.Stmt:
    """A few rows of the input as one of the output: element by element in turn."""
    rows = tiles.rows
    lanes = min(VECTOR_BYTES // _size_of(access), tiles.columns)
    blocks = tiles.columns // lanes

    def block(number: ir.Expr) -> tirx.Stmt:
        first = at[tiles.read.var] + number * lanes

        def load(i: int) -> ir.Expr:
            row = at[tiles.written.var] + i
            place = access.at({**at, tiles.written.var: row, tiles.read.var: first})
            return tirx.BufferLoad(access.buffer, [_places(place, lanes)])

        def store(k: int, vector: ir.Expr) -> tirx.Stmt:
            place = piece.output.at({**at, tiles.read.var: first}) + k * lanes
            return tirx.BufferStore(piece.output.buffer, vector, [_places(place, lanes)])

        return transpose_block(rows, lanes, _log2(rows), load, store)

    return _loop("block", blocks, block)


def _deinterleaved(piece: Piece, tiles: _Tiles, at: _At, access: Access) -> tirx.Stmt:
    """One row of the input as a few of the output: every second element, or every fourth."""
    columns = tiles.columns
    lanes = min(VECTOR_BYTES // _size_of(access), tiles.rows)

    def block(number: ir.Expr) -> tirx.Stmt:
        here = {**at, tiles.written.var: at[tiles.written.var] + number * lanes}

        def load(i: int) -> ir.Expr:
            return tirx.BufferLoad(access.buffer, [_places(access.at(here) + i * lanes, lanes)])

        def store(i: int, vector: ir.Expr) -> tirx.Stmt:
            place = piece.output.at({**here, tiles.read.var: at[tiles.read.var] + i})
            return tirx.BufferStore(piece.output.buffer, vector, [_places(place, lanes)])

        return transpose_block(columns, lanes, _log2(lanes), load, store)

    return _loop("block", tiles.rows // lanes, block)


def _log2(power: int) -> int:
    return power.bit_length() - 1


def _written_out(
    piece: Piece, tiles: _Tiles, at: _At, read_back: Mapping[relax.Var, relax.Var]
) -> tirx.Stmt:
    def element(column: ir.Expr, row: ir.Expr) -> tirx.Stmt:
        here = {
            **at,
            tiles.written.var: at[tiles.written.var] + row,
            tiles.read.var: at[tiles.read.var] + column,
        }
        turned = {
            var: _reinterpreted(tirx.BufferLoad(buffer, [column * tiles.rows + row]), var)
            for var, buffer in read_back.items()
        }
        return _store(piece, here, turned)

    return _loop(
        "column",
        tiles.columns,
        lambda j: _loop("lane", tiles.rows, lambda i: element(j, i), tirx.ForKind.VECTORIZED),
    )


def _reinterpreted(bits: ir.Expr, var: relax.Var) -> ir.Expr:
    """The element that has these bits."""
    dtype = str(var.ty.dtype)
    if dtype == str(bits.ty.dtype):
        return bits
    if dtype == "bool":
        return bits.astype("bool")
    return tirx.reinterpret(dtype, bits)
