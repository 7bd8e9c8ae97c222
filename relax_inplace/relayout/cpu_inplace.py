"""Kernels that write over their input, on CPUs.

Definition
----------
For an output that may lie in the storage of an input, by
:mod:`relax_inplace.relayout.inplace_kernel`, the kernel becomes

- where each element is computed from the one in its place: vectors, each read before it is written;
- where blocks have the same size: a parallel loop over blocks; each is copied into scratch, and the
  block of the output computed from there;
- where blocks of the output are at most half as large: the first one; then phases, one after the
  other: in phase i the blocks from 2^i to below 2^(i + 1), in parallel, as all that they lie on has
  been read;
- where they are smaller, but more than half: one after the other.

It is right whether the two buffers are the same memory or not: ``tirx.noalias`` is false (LLVM then
takes all of them to be the same, codegen_llvm.cc). The order of elements within a block is that of
the output. :mod:`.affine_loops` makes its loops.

Both buffers are seen as arrays of one axis. bfloat16 and float8 are bits in scratch: TVM keeps
float32 in a buffer of its own where they are computed (unsupported_dtype_legalize.cc).
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import tvm_ffi
from tvm import ir, relax, sym, tirx
from tvm.s_tir import SBlock, SBlockRealize

from .affine_loops import affine_loops
from .box_proof import analyzer_of
from .inlining import with_producers_inlined
from .inplace_kernel import (
    INPLACE,
    MOST_SCRATCH,
    InplacePair,
    blocks_along,
    find_inplace_pairs,
    flat_index,
    is_same_position,
)
from .te_block import TEBlock, loads_in, te_blocks

__all__ = ["schedule_cpu_inplace"]

_CHUNK = 64 * 1024  # bytes of the output for which a thread is woken up
_LEAST_BLOCK = 8 * 1024  # bytes, where blocks can be joined
_MOST_PHASES = {"int32": 30, "int64": 40}  # for 2^30 or 2^40 blocks


def schedule_cpu_inplace(function: tirx.PrimFunc, target: Any) -> tirx.PrimFunc | None:
    """The kernel, scheduled, so that outputs may lie in the storage of inputs.

    Parameters
    ----------
    function : tvm.tirx.PrimFunc
        Not scheduled.
    target : tvm.target.Target
        A CPU.

    Returns
    -------
    tvm.tirx.PrimFunc or None
        With the attribute ``relax_inplace.inplace``: ``[[input, output], ...]``, indices into the
        parameters. An output has several where it may lie in the storage of any of them. None if
        no output may lie in the storage of an input, or if the target is not LLVM's.
    """
    if target.kind.name != "llvm":
        return None
    inlined = with_producers_inlined(function)
    pairs = "has intermediate buffers" if inlined is None else find_inplace_pairs(inlined)
    if isinstance(pairs, str):
        return None
    blocks = te_blocks(inlined)
    assert inlined is not None and blocks is not None
    views = _Views()
    chosen, nests = [], []
    for block in blocks:
        own = [pair for pair in pairs if inlined.params[pair.output].same_as(block.buffer)]
        own = _together(own)
        pair = own[0] if own else None
        nest = _nest(block, pair, inlined.params[pair.input] if pair else None, views)
        if nest is None:
            return None
        nests.append(nest)
        chosen += [[pair.input, pair.output] for pair in own]
    root = SBlock([], [], [], "root", tirx.SeqStmt([*views.declared(), *nests]))
    body = SBlockRealize([], True, root)
    scheduled = tirx.PrimFunc(inlined.params, body, inlined.ret_type, inlined.attrs)
    return scheduled.with_attr({INPLACE: chosen, "tirx.noalias": False, "tirx.is_scheduled": True})


def _together(pairs: Sequence[InplacePair]) -> list[InplacePair]:
    """Of the ways to write one output those that one kernel can allow."""
    direct = [p for p in pairs if p.same_position and p.bytes_read == p.bytes_written]
    return direct or list(pairs[:1])


class _Views:
    """The buffers of a kernel as arrays of one axis."""

    def __init__(self) -> None:
        self._views: dict[relax.Var, relax.Var] = {}

    def of(self, buffer: relax.Var) -> relax.Var:
        """The array of a buffer's elements."""
        if buffer not in self._views:
            size = _product(buffer.ty.shape[:])
            data = tirx.buffer_data(buffer)
            self._views[buffer] = tirx.decl_buffer(
                (size,), str(buffer.ty.dtype), f"{buffer.name}_flat", data=data, layout=None
            )
        return self._views[buffer]

    def declared(self) -> list[tirx.Stmt]:
        """The statements that declare them."""
        return [
            tirx.DeclBuffer(view, data=tirx.buffer_data(buffer))
            for buffer, view in self._views.items()
        ]


