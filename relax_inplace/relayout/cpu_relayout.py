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

A row, or a column, of a tile may be several digits that follow each other in memory: with a short
one alone there would be no whole lines. An integer that is computed from what is read in one order
is computed in that order, in vectors, on the way to the stack, even of several elements, shifted by
other digits: so bits are moved from one byte to another. Where a few digits only say by how much to
shift, a tile that is read once makes one tile of the output for each of their values.

The stack is what keeps powers of two from being slow: lines of rows that are a power of two apart
share a few places of the cache, and are there for one visit only. Tiles run along the rows of the
input for as many elements as the processor can know pages of the output, then come the next rows.

Where a size is not a multiple of a tile, the last tile begins earlier, and writes some elements a
second time. Outer loops are one parallel loop.

Nothing is computed otherwise than it was. One block is around all; in it later passes see loops.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import tvm_ffi
from tvm import ir, relax, tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm.target import Target

from .emulated_floats import bits_of_constant, can_be_vector
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
from .te_block import buffer_params, te_blocks

__all__ = ["schedule_cpu_relayout"]

_LINE = 64  # bytes of a line of the cache
_RUN = 512  # elements of a row of the input, before the next rows: at most
_TLB_BYTES = 2048 * 4096  # of the pages whose places a core knows
_PART = 256  # elements of a row of the output, in one task
_BLOCK = 16  # short rows of a block, in either direction
_MOST_REPEATED = 8  # tiles of the output that one of the inputs is read for
_LEAST_SIDE = 4  # elements of a tile that is worth computing it first
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
        pieces = [_of_words(piece, flat) for piece in pieces]
        if not all(can_be_vector(piece.value) for piece in pieces):
            return None
        statements += [_scheduled(piece, flat) for piece in pieces]
    body = tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]
    # TVM's FuseOps may leave this kernel's result to another one, and then RewriteDataflowReshape
    # looks for a block (src/relax/analysis/tir_op_pattern_kind.cc).
    root = SBlock([], [], [], "root", flat.declared(body))
    scheduled = function.with_body(SBlockRealize([], True, root))
    return scheduled.with_attr("tirx.is_scheduled", True)


def _is_exact(value: ir.Expr) -> bool:
    calls: list[ir.Call] = []
    tvm_ffi.structural_walk(value, (ir.Call, lambda call: calls.append(call)))
    return all(isinstance(c.op, ir.Op) and c.op.name in _EXACT_CALLS for c in calls)


# -- words -----------------------------------------------------------------------------------------


def _of_words(piece: Piece, flat: FlatBuffers) -> Piece:
    """A piece that only moves elements, as one that moves unsigned integers: its bits.

    A short run of elements that stay together is one integer. A constant that cannot be a vector is
    one, too.
    """
    if not piece.moves_only:
        bits = bits_of_constant(piece.value)
        if bits is None:
            return piece
        output = dataclasses.replace(
            piece.output, buffer=flat.of(piece.output.buffer, str(bits.ty))
        )
        return dataclasses.replace(piece, output=output, value=bits)
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
            # Nor by 0: TVM sees it where a condition makes a size 0, and fails to compile.
            by = digit.extent if integer(digit.extent) else tirx.max(digit.extent, constant(1))
            at[digit.var] = named(digit.var.name, tirx.truncmod(rest, by))
            rest = named("rest", tirx.truncdiv(rest, by))
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
    value = _value(piece, at, instead)
    return tirx.BufferStore(piece.output.buffer, value, [piece.output.at(at)])


