"""Which kernels may write over their input: proved from what they access.

Definition
----------
A kernel of one TE block (:mod:`.te_block`) computes the elements of ``B`` from those of ``A`` and
of other buffers, all of them row-major. Of ``A``'s elements in their order, let ``q`` be one that
element ``p`` of ``B`` is computed from. ``B`` may lie in the storage of ``A``, from its first byte,
if there are two numbers of elements, ``s`` and ``r``, such that

1. ``p // s = q // r`` for all ``p`` and ``q``: *block* t of ``B`` is computed from block t of
   ``A``;
2. s elements of ``B`` have no more bytes than r of ``A``: the block lies in front of the end of
   the one that it is computed from;
3. a block of ``A`` fits into scratch memory, or ``s = r = 1``;
4. all of ``B`` has no more bytes than ``A``: not each element needs to be computed from ``A``.

Then a block that is read before it is written reads what ``A`` held, if no block further on has
been written. Where the blocks have as many bytes, they are written in any order. Where those of
``B`` have fewer, block t is written where blocks up to t were: these have to be read by then. And
where ``s = r = 1``, an element is computed from the one in its place, and there is no scratch.

``s`` is the smallest that is found: d positions along an axis of ``B``, and all there is along the
axes after it; ``r`` likewise. Other buffers may be read anywhere: they are other memory. An input
that several outputs are computed from is not written over: the second needs what was there.

The equality is proved by TVM's analyzer for all sizes from 0 on; a choice by index is a condition
under which its side is read. What is not proved is not in place.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import random
from collections.abc import Iterator, Sequence

import tvm_ffi
from tvm import ir, relax, sym, tirx

from .box_proof import equal, holds_everywhere
from .description_blocks import MOST_SCRATCH
from .te_block import TEBlock, buffer_params, loads_in, te_blocks

__all__ = [
    "Block",
    "InplacePair",
    "blocks_along",
    "find_inplace_pairs",
    "flat_index",
    "is_same_position",
]


_SAMPLES = 12
_IF = ir.Op.get("prim.if_then_else")


@dataclasses.dataclass(frozen=True, order=True)
class Block:
    """Consecutive elements: ``factor`` positions along an axis, and all along those after it.

    Attributes
    ----------
    elements : int
        In it.
    axis, factor : int
    """

    elements: int
    axis: int
    factor: int


@dataclasses.dataclass(frozen=True)
class InplacePair:
    """An output that may lie in the storage of an input: see the definition.

    Attributes
    ----------
    input, output : int
        Indices into the parameters of the kernel.
    read, written : Block
        Of the input and of the output.
    bytes_read, bytes_written : int
        Of one block.
    """

    input: int
    output: int
    read: Block
    written: Block
    bytes_read: int
    bytes_written: int

    @property
    def same_position(self) -> bool:
        """Whether each element is computed from the one in its place: without scratch."""
        return self.read.elements == self.written.elements == 1


def find_inplace_pairs(function: tirx.PrimFunc) -> list[InplacePair] | str:
    """The outputs of a kernel that may lie in the storage of an input, or why none may.

    Parameters
    ----------
    function : tvm.tirx.PrimFunc
        Not scheduled, and without intermediate buffers:
        :func:`relax_inplace.relayout.inlining.with_producers_inlined` makes it so.

    Returns
    -------
    list of InplacePair, or str
        Of each output at most one for each input; those without scratch first.
    """
    blocks = te_blocks(function)
    if blocks is None:
        return "is scheduled, or has blocks that are not of independent elements"
    params = function.params[:]
    written = [block.buffer for block in blocks]
    if any(buffer not in params for buffer in written) or len(set(written)) != len(written):
        return "has intermediate buffers"
    sources = [{load.source for load in loads_in(block.value)} for block in blocks]
    pairs: list[InplacePair] = []
    reasons: list[str] = []
    for block, own in zip(blocks, sources, strict=True):
        for buffer in buffer_params(function):
            if buffer not in own or buffer in written:
                continue
            if sum(buffer in others for others in sources) > 1:
                found: InplacePair | str = "computes two outputs from one input"
            else:
                indices = params.index(buffer), params.index(block.buffer)
                found = _pair(block, buffer, *indices)
            if isinstance(found, str):
                reasons.append(found)
            else:
                pairs.append(found)
    if not pairs:
        return reasons[0] if reasons else "reads no tensor"
    return sorted(pairs, key=lambda pair: (not pair.same_position, pair.bytes_read))


def is_same_position(block: TEBlock, load: ir.TensorLoad) -> bool:
    """Whether an element is read that has the same number, in its buffer, as the one computed."""
    at, shape = _indices(block), block.buffer.ty.shape[:]
    there, other = load.indices[:], load.source.ty.shape[:]
    if _are_same(at, there) and _are_same(shape, other):
        return True
    if any(loads_in(index) for index in there):
        return False
    flat = flat_index(shape, at), flat_index(other, there)
    return holds_everywhere([equal(*flat)], block.box)


def _are_same(some: Sequence[ir.Expr], others: Sequence[ir.Expr]) -> bool:
    pairs = list(zip(some, others, strict=False))
    return len(some) == len(others) and all(tvm_ffi.structural_equal(*pair) for pair in pairs)


def _pair(block: TEBlock, source: relax.Var, given: int, made: int) -> InplacePair | str:
    before, after = _bytes_of_element(source), _bytes_of_element(block.buffer)
    if before is None or after is None:
        return "has a buffer that is not row-major elements of whole bytes"
    if any(_is_number(size, 0) for size in block.buffer.ty.shape[:]):
        return "makes no elements"
    reads = [read for read in _reads(block.value) if read.load.source.same_as(source)]
    if any(loads_in(index) for read in reads for index in read.load.indices[:]):
        return "reads its input at places that data give"
    whole = [_elements(buffer) * size for buffer, size in ((block.buffer, after), (source, before))]
    if not holds_everywhere([whole[0] <= whole[1]], {}):
        return "makes larger elements, or more of them"
    samples = list(_samples(block, reads))
    may_stay = before >= after and all(p == q for p, q in samples)
    if may_stay and all(is_same_position(block, read.load) for read in reads):
        one = blocks_along(source, 1)[0], blocks_along(block.buffer, 1)[0]
        return InplacePair(given, made, *one, before, after)
    for written in blocks_along(block.buffer, 1 if before < after else MOST_SCRATCH // after):
        for read in blocks_along(source, MOST_SCRATCH // before):
            if read.elements * before < written.elements * after:
                continue
            if not all(p // written.elements == q // read.elements for p, q in samples):
                continue
            if _is_local(block, written, reads, read):
                taken = read.elements * before, written.elements * after
                return InplacePair(given, made, read, written, *taken)
    return f"has no blocks of up to {MOST_SCRATCH // 1024} KB that are computed from those there"


def _bytes_of_element(buffer: relax.Var) -> int | None:
    ty = buffer.ty
    plain = not len(ty.strides) and ty.layout is None and ty.storage_scope in ("", "global")
    offset = ty.elem_offset
    if not plain or not (offset is None or _is_number(offset, 0)):
        return None
    dtype = tvm_ffi.dtype(str(ty.dtype))
    return dtype.itemsize if dtype.bits % 8 == 0 and dtype.lanes == 1 else None


def _elements(buffer: relax.Var) -> ir.Expr:
    return functools.reduce(operator.mul, buffer.ty.shape[:], tirx.const(1, "int64"))


def _is_number(expr: ir.Expr, number: int) -> bool:
    return isinstance(expr, tirx.IntImm) and int(expr) == number


# -- blocks ----------------------------------------------------------------------------------------


def blocks_along(buffer: relax.Var, most: int) -> list[Block]:
    """The blocks of up to so many elements that a buffer can be cut into, the smallest first.

    It is not one of them itself: to write that over what it was computed from saves nothing.
    """
    shape = buffer.ty.shape[:]
    elements, found = 1, []
    for axis in reversed(range(len(shape))):
        size = shape[axis]
        whole = int(size) if isinstance(size, tirx.IntImm) else None
        for factor in _divisors(size, most // elements):
            if factor != whole:  # else it is 1 along the axis before
                found.append(Block(elements * factor, axis, factor))
        if whole is None or elements * whole > most:
            break
        elements *= whole
    return sorted(found) or [Block(1, 0, 1)]


def _divisors(size: ir.Expr, most: int) -> list[int]:
    """The numbers that are sure to divide a size."""
    if isinstance(size, tirx.IntImm):
        number = int(size)
    else:
        modular = sym.Analyzer().modular_set(size)
        number = math.gcd(int(modular.coeff), int(modular.base))
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return [d for d in sorted({*small, *(number // d for d in small)}) if d <= most]


def flat_index(shape: Sequence[ir.Expr], indices: Sequence[ir.Expr]) -> ir.Expr:
    """The number of an element, in row-major order."""
    flat = indices[0] if indices else tirx.const(0, "int64")
    for size, index in zip(shape[1:], indices[1:], strict=True):
        flat = flat * size + index
    return flat


def _number_of_block(shape: Sequence[ir.Expr], indices: Sequence[ir.Expr], block: Block) -> ir.Expr:
    """In which block an element lies."""
    if not indices:
        return tirx.const(0, "int64")
    along = tirx.floordiv(indices[block.axis], block.factor)
    outer = [*indices[: block.axis], along]
    # The last size stands for how many blocks there are along the axis.
    last = tirx.floordiv(shape[block.axis], block.factor)
    return flat_index([*shape[: block.axis], last], outer)


# -- what is read, and where -----------------------------------------------------------------------


@dataclasses.dataclass
class _Read:
    """An element that is read, and the conditions on indices under which it is."""

    load: ir.TensorLoad
    conditions: list[ir.Expr]


def _reads(value: ir.Expr, conditions: Sequence[ir.Expr] = ()) -> Iterator[_Read]:
    found: list[_Read] = []

    def visit(expr: ir.Expr) -> tvm_ffi.WalkResult:
        if isinstance(expr, ir.TensorLoad):
            found.append(_Read(expr, list(conditions)))
        elif isinstance(expr, ir.Call) and expr.op.same_as(_IF):
            condition, if_true, if_false = expr.args[:]
            known = [] if loads_in(condition) else [condition]
            found.extend(_reads(condition, conditions))
            found.extend(_reads(if_true, [*conditions, *known]))
            found.extend(_reads(if_false, [*conditions, *(tirx.Not(c) for c in known)]))
            return tvm_ffi.WalkResult.SKIP
        return tvm_ffi.WalkResult.ADVANCE

    tvm_ffi.structural_walk(value, (ir.Expr, visit), order="pre")
    yield from found


def _samples(block: TEBlock, reads: Sequence[_Read]) -> Iterator[tuple[int, int]]:
    """Some pairs p, q, with some sizes: nothing is to be proved that they refute."""
    generator = random.Random(0)
    analyzer = sym.Analyzer()
    shape = block.buffer.ty.shape[:]
    unknown = {
        var
        for expr in (*shape, *(size for read in reads for size in read.load.source.ty.shape[:]))
        for var in tirx.analysis.undefined_vars(expr)
    }
    for _ in range(_SAMPLES):
        known = {var: tirx.const(generator.randrange(2, 9), var.ty.dtype) for var in unknown}
        sizes = [int(analyzer.simplify(_substitute(size, known))) for size in shape]
        if 0 in sizes:
            return
        for (var, _), size in zip(block.box.items(), _sizes_of(block, sizes), strict=True):
            known[var] = tirx.const(generator.randrange(size), var.ty.dtype)
        p = analyzer.simplify(_substitute(flat_index(shape, _indices(block)), known))
        for read in reads:
            holds = [analyzer.simplify(_substitute(c, known)) for c in read.conditions]
            if all(_is_number(condition, 1) for condition in holds):
                where = flat_index(read.load.source.ty.shape[:], read.load.indices[:])
                q = analyzer.simplify(_substitute(where, known))
                if isinstance(q, tirx.IntImm):
                    yield int(p), int(q)


def _indices(block: TEBlock) -> list[ir.Expr]:
    return list(block.realize.block.body.indices[:])


def _sizes_of(block: TEBlock, sizes: Sequence[int]) -> list[int]:
    """The sizes of the axes that the block has an index for, in order."""
    pairs = zip(_indices(block), sizes, strict=True)
    return [size for index, size in pairs if isinstance(index, relax.Var)]


def _substitute(expr: ir.Expr, values: dict[relax.Var, ir.Expr]) -> ir.Expr:
    return tvm_ffi.structural_map(expr, (relax.Var, lambda var: values.get(var, var)))


# -- the proof -------------------------------------------------------------------------------------


def _is_local(block: TEBlock, written: Block, reads: Sequence[_Read], read: Block) -> bool:
    """Whether each block that is written is computed from the one there."""
    box = dict(block.box)
    at = _indices(block)
    split: dict[relax.Var, ir.Expr] = {}
    index = at[written.axis] if at else None
    if isinstance(index, relax.Var):
        extent = box.pop(index)
        factor = tirx.const(written.factor, index.ty.dtype)
        outer, inner = (tirx.Var(f"{index.name}_{part}", index.ty.dtype) for part in "oi")
        box[outer], box[inner] = tirx.floordiv(extent, factor), factor
        split[index] = outer * factor + inner
    shape = block.buffer.ty.shape[:]
    here = _number_of_block(shape, [_substitute(expr, split) for expr in at], written)
    for each in reads:
        where = [_substitute(expr, split) for expr in each.load.indices[:]]
        there = _number_of_block(each.load.source.ty.shape[:], where, read)
        conditions = [_substitute(condition, split) for condition in each.conditions]
        if not holds_everywhere([equal(here, there)], box, conditions):
            return False
    return True
