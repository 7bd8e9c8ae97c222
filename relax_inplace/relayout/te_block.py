"""The blocks of a kernel, as tensor expressions make them.

Definition
----------
A *TE block* is a perfect nest of serial loops around one block that computes, for each ``i`` of a
box from 0 on, one element of a buffer, the one at ``i``, from elements of others::

    for i in box:
        B[i] = value(i)

So it writes every element of ``B`` once, in any order. A kernel that ``te.create_prim_func`` has
made, of computations without reductions, is a sequence of them; after FuseTIR it still is.
"""

from __future__ import annotations

import dataclasses

import tvm_ffi
from tvm import ir, relax, sym, tirx
from tvm.s_tir import SBlockRealize
from tvm.tirx.buffer import BufferType

__all__ = ["TEBlock", "buffer_params", "loads_in", "te_blocks"]


@dataclasses.dataclass
class TEBlock:
    """One computation: see the definition.

    Attributes
    ----------
    nest : tvm.tirx.Stmt
        The loops, and the block.
    realize : tvm.s_tir.SBlockRealize
        The block in them.
    box : dict
        The extent of each index, in the order of the buffer's axes.
    buffer : relax.Var
        What is written.
    value : tvm.ir.Expr
        Of the element at the indices.
    """

    nest: tirx.Stmt
    realize: SBlockRealize
    box: dict[relax.Var, ir.Expr]
    buffer: relax.Var
    value: ir.Expr


def buffer_params(function: tirx.PrimFunc) -> list[relax.Var]:
    """The tensors among its parameters."""
    return [param for param in function.params[:] if isinstance(param.ty, BufferType)]


def loads_in(expr: ir.Expr) -> list[ir.TensorLoad]:
    """The elements that an expression reads, also for its indices."""
    loads: list[ir.TensorLoad] = []
    tvm_ffi.structural_walk(expr, (ir.TensorLoad, lambda load: loads.append(load)))
    return loads


def te_blocks(function: tirx.PrimFunc) -> list[TEBlock] | None:
    """The TE blocks of a kernel, in order; None if it has anything else, or is scheduled."""
    body = function.body
    if isinstance(body, SBlockRealize) and not body.block.iter_vars:
        if body.block.match_buffers or body.block.init is not None:
            return None
        body = body.block.body
    nests = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    blocks = [_te_block(nest) for nest in nests]
    found = [block for block in blocks if block is not None]
    return found if len(found) == len(blocks) else None


def _te_block(nest: tirx.Stmt) -> TEBlock | None:
    loops: dict[relax.Var, ir.Expr] = {}
    body = nest
    while isinstance(body, tirx.For):
        plain = body.kind == tirx.ForKind.SERIAL and body.step is None and not body.annotations
        if not plain or not _is_number(body.min, 0):
            return None
        loops[body.loop_var] = body.extent
        body = body.body
    if not isinstance(body, SBlockRealize) or not _is_number(body.predicate, 1):
        return None
    block = body.block
    if block.init is not None or block.alloc_buffers or block.match_buffers:
        return None
    box = {}
    for index, value in zip(block.iter_vars[:], body.iter_values[:], strict=True):
        extent = loops.pop(value, None) if isinstance(value, relax.Var) else None
        if extent is None or index.iter_type != tirx.IterVar.DataPar:
            return None
        same = tvm_ffi.structural_equal(index.dom.extent, extent)
        if not _is_number(index.dom.min, 0) or not same:
            return None
        box[index.var] = extent
    store = block.body
    if loops or not isinstance(store, tirx.BufferStore):
        return None
    if any(load.source.same_as(store.buffer) for load in loads_in(store.value)):
        return None
    return _covering(TEBlock(nest, body, box, store.buffer, store.value), store)


def _covering(block: TEBlock, store: tirx.BufferStore) -> TEBlock | None:
    """The block, its box in the order of the axes, if it writes each element once."""
    analyzer = sym.Analyzer()
    indices = store.indices[:]
    ordered: dict[relax.Var, ir.Expr] = {}
    for index, size in zip(indices, store.buffer.ty.shape[:], strict=True):
        if isinstance(index, relax.Var) and index in block.box:
            extent = block.box[index]
            if index in ordered or not analyzer.can_prove_equal(extent, size):
                return None
            ordered[index] = extent
        elif not (_is_number(index, 0) and _is_number(size, 1)):
            return None
    return dataclasses.replace(block, box=ordered) if len(ordered) == len(block.box) else None


def _is_number(expr: ir.Expr, number: int) -> bool:
    return isinstance(expr, tirx.IntImm) and int(expr) == number
