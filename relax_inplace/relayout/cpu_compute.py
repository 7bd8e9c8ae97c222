"""Kernels that compute, on a CPU: over their input, or near the speed of a copy.

Definition
----------
The kernel's description (:mod:`.read_description`), of whole elements, becomes loops
(:mod:`.cpu_loops`). If an output may lie in the memory of an input (:mod:`.description_blocks`),
these are

- where each element is computed from the one in its place: rows, each vector read before it is
  written;
- where blocks have the same size: a parallel loop over blocks; each is copied into scratch, and the
  block of the output computed from there;
- where blocks of the output are at most half as large: the first one; then phases, one after the
  other: in phase i the blocks from 2^i to below 2^(i + 1), in parallel, as all that they lie on has
  been read;
- where they are smaller, but more than half: one after the other.

Blocks are joined up to some KB. It is right whether the two buffers are the same memory or not:
``tirx.noalias`` is false (LLVM then takes all of them to be the same, codegen_llvm.cc).

Else the output is other memory, and only what is the same in vectors as it is element by element is
taken. Nothing is computed otherwise than it was. One block is around all; in it later passes see
loops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, relax, tirx
from tvm.s_tir import SBlock, SBlockRealize

from .coverage import tile
from .cpu_loops import (
    Access,
    Loop,
    Nest,
    constant,
    integer,
    loop,
    loops_of,
    point_of,
    rows_of,
    sequence,
    simplify,
)
from .description import NUMBER, Piece, Relayout
from .description_blocks import INPLACE, MOST_SCRATCH, Blocks, Parts, find_blocks, parts_of
from .emulated_floats import can_be_vector
from .fields import bits_of
from .inlining import with_producers_inlined
from .read_description import read_relayouts
from .size import Size, divided, expression, is_at_least_zero, over

__all__ = ["schedule_cpu_compute"]

_BLOCK = 32 * 1024  # bytes of the output for which a thread is woken up
_MOST_PHASES = 40  # for 2^40 blocks

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


def schedule_cpu_compute(
    function: tirx.PrimFunc, target: tvm.target.Target
) -> tirx.PrimFunc | None:
    """The kernel as loops, if each element of it is computed from some at known places.

    Parameters
    ----------
    function : tvm.tirx.PrimFunc
        Not scheduled: as LegalizeOps or FuseTIR leave it.
    target : tvm.target.Target
        Of kind llvm.

    Returns
    -------
    tvm.tirx.PrimFunc or None
        With the attribute ``relax_inplace.inplace`` if outputs may lie in the memory of inputs:
        ``[[input, output], ...]``, indices into the parameters. An output has several where it may
        lie in the memory of any of them.
    """
    if target.kind.name != "llvm":
        return None
    kernel = with_producers_inlined(function)
    relayouts = "" if kernel is None else read_relayouts(kernel, elements=True)
    if isinstance(relayouts, str) or not all(relayout.pieces for relayout in relayouts):
        return None
    assert kernel is not None
    views = _Views(kernel.params[:], target)
    blocks = find_blocks(relayouts, MOST_SCRATCH)
    statements, pairs, is_exact = [], [], True
    for relayout in relayouts:
        own = _together(relayout, [one for one in blocks if one.output == relayout.output])
        over_input = _over_input(relayout, own[0], views) if own else None
        if over_input is not None:
            statements.append(over_input)
            pairs += [[one.input, one.output] for one in own]
            continue
        nests = [views.nest(piece, relayout.output) for piece in relayout.pieces]
        is_exact = is_exact and all(nest.is_exact for nest in nests)
        statements += [loops_of(nest, parallel=True, over_inputs=False) for nest in nests]
    if not pairs and not is_exact:
        return None
    # TVM's FuseOps may leave this kernel's result to another one, and then RewriteDataflowReshape
    # looks for a block (src/relax/analysis/tir_op_pattern_kind.cc).
    root = SBlock([], [], [], "root", views.declared(sequence(statements)))
    scheduled = tirx.PrimFunc(
        kernel.params, SBlockRealize([], True, root), kernel.ret_type, kernel.attrs
    )
    attrs: dict[str, Any] = {"tirx.is_scheduled": True}
    if pairs:
        attrs |= {INPLACE: pairs, "tirx.noalias": False}
    return scheduled.with_attr(attrs)


# -- elements --------------------------------------------------------------------------------------


class _Views:
    """The parameters as arrays of one axis, of their own dtype or another one."""

    def __init__(self, params: Sequence[relax.Var], target: tvm.target.Target) -> None:
        self._params = params
        self._has_half = _has_half(target)
        self._views: dict[tuple[int, str], relax.Var] = {}

    def of(self, param: int, dtype: str = "") -> relax.Var:
        """A view of a parameter."""
        buffer = self._params[param]
        dtype = dtype or str(buffer.ty.dtype)
        if (param, dtype) not in self._views:
            size: ir.Expr = constant(1)
            for extent in buffer.ty.shape[:]:
                size = size * extent
            name = f"{buffer.name}_{dtype}"
            view = tirx.decl_buffer((simplify(size),), dtype, name, layout=None)
            self._views[param, dtype] = view
        return self._views[param, dtype]

    def declared(self, body: tirx.Stmt) -> tirx.Stmt:
        """The statement after what declares the views."""
        used = set(tirx.analysis.undefined_vars(body))
        views = [
            tirx.DeclBuffer(view, data=self._params[param].data)
            for (param, _), view in self._views.items()
            if view in used
        ]
        return sequence([*views, body])

    def nest(self, piece: Piece, output: int) -> Nest:
        """A piece as loops over elements."""
        loops = [
            Loop(tirx.Var(f"i{at}", "int64"), expression(digit.extent))
            for at, digit in enumerate(piece.digits)
        ]
        assert piece.value is not None
        value, slots = piece.value.value, piece.value.slots
        is_exact = can_be_vector(value) and _is_exact(value)
        is_vector = is_exact and (self._has_half or not _makes_half_of_integers(value))
        written = [digit.into for digit in piece.digits]
        inputs = {
            slot: self.access(param, str(slot.ty), base, [d.read[at] for d in piece.digits], loops)
            for at, (slot, (param, base)) in enumerate(zip(slots, piece.inputs, strict=True))
        }
        into = self.access(output, str(value.ty), piece.into, written, loops)
        return Nest(loops, into, inputs, value, is_exact, is_vector)

    def access(
        self, param: int, dtype: str, base: Size, steps: Sequence[Size], loops: Sequence[Loop]
    ) -> Access:
        """Where elements of a dtype are, given in bits."""
        size = 1 if param == NUMBER else bits_of(dtype)

        def elements(bits: Size) -> ir.Expr:
            count = over(bits, size)
            assert count is not None
            return expression(count)

        strides = {
            each.var: elements(step) for each, step in zip(loops, steps, strict=True) if step != 0
        }
        buffers = (None, None)
        if param != NUMBER:
            buffers = self.of(param, dtype), self.of(param, f"uint{size}")
        return Access(*buffers, elements(base), strides)


def _is_exact(value: ir.Expr) -> bool:
    calls: list[ir.Call] = []
    tvm_ffi.structural_walk(value, (ir.Call, lambda call: calls.append(call)))
    return all(isinstance(c.op, ir.Op) and c.op.name in _EXACT_CALLS for c in calls)


def _has_half(target: tvm.target.Target) -> bool:
    """Whether the processor is not one of x86 that has to compute float16 by calls."""
    with target:
        has = tvm.target.codegen.target_has_features
        return not has("sse2") or bool(has("f16c"))


def _makes_half_of_integers(value: ir.Expr) -> bool:
    """Whether 32 bits without a sign become float16: vectors of it LLVM takes apart, and slowly."""
    casts: list[tirx.Cast] = []
    tvm_ffi.structural_walk(value, (tirx.Cast, lambda cast: casts.append(cast)))
    kinds = {(str(cast.value.ty), str(cast.ty)) for cast in casts}
    return ("uint32", "float16") in kinds


# -- over an input ---------------------------------------------------------------------------------


def _is_in_place(relayout: Relayout, blocks: Blocks) -> bool:
    """Whether each element is computed from the bytes in its place."""
    sizes = {piece.value.bits // 8 for piece in relayout.pieces if piece.value is not None}
    return {blocks.read, blocks.written} == sizes


def _together(relayout: Relayout, found: Sequence[Blocks]) -> list[Blocks]:
    """Of the ways to write one output those that one kernel can allow."""
    direct = [blocks for blocks in found if _is_in_place(relayout, blocks)]
    return direct or sorted(found, key=lambda blocks: blocks.read)[:1]


def _over_input(relayout: Relayout, blocks: Blocks, views: _Views) -> tirx.Stmt | None:
    """The loops that may write over an input; None if the order of blocks is not known."""
    if _is_in_place(relayout, blocks):
        nests = [views.nest(piece, relayout.output) for piece in relayout.pieces]
        return sequence([loops_of(nest, parallel=True, over_inputs=True) for nest in nests])
    groups: dict[Any, list[tuple[Piece, Parts]]] = {}
    for piece in relayout.pieces:
        parts = parts_of(piece, blocks.written * 8)
        if parts is None:
            return None
        outer = tuple((digit.extent, digit.into) for digit in parts.outer)
        groups.setdefault((parts.number, outer), []).append((piece, parts))
    if not _are_in_order(list(groups), relayout, blocks):
        return None
    whole = over(relayout.bits_of(relayout.output), blocks.written * 8)
    is_whole = whole is not None and is_at_least_zero(
        relayout.bits_of(blocks.input) - whole * (blocks.read * 8)
    )
    return sequence(
        [_Group(pieces, blocks, views, is_whole).over_input() for pieces in groups.values()]
    )


def _are_in_order(groups: Sequence[Any], relayout: Relayout, blocks: Blocks) -> bool:
    """Whether each block is of one group; where the order counts, all are of one, from 0 on."""
    written = blocks.written * 8
    boxes = [
        (number, tuple((extent, _exact(into, written)) for extent, into in outer))
        for number, outer in groups
    ]
    total, rest = divided(relayout.bits_of(relayout.output), written)
    if rest != 0:
        total = total + 1
    is_free = blocks.read == blocks.written or len(groups) == 1
    return is_free and isinstance(rest, int) and tile(boxes, total)


def _exact(size: Size, by: int) -> Size:
    quotient = over(size, by)
    assert quotient is not None
    return quotient


class _Group:
    """Pieces that write the same blocks: all of a block, then all of another one.

    Some of the innermost outer digits, and a part of the next, go into a block: they are joined.
    """

    def __init__(
        self, pieces: Sequence[tuple[Piece, Parts]], blocks: Blocks, views: _Views, is_whole: bool
    ) -> None:
        self._blocks = blocks
        self._views = views
        self._is_whole = is_whole
        self._pieces = pieces
        self._number = pieces[0][1].number
        outer = list(pieces[0][1].outer)
        self._chunk = 1
        room = max(min(_BLOCK // blocks.written, MOST_SCRATCH // blocks.read), 1)
        count = 1
        while outer and outer[-1].into == blocks.written * 8 * count:
            extent = outer[-1].extent
            if not isinstance(extent, int) or count * extent > room:
                self._chunk = _chunk_of(extent, room // count)
                break
            outer.pop()
            count *= extent
        self._outer = outer
        self._per_position = count  # blocks that are joined, at each position of the chunk
        tasks = [expression(digit.extent) for digit in outer]
        if outer:
            tasks[-1] = simplify(tirx.ceildiv(tasks[-1], constant(self._chunk)))
        self._tasks = [Loop(tirx.Var(f"o{at}", "int64"), e) for at, e in enumerate(tasks)]

    def over_input(self) -> tirx.Stmt:
        """All blocks, in the order in which they have to be made."""
        total: ir.Expr = constant(1)
        for task in self._tasks:
            total = total * task.extent
        total = simplify(total)
        read, written = self._blocks.read, self._blocks.written
        if read == written:
            return loop("block", total, self._in_scratch, tirx.ForKind.PARALLEL)
        if read >= 2 * written:
            return self._in_phases(total)
        return loop("block", total, self._in_scratch)

    def _in_phases(self, total: ir.Expr) -> tirx.Stmt:
        """The first one; then as many as have been computed, all of them at once; and so on.

        Where a chunk ends earlier, at the end of its digit, that is right, too: 2 * k blocks are
        not longer than twice k of them, from the first one on.
        """
        known = integer(total)
        phases = _MOST_PHASES if known is None else (known - 1).bit_length()
        first = self._in_scratch(constant(0))
        if not phases:
            return first
        phase = tirx.Var("phase", "int64")
        start = tirx.shift_left(constant(1), phase)
        extent = tirx.min(start, total - start)
        body = loop(
            "block", extent, lambda at: self._block(start + at, None), tirx.ForKind.PARALLEL
        )
        if known is None:
            body = tirx.IfThenElse(start < total, body, None)
            first = tirx.IfThenElse(total > 0, first, None)
        zero = constant(0)
        return sequence([first, tirx.For(phase, zero, constant(phases), tirx.ForKind.SERIAL, body)])

    def _in_scratch(self, number: ir.Expr) -> tirx.Stmt:
        """A block, from a copy of what is there."""
        source = self._blocks.input
        bits = bits_of(str(self._views.of(source).ty.dtype))
        count = self._chunk * self._per_position * self._blocks.read * 8 // bits
        scratch = tirx.decl_buffer((count,), f"uint{bits}", "scratch", layout=None)
        inside = SBlock([], [], [], "block", self._block(number, scratch), alloc_buffers=[scratch])
        return SBlockRealize([], True, inside)

    def _block(self, number: ir.Expr, scratch: relax.Var | None) -> tirx.Stmt:
        statements, values = point_of(self._tasks, number)
        places = [values[task.var] for task in self._tasks]
        if places:
            places[-1] = places[-1] * self._chunk
        length: ir.Expr = constant(1)
        if self._outer:
            extent = self._outer[-1].extent
            length = constant(self._chunk)
            if self._chunk > 1 and (not isinstance(extent, int) or extent % self._chunk):
                length = tirx.min(length, expression(extent) - places[-1])
        if scratch is not None:
            statements.append(self._copied(places, length, scratch))
        for piece, parts in self._pieces:
            statements.append(self._computed(piece, parts, places, length, scratch))
        return sequence(statements)

    def _copied(self, places: Sequence[ir.Expr], length: ir.Expr, scratch: relax.Var) -> tirx.Stmt:
        source = self._views.of(self._blocks.input)
        bits = bits_of(str(source.ty.dtype))
        start: ir.Expr = expression(self._number)
        for digit, place in zip(self._outer, places, strict=True):
            start = start + expression(_exact(digit.into, self._blocks.written * 8)) * place
        start = start * constant(self._blocks.read * 8 // bits)
        length = length * constant(self._per_position * self._blocks.read * 8 // bits)
        if not self._is_whole:
            length = tirx.min(length, source.ty.shape[0] - start)
        along = Loop(tirx.Var("at", "int64"), simplify(length))
        dtype = f"uint{bits}"
        there = self._views.of(self._blocks.input, dtype)
        element = tirx.Var("x", dtype)
        one = {along.var: constant(1)}
        given = {element: Access(there, there, start, one)}
        to = Access(scratch, scratch, constant(0), one)
        return rows_of(Nest([along], to, given, element, True, True), parallel=False)

    def _computed(
        self,
        piece: Piece,
        parts: Parts,
        places: Sequence[ir.Expr],
        length: ir.Expr,
        scratch: relax.Var | None,
    ) -> tirx.Stmt:
        """What a piece writes in a block."""
        count = len(self._outer)
        digits = (*parts.outer, *parts.inner)
        nest = self._views.nest(dataclasses.replace(piece, digits=digits), self._blocks.output)
        outer, loops = nest.loops[:count], nest.loops[count:]
        at = {each.var: place for each, place in zip(outer, places, strict=True)}
        if self._chunk > 1:
            loops = [Loop(outer[-1].var, length), *loops]
        inputs = {slot: access.inside(at, loops) for slot, access in nest.inputs.items()}
        if scratch is not None:
            for slot, (param, base) in zip(nest.inputs, piece.inputs, strict=True):
                if param == self._blocks.input:
                    first = base - parts.number * (self._blocks.read * 8)
                    place = expression(_exact(first, bits_of(str(slot.ty))))
                    inputs[slot] = dataclasses.replace(
                        inputs[slot], buffer=scratch, bits=scratch, base=place
                    )
        output = nest.output.inside(at, loops)
        inner = dataclasses.replace(nest, loops=loops, output=output, inputs=inputs)
        return loops_of(inner, parallel=False, over_inputs=False)


def _chunk_of(extent: Size, most: int) -> int:
    """How many positions are a block: of all, if that is near to what fits."""
    if isinstance(extent, int):
        for size in range(min(most, extent), max(most // 4, 1), -1):
            if extent % size == 0:
                return size
    return max(most, 1)
