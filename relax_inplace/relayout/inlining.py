"""A kernel of several blocks as one whose blocks read its inputs and write its outputs.

Definition
----------
FuseTIR leaves a block for each operator, and a buffer between two. Here an element of such a buffer
is computed where it is read: the buffer and its block are gone. That is done where the results are
sure to be bitwise the same, whatever the numbers are:

1. TVM's simplifier leaves the operations on elements as they are. Once they are one expression it
   could do otherwise: ``x - x`` becomes 0, which is wrong for infinity.
2. No float product of one block becomes an operand of a sum in another: LLVM makes one rounding of
   the two (``AllowFPOpFusion`` in TVM's llvm_instance.cc), and so does nvcc.
3. No bfloat16 or float8 that is computed comes to be inside an expression: TVM computes these as
   float32, and rounds where they are stored (unsupported_dtype_legalize.cc).

Indices are not elements: they are simplified as ever, and a choice by index that is always the same
is made.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

import tvm_ffi
from tvm import ir, relax, sym, tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm.s_tir.analysis import get_sblock_access_region

from .simple_indices import with_simple_indices
from .te_block import TEBlock, buffer_params, loads_in, te_blocks

__all__ = ["with_producers_inlined"]

_MOST_NODES = 4096  # of an expression; what is read in several places is computed in each
_CHOICES = {"Select", "prim.if_then_else"}
_PRODUCTS = {"Mul", "Div", "FloorDiv", "FloorMod", "Mod"}  # a quotient by 4 is a product to LLVM
_SUMS = {"Add", "Sub"}


def with_producers_inlined(function: tirx.PrimFunc) -> tirx.PrimFunc | None:
    """The kernel without intermediate buffers; itself, if it has one block.

    Parameters
    ----------
    function : tvm.tirx.PrimFunc
        Not scheduled: as LegalizeOps or FuseTIR leave it.

    Returns
    -------
    tvm.tirx.PrimFunc or None
        Each of its blocks writes another parameter, and reads only such as no block writes. None if
        it has other blocks than those of :mod:`relax_inplace.relayout.te_block`, or if it is not
        sure that all results are bitwise the same.
    """
    blocks = te_blocks(function)
    if blocks is None:
        return function if _has_one_block(function) else None
    if len(blocks) == 1:
        return function
    params = buffer_params(function)
    written: dict[relax.Var, TEBlock] = {}
    nests = []
    read: set[relax.Var] = set()
    for block in blocks:
        inlined = _inlined(block, written)
        if inlined is None or block.buffer in written or block.buffer in read:
            return None  # what is read before it is written is not what is read afterwards
        read |= {load.source for load in loads_in(inlined.value)}
        written[block.buffer] = inlined
        if block.buffer in params:
            nests.append(_with_value(inlined))
    return _with_blocks(function, nests)


def _has_one_block(function: tirx.PrimFunc) -> bool:
    blocks: list[SBlock] = []
    tvm_ffi.structural_walk(function.body, (SBlock, lambda block: blocks.append(block)))
    return sum(bool(block.iter_vars) for block in blocks) == 1


def _inlined(block: TEBlock, written: Mapping[relax.Var, TEBlock]) -> TEBlock | None:
    """The block, computing from inputs alone; None if its results could be others."""
    sources = {load.source for load in loads_in(block.value)} & written.keys()
    if not sources:
        return block
    if any(_could_round_otherwise(written[source], block) for source in sources):
        return None

    def element(load: ir.TensorLoad) -> ir.Expr:
        producer = written.get(load.source)
        if producer is None:
            return load
        made_at = producer.realize.block.body.indices[:]  # 0 along an axis of one element
        pairs = zip(made_at, load.indices[:], strict=True)
        at = {index: read_at for index, read_at in pairs if isinstance(index, relax.Var)}
        return tvm_ffi.structural_map(producer.value, (relax.Var, lambda var: at.get(var, var)))

    value = tvm_ffi.structural_map(block.value, (ir.TensorLoad, element))
    if not _is_small(value):
        return None
    analyzer = sym.Analyzer()
    for var, extent in block.box.items():
        analyzer.bind(var, ir.Range.from_min_extent(tirx.const(0, var.ty.dtype), extent))
    value = with_simple_indices(value, analyzer.simplify)
    if _operations(value) != _operations(analyzer.simplify(value)):
        return None
    return TEBlock(block.nest, block.realize, block.box, block.buffer, value)


def _could_round_otherwise(producer: TEBlock, consumer: TEBlock) -> bool:
    """Whether code generation may round the two as one expression otherwise: 2 and 3."""
    kinds = {kind for kind, _ in _operations(producer.value)}
    if "float" not in (dtype := str(producer.buffer.ty.dtype)):
        return False
    if dtype.startswith(("bfloat", "float8", "float6", "float4")):
        return not kinds <= {"TensorLoad", *_CHOICES}
    sums = {kind for kind, _ in _operations(consumer.value)}
    return _has(kinds, _PRODUCTS) and _has(sums, _SUMS)


def _has(kinds: Iterable[str], wanted: set[str]) -> bool:
    """Whether one of the kinds is wanted; a function may do anything inside."""
    return any(kind in wanted or ("." in kind and kind not in _CHOICES) for kind in kinds)


def _operations(value: ir.Expr) -> collections.Counter[tuple[str, str]]:
    """How often each kind of operation on elements, of each dtype, is in an expression."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()

    def visit(expr: ir.Expr) -> tvm_ffi.WalkResult:
        dtype = str(expr.ty)
        of_elements = "float" in dtype or loads_in(expr)
        if not of_elements or isinstance(expr, (relax.Var, tirx.FloatImm)):
            return tvm_ffi.WalkResult.SKIP  # of indices alone
        kind = expr.op.name if isinstance(expr, ir.Call) else type(expr).__name__
        found[kind, dtype] += 1
        is_load = isinstance(expr, ir.TensorLoad)
        return tvm_ffi.WalkResult.SKIP if is_load else tvm_ffi.WalkResult.ADVANCE

    tvm_ffi.structural_walk(value, (ir.Expr, visit), order="pre")
    return found


def _is_small(value: ir.Expr) -> bool:
    nodes: list[ir.Expr] = []
    tvm_ffi.structural_walk(value, (ir.Expr, lambda expr: nodes.append(expr)))
    return len(nodes) <= _MOST_NODES and not any(isinstance(node, tirx.Let) for node in nodes)


# -- the kernel of what is left --------------------------------------------------------------------


def _with_value(block: TEBlock) -> tirx.Stmt:
    """The nest of a block that computes something else."""
    old = block.realize.block
    body = tirx.BufferStore(block.buffer, block.value, old.body.indices)
    new = SBlock(old.iter_vars, [], [], old.name_hint, body, annotations=old.annotations)
    buffers = {load.source for load in loads_in(block.value)} | {block.buffer}
    reads, writes, _ = get_sblock_access_region(new, {buffer: buffer for buffer in buffers})
    new = SBlock(old.iter_vars, reads, writes, old.name_hint, body, annotations=old.annotations)
    realize = SBlockRealize(block.realize.iter_values, block.realize.predicate, new)
    return tvm_ffi.structural_map(block.nest, (SBlockRealize, lambda _: realize))


def _with_blocks(function: tirx.PrimFunc, nests: Sequence[tirx.Stmt]) -> tirx.PrimFunc:
    body = tirx.SeqStmt(list(nests)) if len(nests) > 1 else nests[0]
    root = SBlockRealize([], True, SBlock([], [], [], "root", body))
    return tirx.PrimFunc(function.params, root, function.ret_type, function.attrs)