def _product(sizes: Sequence[ir.Expr]) -> ir.Expr:
    if not sizes:
        return tirx.const(1, "int64")
    return sym.Analyzer().simplify(functools.reduce(operator.mul, sizes))


def _nest(
    block: TEBlock, pair: InplacePair | None, source: relax.Var | None, views: _Views
) -> tirx.Stmt | None:
    """The loops that compute an output."""
    if len(dtypes := {str(var.ty.dtype) for var in block.box}) != 1 or dtypes - _MOST_PHASES.keys():
        return None
    plain = pair is None or pair.same_position
    make = _flat_blocks(block, views) if plain and _is_flat(block) else None
    blocks = make or _boxes(block, pair, source, views)
    if blocks is None:
        return None
    if pair is None or pair.bytes_read == pair.bytes_written:
        return _seq(blocks.in_parallel(), blocks.left)
    if pair.bytes_read >= 2 * pair.bytes_written:
        return _seq(blocks.in_phases(), blocks.left)
    return _seq(blocks.in_turn(), blocks.left)


def _seq(*statements: tirx.Stmt | None) -> tirx.Stmt:
    found = [statement for statement in statements if statement is not None]
    return found[0] if len(found) == 1 else tirx.SeqStmt(found)


# -- the order of blocks ---------------------------------------------------------------------------


@dataclasses.dataclass
class _Blocks:
    """How the blocks of an output are computed.

    Attributes
    ----------
    number : tvm.ir.Expr
        Of blocks.
    of : callable
        The statement for a block of a number; the flag is whether to read its input first.
    reads_first : bool
        Whether that is needed where a block lies on its own input.
    left : tvm.tirx.Stmt, optional
        For elements behind all blocks.
    """

    number: ir.Expr
    of: Callable[[ir.Expr, bool], tirx.Stmt]
    reads_first: bool
    left: tirx.Stmt | None = None

    def in_parallel(self) -> tirx.Stmt | None:
        """All at once."""
        return self._loop(tirx.ForKind.PARALLEL)

    def in_turn(self) -> tirx.Stmt | None:
        """One after the other, the first one first."""
        return self._loop(tirx.ForKind.SERIAL)

    def in_phases(self) -> tirx.Stmt | None:
        """The first one; then as many as have been computed, all of them at once; and so on."""
        if _is_number(self.number, 0):
            return None
        dtype = self.number.ty.dtype
        zero, one = tirx.const(0, dtype), tirx.const(1, dtype)
        first = self.of(zero, self.reads_first)
        known = isinstance(self.number, tirx.IntImm)
        phases = (int(self.number) - 1).bit_length() if known else _MOST_PHASES[str(dtype)]
        if not phases:
            return first
        phase, index = tirx.Var("phase", dtype), tirx.Var("block", dtype)
        start = tirx.shift_left(one, phase)
        extent = tirx.min(start, self.number - start)
        body = self.of(start + index, False)
        body = tirx.For(index, zero, extent, tirx.ForKind.PARALLEL, body)
        if not known:
            body = tirx.IfThenElse(start < self.number, body, None)
            first = tirx.IfThenElse(zero < self.number, first, None)
        loop = tirx.For(phase, zero, tirx.const(phases, dtype), tirx.ForKind.SERIAL, body)
        return tirx.SeqStmt([first, loop])

    def _loop(self, kind: tirx.ForKind) -> tirx.Stmt | None:
        if _is_number(self.number, 0):
            return None
        index = tirx.Var("block", self.number.ty.dtype)
        body = self.of(index, self.reads_first)
        return tirx.For(index, tirx.const(0, index.ty.dtype), self.number, kind, body)


