"""Kernels that move whole bytes on a CPU: a description that the runtime carries out.

Definition
----------
A kernel whose description (:mod:`.read_description`) moves whole bytes becomes calls of
``relax_inplace.relayout`` (cpp/relayout.cc), one for each piece. It looks at the processor and its
cores itself: how fast a move is depends neither on the target nor on TVM's threads. Sizes that are
symbolic are computed where it is called.

One piece that is a bijection may have its result in its input's memory, whatever its size: the
runtime then moves within it, by bounded scratch.

An input that is moved in runs of consecutive bytes, each byte once at most, is one *of pages*:
where nobody reads it any more, the runtime may move its pages instead of copying them
(cpp/owned_pages.h).
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import ir, relax, tirx
from tvm.s_tir import SBlock, SBlockRealize

from .byte_moves import ByteMove, byte_moves, is_bijection, is_parted
from .description_blocks import INPLACE
from .inlining import with_producers_inlined
from .read_description import read_relayouts
from .size import Size, expression
from .te_block import buffer_params

__all__ = ["OF_PAGES", "schedule_host_move"]

OF_PAGES = "relax_inplace.of_pages"  # of a kernel: the inputs whose pages it may move

_MOVER = "relax_inplace.relayout"


def schedule_host_move(function: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc | None:
    """The kernel as calls of the runtime, if it only moves whole bytes.

    Parameters
    ----------
    function : tvm.tirx.PrimFunc
        Not scheduled: as LegalizeOps or FuseTIR leave it.
    target : tvm.target.Target
        Of kind llvm.

    Returns
    -------
    tvm.tirx.PrimFunc or None
        With the attribute ``relax_inplace.inplace`` if its result may lie in its input's memory;
        with ``relax_inplace.of_pages`` if it has inputs of pages.
    """
    if target.kind.name != "llvm":
        return None
    kernel = with_producers_inlined(function)
    relayouts = "has intermediate buffers" if kernel is None else read_relayouts(kernel)
    if isinstance(relayouts, str):
        return None
    assert kernel is not None
    params = kernel.params[:]
    outputs = {relayout.output for relayout in relayouts}
    calls, pairs = [], []
    moves_of: dict[int, list[ByteMove]] = {}
    for relayout in relayouts:
        moves = byte_moves(relayout)
        if moves is None or any(move.source is None or move.pattern for move in moves):
            return None
        calls += [_call(move, params, relayout.output) for move in moves]
        for move in moves:
            assert move.source is not None
            moves_of.setdefault(move.source, []).append(move)
        if len(moves) == 1 and is_bijection(relayout):
            pairs.append([moves[0].source, relayout.output])
    if len(relayouts) > 1:
        pairs = []  # an input that several outputs are made of is not written over
    buffers = buffer_params(kernel)
    reads = [_whole(buffer) for buffer in buffers if params.index(buffer) not in outputs]
    writes = [_whole(params[output]) for output in sorted(outputs)]
    root = SBlock([], reads, writes, "root", tirx.SeqStmt(calls) if len(calls) > 1 else calls[0])
    scheduled = tirx.PrimFunc(
        kernel.params, SBlockRealize([], True, root), kernel.ret_type, kernel.attrs
    )
    attrs: dict[str, Any] = {"tirx.is_scheduled": True}
    if pairs:
        attrs |= {INPLACE: pairs, "tirx.noalias": False}
    of_pages = [
        source
        for source, moves in moves_of.items()
        if not any(move.digits for move in moves)
        and (len(moves) == 1 or is_parted(relayouts, source))
    ]
    if of_pages and not pairs:
        attrs[OF_PAGES] = of_pages
    return scheduled.with_attr(attrs)


def _call(move: ByteMove, params: list[relax.Var], output: int) -> tirx.Stmt:
    numbers: list[Size] = [move.width, move.read, move.into, len(move.digits)]
    for digit in move.digits:
        numbers += [digit.extent, digit.into, digit.read]
    assert move.source is not None
    given = [params[move.source], params[output], *map(_number, numbers)]
    return tirx.Evaluate(tirx.call_packed(_MOVER, *given))


def _number(size: Size) -> ir.Expr:
    return tirx.const(size, "int64") if isinstance(size, int) else expression(size)


def _whole(buffer: relax.Var) -> ir.TensorRegion:
    sizes = buffer.ty.shape[:]
    return tirx.BufferRegion(buffer, [ir.Range(tirx.const(0, s.ty.dtype), s) for s in sizes])
