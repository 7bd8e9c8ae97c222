"""What of its inputs a kernel needs for a slice of its result.

Definition
----------
A kernel is blocks, one after another; of each a description is read
(:mod:`.read_description`), of *all that it reads*: the element at ``i`` reads

- in a reduction, what each step ``k`` of it reads: an output with further axes, ``[i, k]``;
- where a number that is read is an index, any element along that axis: one more such axis.

A kernel is sliced along an axis of its result if each of its blocks is
(:mod:`.description_slices`), from the last to the first, along the one axis along which later ones
read what it computes. What is computed between two blocks may not be needed as a whole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import tvm_ffi
from tvm import ir, relax, tirx
from tvm.s_tir import SBlock, SBlockRealize

from .description_slices import sliced_axes
from .read_description import read_relayouts
from .size import Polynomial, Size, Unknown
from .te_block import loads_in

__all__ = ["operand_axes"]


@functools.lru_cache(maxsize=1024)  # a model has the same kernels for every layer
def operand_axes(kernel: tirx.PrimFunc, axis: int) -> dict[int, int | None] | None:
    """For each parameter that is read the axis sliced with the result's, None where it is whole.

    None if the kernel is not sliced along the axis.

    Parameters
    ----------
    kernel : tvm.tirx.PrimFunc
        Its last parameter is its result. Sizes are ints, or variables.
    axis : int
        Of the result.
    """
    params = kernel.params[:]
    axes: dict[relax.Var, int | None] = {params[-1]: axis}
    for nest in reversed(_nests(kernel.body)):
        block = _block_in(nest)
        if block is None or not isinstance(block.body, tirx.BufferStore):
            return None
        along = axes.get(block.body.buffer)
        if along is None:
            return None  # no later block reads it, or one does as a whole
        for part in _reads_of(nest, block):
            read = part and _axes_of(part, along)
            if read is None:
                return None
            if any(axes.setdefault(source, found) != found for source, found in read.items()):
                return None
    return {at: axes[param] for at, param in enumerate(params[:-1]) if param in axes}


def _nests(body: tirx.Stmt) -> list[tirx.Stmt]:
    if isinstance(body, SBlockRealize) and not body.block.iter_vars:
        body = body.block.body
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def _block_in(nest: tirx.Stmt) -> SBlock | None:
    while isinstance(nest, tirx.For):
        nest = nest.body
    return nest.block if isinstance(nest, SBlockRealize) else None


def _axes_of(kernel: tirx.PrimFunc, axis: int) -> dict[relax.Var, int | None] | None:
    """The axis along which each buffer is read for a slice of all that a block reads."""
    relayouts = read_relayouts(kernel)
    if isinstance(relayouts, str):
        return None
    (relayout,) = relayouts
    params = kernel.params[:]
    shapes = {at: [_size(size) for size in param.ty.shape[:]] for at, param in enumerate(params)}
    axes = sliced_axes(relayout, shapes, axis)
    return axes and {params[at]: found for at, found in axes.items()}


def _size(size: ir.Expr) -> Size:
    if isinstance(size, tirx.IntImm):
        return int(size)
    return Polynomial.of(Unknown("size", (size,)))


# -- all that a block reads ------------------------------------------------------------------------


def _reads_of(nest: tirx.Stmt, block: SBlock) -> Iterator[tirx.PrimFunc | None]:
    """Kernels that read what a block reads, at its place; None if that is not known."""
    for part in (block.init, block.body):
        if part is not None:
            yield _reads(nest, block, part)


def _reads(nest: tirx.Stmt, block: SBlock, store: tirx.Stmt) -> tirx.PrimFunc | None:
    if not isinstance(store, tirx.BufferStore) or not store.buffer.same_as(block.body.buffer):
        return None
    steps = [index for index in block.iter_vars[:] if index.iter_type != tirx.IterVar.DataPar]
    loads = loads_in(store.value)
    before = [load for load in loads if load.source.same_as(store.buffer)]
    if before and not (steps and store.same_as(block.body) and _are_at(before, store.indices[:])):
        return None
    anywhere: list[tuple[relax.Var, ir.Expr]] = []  # an index that others say, and its axis' size

    def element(load: ir.TensorLoad) -> ir.Expr:
        if load.source.same_as(store.buffer):
            return tirx.const(0, load.ty.dtype)  # what the steps before have made
        indices = list(load.indices[:])
        for at, index in enumerate(indices):
            if loads_in(index):
                indices[at] = tirx.Var("any", index.ty.dtype)
                anywhere.append((indices[at], load.source.ty.shape[at]))
        return tirx.BufferLoad(load.source, indices)

    value = tvm_ffi.structural_map(store.value, (ir.TensorLoad, element), order="pre")
    inner = [element(one) for load in loads for index in load.indices for one in loads_in(index)]
    if inner:
        value = sum((load.astype("int32") for load in inner), value.astype("int32"))
    extents = [index.dom.extent for index in steps] + [extent for _, extent in anywhere]
    shape = [*store.buffer.ty.shape[:], *extents]
    out = tirx.decl_buffer(shape, str(value.ty), "reads", layout=None)
    at = [*store.indices[:], *(index.var for index in steps), *(var for var, _ in anywhere)]
    body = tirx.BufferStore(out, value, at)
    for var, extent in anywhere:
        body = tirx.For(var, tirx.const(0, var.ty.dtype), extent, tirx.ForKind.SERIAL, body)
    indices = [tirx.IterVar(i.dom, i.var, tirx.IterVar.DataPar) for i in block.iter_vars[:]]
    own = SBlock(indices, [], [], block.name_hint, body)
    whole = tvm_ffi.structural_map(
        nest, (SBlockRealize, lambda old: SBlockRealize(old.iter_values, old.predicate, own))
    )
    sources = list(dict.fromkeys(load.source for load in loads_in(value)))
    return tirx.PrimFunc([*sources, out], whole)


def _are_at(loads: Iterable[ir.TensorLoad], indices: Sequence[ir.Expr]) -> bool:
    return all(
        tvm_ffi.structural_equal(one, other)
        for load in loads
        for one, other in zip(load.indices[:], indices, strict=True)
    )