def _is_number(expr: ir.Expr, number: int) -> bool:
    return isinstance(expr, tirx.IntImm) and int(expr) == number


# -- one block -------------------------------------------------------------------------------------


def _is_flat(block: TEBlock) -> bool:
    """Whether each element is computed from those in its place, and from nothing else."""
    loads = loads_in(block.value)
    if not all(is_same_position(block, load) for load in loads):
        return False
    zero = {var: tirx.const(0, var.ty.dtype) for var in block.box}
    without = _with_loads(block.value, lambda load: _with(load, zero))
    return not any(var in block.box for var in tirx.analysis.undefined_vars(without))


def _flat_blocks(block: TEBlock, views: _Views) -> _Blocks:
    """Blocks of one size, whatever the axes are."""
    size = _product(block.buffer.ty.shape[:])
    dtype = size.ty.dtype
    chunk = tirx.const(_CHUNK // _bytes_of_element(block.buffer), dtype)
    number = sym.Analyzer().simplify(tirx.floordiv(size, chunk))

    def part(start: ir.Expr, extent: ir.Expr) -> tirx.Stmt:
        at = tirx.Var("at", dtype)
        place = start + at
        value = _with_loads(
            block.value, lambda load: tirx.BufferLoad(views.of(load.source), [place])
        )
        store = tirx.BufferStore(views.of(block.buffer), value, [place])
        return affine_loops([(at, extent)], store, sym.Analyzer())

    left = sym.Analyzer().simplify(size - number * chunk)
    return _Blocks(
        number,
        lambda index, _: part(index * chunk, chunk),
        False,
        None if _is_number(left, 0) else part(number * chunk, left),
    )


def _boxes(
    block: TEBlock, pair: InplacePair | None, own: relax.Var | None, views: _Views
) -> _Blocks | None:
    """Blocks along the axes of the output."""
    chosen = _axis_and_factor(block, pair)
    if chosen is None:
        return None
    axis, factor = chosen
    shape, indices = block.buffer.ty.shape[:], block.realize.block.body.indices[:]
    dtype = shape[0].ty.dtype
    inner = [tirx.const(factor, dtype), *shape[axis + 1 :]]
    written = _product(inner)
    if pair is not None and not pair.same_position and not isinstance(written, tirx.IntImm):
        return None  # how many elements of the input a block is made from is not known
    read = written if pair is None else _scaled(written, pair)
    analyzer = sym.Analyzer()
    outer = [*shape[:axis], analyzer.simplify(tirx.floordiv(shape[axis], factor))]
    reads_first = pair is not None and not pair.same_position

    def compute(number: ir.Expr, first: bool) -> tirx.Stmt:
        places = [tirx.Var(f"o{i}", dtype) for i in range(len(outer))]
        box = [tirx.Var(f"i{i}", dtype) for i in range(len(inner))]
        analyzer = analyzer_of(dict(zip([*places, *box], [*outer, *inner], strict=True)))
        at = [*places[:-1], places[-1] * factor + box[0], *box[1:]]
        values = {i: a for i, a in zip(indices, at, strict=True) if isinstance(i, relax.Var)}
        here, whole = flat_index(outer, places), tirx.Var("here", dtype)
        scratch = _scratch(own, read) if first and own is not None else None

        def element(load: ir.TensorLoad) -> ir.Expr:
            load = _with(load, values)
            if own is None or not load.source.same_as(own):
                return load
            flat = flat_index(own.ty.shape[:], load.indices[:])
            place = analyzer.simplify(flat - here * read)
            if scratch is None:
                return tirx.BufferLoad(views.of(own), [whole * read + place])
            return _as(str(own.ty.dtype), tirx.BufferLoad(scratch, [place]))

        value = _with(_with_loads(block.value, element), values)
        place = whole * written + flat_index(inner, box)
        store = tirx.BufferStore(views.of(block.buffer), value, [place])
        free = first or not (pair is not None and pair.same_position)
        body = affine_loops(list(zip(box, inner, strict=True)), store, analyzer, in_order=not free)
        if scratch is not None and own is not None:
            x = tirx.Var("at", dtype)
            taken = tirx.BufferLoad(views.of(own), [whole * read + x])
            copy = tirx.BufferStore(scratch, _as(str(scratch.ty.dtype), taken), [x])
            body = tirx.SeqStmt([affine_loops([(x, read)], copy, analyzer), body])
            inside = SBlock([], [], [], "block", body, alloc_buffers=[scratch])
            body = SBlockRealize([], True, inside)
        numbers: dict[relax.Var, ir.Expr] = {whole: number}
        left = number
        for var, extent in zip(reversed(places[1:]), reversed(outer[1:]), strict=True):
            numbers[var] = tirx.floormod(left, extent)
            left = tirx.floordiv(left, extent)
        numbers[places[0]] = left
        return _with(body, numbers)

    return _Blocks(_product(outer), compute, reads_first)


def _axis_and_factor(block: TEBlock, pair: InplacePair | None) -> tuple[int, int] | None:
    """Along which axis, and how many positions of it, are a block that is worth a call."""
    size = _bytes_of_element(block.buffer)
    least = 1 if pair is None else pair.written.elements
    most = MOST_SCRATCH // size
    if pair is not None:
        most = most * pair.bytes_written // pair.bytes_read
    fitting = [b for b in blocks_along(block.buffer, most) if b.elements % least == 0]
    large = [b for b in fitting if b.elements * size >= _LEAST_BLOCK]
    shape = block.buffer.ty.shape[:]
    if not large and len(shape) > 1 and not isinstance(shape[-1], tirx.IntImm):
        return (len(shape) - 2, 1) if least == 1 else None
    if not fitting or not isinstance(shape[-1], tirx.IntImm):
        return None
    best = large[0] if large else fitting[-1]
    return best.axis, best.factor


def _scaled(written: ir.Expr, pair: InplacePair) -> ir.Expr:
    """How many elements of the input so many of the output are computed from."""
    if pair.same_position:
        return written
    return tirx.const(int(written) // pair.written.elements * pair.read.elements, written.ty.dtype)


def _scratch(buffer: relax.Var, size: ir.Expr) -> relax.Var:
    dtype = str(buffer.ty.dtype)
    if dtype.startswith(("bfloat", "float8", "float6", "float4")):
        dtype = f"uint{8 * _bytes_of_element(buffer)}"
    return tirx.decl_buffer((size,), dtype, "scratch", layout=None)


def _as(dtype: str, value: ir.Expr) -> ir.Expr:
    """The same bits."""
    return value if str(value.ty) == dtype else tirx.reinterpret(dtype, value)


def _bytes_of_element(buffer: relax.Var) -> int:
    return tvm_ffi.dtype(str(buffer.ty.dtype)).itemsize


def _with(part: Any, values: dict[relax.Var, ir.Expr]) -> Any:
    return tvm_ffi.structural_map(part, (relax.Var, lambda var: values.get(var, var)))


def _with_loads(value: ir.Expr, element: Callable[[ir.TensorLoad], ir.Expr]) -> ir.Expr:
    return tvm_ffi.structural_map(value, (ir.TensorLoad, element))