def _value(piece: Piece, at: _At, instead: Mapping[relax.Var, ir.Expr] | None = None) -> ir.Expr:
    values = dict(at)
    for var, access in piece.inputs.items():
        values[var] = tirx.BufferLoad(access.buffer, [access.at(at)])
    values.update(instead or {})
    return tvm_ffi.structural_map(
        piece.value, (relax.Var, lambda var: values.get(var, var)), order="post"
    )


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
class _Run:
    """Digits that are next to each other in memory; the outermost one is cut.

    Attributes
    ----------
    digits : list of Digit
        The outermost first.
    length : int
        Elements in a tile.
    """

    digits: list[Digit]
    length: int

    @property
    def cut(self) -> _Cut:
        """How the outermost digit is cut."""
        inner = math.prod(int(digit.extent) for digit in self.digits[1:])
        return _Cut(self.digits[0].extent, self.length // inner)

    @property
    def in_tile(self) -> list[Digit]:
        """The digits, from where a tile begins."""
        first = self.digits[0]
        return [Digit(first.var, constant(self.cut.size)), *self.digits[1:]]

    def at(self, begin: _At, place: ir.Expr) -> _At:
        """The digits of an element of a tile."""
        values: dict[relax.Var, ir.Expr] = {}
        for digit in reversed(self.digits[1:]):
            values[digit.var] = simplify(tirx.floormod(place, digit.extent))
            place = simplify(tirx.floordiv(place, digit.extent))
        first = self.digits[0].var
        return {**begin, **values, first: begin[first] + place}


@dataclasses.dataclass
class _Tiles:
    """How a piece is cut.

    Attributes
    ----------
    written, read : _Run
        What is next to each other in the output, and in the inputs that are transposed.
    repeated : list of Digit
        Those that the inputs do not depend on, where elements are computed first: a tile of the
        input has several of the output.
    transposed : list of relax.Var
        Those inputs.
    computes_first : bool
        Whether elements are computed as they are read, and then transposed; if not, the inputs are
        transposed, and elements computed as they are written.
    interleaves, deinterleaves : bool
        Whether nothing is computed, there are few rows, and a tile is contiguous in the output; or
        few columns, and contiguous in the input.
    """

    written: _Run
    read: _Run
    repeated: list[Digit]
    transposed: list[relax.Var]
    computes_first: bool
    interleaves: bool
    deinterleaves: bool

    @property
    def rows(self) -> int:
        """Of a tile of an input."""
        return self.written.length

    @property
    def columns(self) -> int:
        """Of a tile of an input."""
        return self.read.length

    @property
    def size(self) -> int:
        """Elements of a tile of an input."""
        return self.rows * self.columns


def _tiles_of(piece: Piece) -> _Tiles | None:
    """How to cut a piece, if it has to be."""
    if not piece.digits or not _is_one(piece.output.stride(piece.digits[-1])):
        return None
    last = piece.digits[-1]
    # What does not depend on the last digit is in rows: the same element again and again.
    no_steps = (1,) if _is_used(piece, last) else (0, 1)
    for first in piece.digits[:-1]:
        transposed = [
            var
            for var, access in piece.inputs.items()
            if _is_one(access.stride(first)) and integer(access.stride(last)) not in no_steps
        ]
        if not transposed or _is_used(piece, first):
            continue
        accesses = [piece.inputs[var] for var in transposed]
        computes_first = _computes_first(piece, first)
        if _is_used(piece, last) and not computes_first:
            continue
        sizes = [_size_of(access) for access in accesses]
        rows = max(_LINE // _size_of(piece.output), VECTOR_BYTES // min(sizes))
        columns = max(_LINE // size for size in sizes)
        written = _run_from(last, [], [], rows)
        read = _run_from(first, [], [], columns)
        few_rows = piece.moves_only and integer(last.extent) == written.length < read.length
        few_columns = piece.moves_only and integer(first.extent) == read.length < written.length
        tiles = _Tiles(
            written,
            read,
            [],
            transposed,
            computes_first,
            interleaves=few_rows and integer(piece.output.stride(first)) == written.length,
            deinterleaves=few_columns and integer(accesses[0].stride(last)) == read.length,
        )
        if computes_first and not tiles.interleaves and not tiles.deinterleaves:
            others = [d for d in piece.digits if d not in (first, last)]
            tiles.written = _run_from(last, others, [piece.output], rows)
            others = [
                digit
                for digit in others
                if digit not in tiles.written.digits and _is_like(piece, digit, first)
            ]
            alike = [a for a in piece.inputs.values() if _is_one(a.stride(first))]
            tiles.read = _run_from(first, others, alike, columns)
            tiles.repeated = _repeated(piece, [*tiles.written.digits, *tiles.read.digits])
        if not _is_used(piece, last) or min(tiles.rows, tiles.columns) >= _LEAST_SIDE:
            return tiles
    return None


def _computes_first(piece: Piece, read: Digit) -> bool:
    """Whether what is computed is an integer, and all that it is computed from is in one order."""
    return str(piece.output.buffer.ty.dtype).startswith(("int", "uint")) and all(
        integer(access.stride(read)) in (0, 1) for access in piece.inputs.values()
    )


def _run_from(
    first: Digit, others: Sequence[Digit], accesses: Sequence[Access], length: int
) -> _Run:
    """The digits that follow in memory, up to a number of elements."""
    digits = [first]
    inner = 1
    while True:
        extent = integer(digits[0].extent)
        if extent is None or inner * extent >= length or extent != _power_of_two(extent):
            break
        step = inner * extent
        following = [
            digit
            for digit in others
            if all(integer(access.stride(digit)) == step for access in accesses)
        ]
        if not following:
            break
        digits.insert(0, following[0])
        inner = step
    extent = integer(digits[0].extent)
    size = length // inner if extent is None else min(length // inner, extent)
    return _Run(digits, inner * _power_of_two(size))


def _is_like(piece: Piece, digit: Digit, first: Digit) -> bool:
    """Whether nothing depends on a digit but what depends on another one, too."""
    return not _is_used(piece, digit) and all(
        _is_zero(access.stride(digit))
        for access in piece.inputs.values()
        if _is_zero(access.stride(first))
    )


def _repeated(piece: Piece, in_tile: Sequence[Digit]) -> list[Digit]:
    """A few digits that elements of the inputs do not depend on."""
    found: list[Digit] = []
    count = 1
    for digit in piece.digits:
        extent = integer(digit.extent) or _MOST_REPEATED + 1
        if digit in in_tile or count * extent > _MOST_REPEATED:
            continue
        if all(_is_zero(access.stride(digit)) for access in piece.inputs.values()):
            found.append(digit)
            count *= extent
    return found


def _is_zero(expr: ir.Expr) -> bool:
    return integer(expr) == 0


def _size_of(access: Access) -> int:
    return element_bytes(str(access.buffer.ty.dtype))


def _power_of_two(number: int) -> int:
    """The largest one that is not larger."""
    return 1 << (number.bit_length() - 1)


def _in_tiles(piece: Piece, tiles: _Tiles, flat: FlatBuffers) -> tirx.Stmt:
    written, read = tiles.written.digits[0], tiles.read.digits[0]
    down, across = tiles.written.cut, tiles.read.cut
    repeats = math.prod(int(digit.extent) for digit in tiles.repeated)
    run = max(_run_of(piece.output, read) // (tiles.columns * repeats), 1)
    runs = Digit(tirx.Var("run", "int64"), across.groups(run))
    inner = [*tiles.written.digits, *tiles.read.digits, *tiles.repeated]
    outer = [digit for digit in piece.digits if digit not in inner]
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
    fits = [cut.extent >= cut.size for cut in (down, across) if integer(cut.extent) is None]
    return tirx.IfThenElse(tirx.all(*fits), nest, _rows(piece)) if fits else nest


def _run_of(output: Access, read: Digit) -> int:
    """How many rows of the output to write to in turn, so that their pages stay known.

    Pages that are a power of two apart share a few places of the TLB; half of these are for others.
    """
    step = (integer(output.stride(read)) or 1) * _size_of(output)
    apart = step & -step  # the largest power of two that divides it
    return max(min(_RUN, _TLB_BYTES // apart // 2), _LINE)


def _tasks_of_tiles(piece: Piece, tiles: _Tiles) -> float:
    extents = [integer(d.extent) for run in (tiles.written, tiles.read) for d in run.digits]
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
    if tiles.interleaves or tiles.deinterleaves:
        (var,) = tiles.transposed
        interleaved = _interleaved if tiles.interleaves else _deinterleaved
        return interleaved(piece, tiles, at, piece.inputs[var])
    if tiles.computes_first:
        return _computed_tile(piece, tiles, at)
    written, read = tiles.written.digits[0].var, tiles.read.digits[0].var
    statements: list[tirx.Stmt] = []
    read_back: dict[relax.Var, relax.Var] = {}
    for var in tiles.transposed:
        access = piece.inputs[var]
        dtype = f"uint{8 * _size_of(access)}"
        source = flat.of(access.buffer, dtype)
        lines = _on_stack(f"{var.name}_rows", dtype, tiles.size)
        read_back[var] = turned = _on_stack(f"{var.name}_turned", dtype, tiles.size)

        def row(
            i: relax.Var,
            access: Access = access,
            source: relax.Var = source,
            lines: relax.Var = lines,
        ) -> tirx.Stmt:
            begin = access.at({**at, written: at[written] + i})
            value = tirx.BufferLoad(source, [_places(begin, tiles.columns)])
            return tirx.BufferStore(lines, value, [_places(i * tiles.columns, tiles.columns)])

        statements += [tirx.AllocBuffer(lines), tirx.AllocBuffer(turned)]
        statements.append(_loop("row", tiles.rows, row))
        statements.append(_squares(tiles, lines, constant(0), _to_stack(tiles, turned)))

    def element(column: ir.Expr, row: ir.Expr) -> ir.Expr:
        elements = {
            var: _reinterpreted(tirx.BufferLoad(buffer, [column * tiles.rows + row]), var)
            for var, buffer in read_back.items()
        }
        here = {**at, written: at[written] + row, read: at[read] + column}
        return _value(piece, here, elements)

    statements.append(_written_out(piece, tiles, at, element))
    return tirx.SeqStmt(statements)


def _computed_tile(piece: Piece, tiles: _Tiles, at: _At) -> tirx.Stmt:
    """A tile whose elements are computed in the order of the inputs, and then transposed."""
    lane_of = tiles.read.digits[-1].var
    first = tiles.written.digits[0].var
    dtype = str(piece.output.buffer.ty.dtype)
    count = math.prod(int(digit.extent) for digit in tiles.repeated)
    lines = _on_stack("rows", dtype, count * tiles.size)
    digits = [*tiles.repeated, *tiles.written.in_tile]
    steps = _steps(digits, tiles.columns)
    access = piece.inputs[tiles.transposed[0]]
    # Those last that read the same again.
    digits.sort(key=lambda digit: _is_zero(access.stride(digit)))

    def computed(values: _At) -> tirx.Stmt:
        begin = _sum_of(values, steps)
        here = {**at, **values, first: at[first] + values[first]}

        def element(lane: relax.Var) -> tirx.Stmt:
            there = {**here, lane_of: here.get(lane_of, constant(0)) + lane}
            return tirx.BufferStore(lines, _value(piece, there), [begin + lane])

        return _loop("lane", tiles.columns, element, tirx.ForKind.VECTORIZED)

    statements = [tirx.AllocBuffer(lines), _over(digits, computed)]
    # Lines of the output in one go, if a square has less than a quarter of one.
    direct = _size_of(piece.output) >= 4
    turned = _on_stack("turned", dtype, tiles.size)
    if not direct:
        statements.append(tirx.AllocBuffer(turned))

    def transposed(values: _At) -> tirx.Stmt:
        begin, here = _sum_of(values, steps), {**at, **values}
        if direct:
            return _squares(tiles, lines, begin, _to_output(piece, tiles, here))

        def element(column: ir.Expr, row: ir.Expr) -> ir.Expr:
            return tirx.BufferLoad(turned, [column * tiles.rows + row])

        squares = _squares(tiles, lines, begin, _to_stack(tiles, turned))
        return tirx.SeqStmt([squares, _written_out(piece, tiles, here, element)])

    return tirx.SeqStmt([*statements, _over(tiles.repeated, transposed)])


def _on_stack(name: str, dtype: str, size: int) -> relax.Var:
    return tirx.decl_buffer((size,), dtype, name, scope="local", layout=None)


def _over(
    digits: Sequence[Digit], body: Callable[[_At], tirx.Stmt], at: _At | None = None
) -> tirx.Stmt:
    """Loops, one in the other."""
    at = at or {}
    if not digits:
        return body(at)
    digit, *inner = digits
    return _loop(
        digit.var.name, digit.extent, lambda var: _over(inner, body, {**at, digit.var: var})
    )


def _lanes_of(vector: ir.Expr) -> int:
    return int(tvm_ffi.dtype(str(vector.ty.dtype)).lanes)


def _places(begin: ir.Expr, count: int) -> ir.Expr:
    return tirx.Ramp(begin, constant(1), count) if count > 1 else begin


def _squares(
    tiles: _Tiles,
    lines: relax.Var,
    begin: ir.Expr,
    store: Callable[[ir.Expr, ir.Expr, ir.Expr], tirx.Stmt],
) -> tirx.Stmt:
    """Each square of a tile, transposed: those of one row of the output after each other."""
    size = tvm_ffi.dtype(str(lines.ty.dtype)).itemsize
    lanes = min(VECTOR_BYTES // size, tiles.rows, tiles.columns)

    def square(column: ir.Expr, row: ir.Expr) -> tirx.Stmt:
        def load(i: int) -> ir.Expr:
            place = begin + (row + i) * tiles.columns + column
            return tirx.BufferLoad(lines, [_places(place, lanes)])

        return transpose_block(
            lanes, lanes, _log2(lanes), load, lambda j, vector: store(row, column + j, vector)
        )

    return _loop(
        "square_column",
        tiles.columns // lanes,
        lambda j: _loop("square_row", tiles.rows // lanes, lambda i: square(j * lanes, i * lanes)),
    )


def _to_stack(tiles: _Tiles, turned: relax.Var) -> Callable[[ir.Expr, ir.Expr, ir.Expr], tirx.Stmt]:
    def store(row: ir.Expr, column: ir.Expr, vector: ir.Expr) -> tirx.Stmt:
        place = _places(column * tiles.rows + row, _lanes_of(vector))
        return tirx.BufferStore(turned, vector, [place])

    return store


def _to_output(
    piece: Piece, tiles: _Tiles, at: _At
) -> Callable[[ir.Expr, ir.Expr, ir.Expr], tirx.Stmt]:
    def store(row: ir.Expr, column: ir.Expr, vector: ir.Expr) -> tirx.Stmt:
        place = piece.output.at(tiles.read.at(at, column)) + row
        return tirx.BufferStore(piece.output.buffer, vector, [_places(place, _lanes_of(vector))])

    return store


def _interleaved(piece: Piece, tiles: _Tiles, at: _At, access: Access) -> tirx.Stmt:
    """A few rows of the input as one of the output: element by element in turn."""
    written, read = tiles.written.digits[0].var, tiles.read.digits[0].var
    rows = tiles.rows
    lanes = min(VECTOR_BYTES // _size_of(access), tiles.columns)
    blocks = tiles.columns // lanes

    def block(number: ir.Expr) -> tirx.Stmt:
        first = at[read] + number * lanes

        def load(i: int) -> ir.Expr:
            place = access.at({**at, written: at[written] + i, read: first})
            return tirx.BufferLoad(access.buffer, [_places(place, lanes)])

        def store(k: int, vector: ir.Expr) -> tirx.Stmt:
            place = piece.output.at({**at, read: first}) + k * lanes
            return tirx.BufferStore(piece.output.buffer, vector, [_places(place, lanes)])

        return transpose_block(rows, lanes, _log2(rows), load, store)

    return _loop("block", blocks, block)


def _deinterleaved(piece: Piece, tiles: _Tiles, at: _At, access: Access) -> tirx.Stmt:
    """One row of the input as a few of the output: every second element, or every fourth."""
    written, read = tiles.written.digits[0].var, tiles.read.digits[0].var
    columns = tiles.columns
    lanes = min(VECTOR_BYTES // _size_of(access), tiles.rows)

    def block(number: ir.Expr) -> tirx.Stmt:
        here = {**at, written: at[written] + number * lanes}

        def load(i: int) -> ir.Expr:
            return tirx.BufferLoad(access.buffer, [_places(access.at(here) + i * lanes, lanes)])

        def store(i: int, vector: ir.Expr) -> tirx.Stmt:
            place = piece.output.at({**here, read: at[read] + i})
            return tirx.BufferStore(piece.output.buffer, vector, [_places(place, lanes)])

        return transpose_block(columns, lanes, _log2(lanes), load, store)

    return _loop("block", tiles.rows // lanes, block)


def _log2(power: int) -> int:
    return power.bit_length() - 1


def _written_out(
    piece: Piece, tiles: _Tiles, at: _At, element: Callable[[ir.Expr, ir.Expr], ir.Expr]
) -> tirx.Stmt:
    steps = _steps(tiles.read.in_tile, 1)
    first = tiles.read.digits[0].var

    def line(values: _At) -> tirx.Stmt:
        place = piece.output.at({**at, **values, first: at[first] + values[first]})
        column = _sum_of(values, steps)

        def store(row: relax.Var) -> tirx.Stmt:
            return tirx.BufferStore(piece.output.buffer, element(column, row), [place + row])

        return _loop("lane", tiles.rows, store, tirx.ForKind.VECTORIZED)

    return _over(tiles.read.in_tile, line)


def _steps(digits: Sequence[Digit], step: int) -> dict[relax.Var, int]:
    """How far the next value of each digit is, the last one's as given, if they are contiguous."""
    steps: dict[relax.Var, int] = {}
    for digit in reversed(digits):
        steps[digit.var] = step
        step *= int(digit.extent)
    return steps


def _sum_of(values: _At, steps: Mapping[relax.Var, int]) -> ir.Expr:
    return simplify(sum((v * steps[var] for var, v in values.items()), constant(0)))


def _reinterpreted(bits: ir.Expr, var: relax.Var) -> ir.Expr:
    """The element that has these bits."""
    dtype = str(var.ty.dtype)
    if dtype == str(bits.ty.dtype):
        return bits
    if dtype == "bool":
        return bits.astype("bool")
    return tirx.reinterpret(dtype, bits)
