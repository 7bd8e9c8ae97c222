"""Kernels that move bits on a CPU: a description that the runtime carries out.

Definition
----------
A kernel whose description (:mod:`.read_description`) moves bits in runs of bytes
(:mod:`.moves`) becomes calls of ``relax_inplace.relayout`` (cpp/relayout.cc), one for each
input. It looks at the processor and its cores itself: how fast a move is depends neither on the
target nor on TVM's threads. Sizes that are symbolic are computed where it is called.

A bijection of one input may have its result in that memory, whatever its size: the runtime then
moves within it, by bounded scratch.

An input that is moved in runs of consecutive bytes, each byte once at most, is one *of pages*:
where nobody reads it any more, the runtime may move its pages instead of copying them
(cpp/pages.h).

An input that one call alone reads is *moved once*: its bytes may be in a file until then
(cpp/file_range.h).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import tvm
from tvm import ir, relax, tirx
from tvm.s_tir import SBlock, SBlockRealize

from .description_blocks import INPLACE
from .inlining import with_producers_inlined
from .moves import Call, calls_of, is_bijection, is_nested, is_of_pages
from .read_description import read_relayouts
from .size import Size, expression
from .te_block import buffer_params

__all__ = ["MOVED_ONCE", "OF_PAGES", "schedule_host_move"]

MOVED_ONCE = "relax_inplace.moved_once"  # of a kernel: the inputs that one call alone reads
OF_PAGES = "relax_inplace.of_pages"  # of a kernel: the inputs whose pages it may move

_MOVER = "relax_inplace.relayout"


def schedule_host_move(function: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc | None:
    """The kernel as calls of the runtime, if it only moves bits, in runs of bytes.

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
        with ``relax_inplace.of_pages`` and ``relax_inplace.moved_once`` if it has such inputs.
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
    calls, pairs, read = [], [], list[int]()
    for relayout in relayouts:
        found = calls_of(relayout)
        if found is None:
            return None
        calls += [_call(call, params, relayout.output) for call in found]
        read += [call.source for call in found if call.source is not None]
        if is_bijection(relayout) and (len(relayout.pieces) == 1 or is_nested(relayout)):
            pairs.append([found[0].source, relayout.output])
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
    if moved_once := [one for one, times in sorted(Counter(read).items()) if times == 1]:
        attrs[MOVED_ONCE] = moved_once
    if pairs:
        attrs |= {INPLACE: pairs, "tirx.noalias": False}
    of_pages = sorted({one for r in relayouts for one in r.inputs if is_of_pages(relayouts, one)})
    if of_pages and not pairs:
        attrs[OF_PAGES] = of_pages
    return scheduled.with_attr(attrs)


def _call(call: Call, params: list[relax.Var], output: int) -> tirx.Stmt:
    source = output if call.source is None else call.source
    given = [params[source], params[output], *map(_number, call.numbers)]
    return tirx.Evaluate(tirx.call_packed(_MOVER, *given))


def _number(size: Size) -> ir.Expr:
    return tirx.const(size, "int64") if isinstance(size, int) else expression(size)


def _whole(buffer: relax.Var) -> ir.TensorRegion:
    sizes = buffer.ty.shape[:]
    return tirx.BufferRegion(buffer, [ir.Range(tirx.const(0, s.ty.dtype), s) for s in sizes])
