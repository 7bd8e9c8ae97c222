"""Kernels for CUDA, built of parts: what a thread block does, and what of it a thread.

Definition
----------
A *nest* is a launch: thread blocks in ``blockIdx.x``, of which there may be 2^31 - 1, and threads.
A thread makes *groups* of consecutive units, at most 16 bytes, in registers, and writes a group at
once; words that lie side by side it reads at once. All of a group is read before it is written. In
a *flat* nest, neighbouring threads make neighbouring groups. Indices are int64; TVM narrows those
that fit into 32 bits (NarrowDataType).

All buffers are rows of integers. Where an output may be the memory of an input, all that a kernel
touches is addressed from one pointer: TVM makes each pointer that it hands to a kernel
``__restrict__`` (split_host_device.cc).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tvm import ir, relax, tirx
from tvm.s_tir import SBlock, SBlockRealize

from .fields import bits_of
from .gpu_units import Part, Read
from .size import Size, expression, nominal, over

__all__ = [
    "THREADS",
    "Memory",
    "Source",
    "ceil",
    "copied",
    "even",
    "flat_nest",
    "group",
    "local",
    "loop",
    "most_lanes",
    "place",
    "row_of",
    "sequence",
    "threads",
    "unravel",
    "wide",
    "within",
]

THREADS = 256  # of a thread block
_ACCESS = 128  # bits that a thread reads or writes at once
_UNROLLED = 16
_UNION_VALUE = 15  # kTVMFFIAnyUnionValue in tirx/builtin.h

_Body = Callable[[Any], tirx.Stmt]


# -- statements ------------------------------------------------------------------------------------


def sequence(*statements: tirx.Stmt) -> tirx.Stmt:
    """One after another."""
    return tirx.SeqStmt(list(statements)) if len(statements) > 1 else statements[0]


def loop(extent: Any, body: _Body, kind: int = tirx.ForKind.UNROLLED, tag: str = "") -> tirx.Stmt:
    """A loop of int32; of a thread's index if there is a tag."""
    zero, thread = tirx.const(0, "int32"), None
    if isinstance(extent, int):
        if extent == 1 and not tag:
            return body(zero)
        extent = tirx.const(extent, "int32")
    if tag:
        kind = tirx.ForKind.THREAD_BINDING
        thread = tirx.IterVar(None, tirx.Var(tag, "int32"), tirx.IterVar.ThreadIndex, tag)
    var = tirx.Var(tag[:-2] or "i", "int32")
    return tirx.For(var, zero, extent, kind, body(var), thread_binding=thread)


def threads(count: int, body: _Body, most: int = THREADS) -> tirx.Stmt:
    """So many things, neighbours by neighbouring threads."""
    times = -(-count // most)
    kind = tirx.ForKind.UNROLLED if times <= _UNROLLED else tirx.ForKind.SERIAL

    def one(number: Any) -> tirx.Stmt:
        done = body(number)
        return done if count % most == 0 else tirx.IfThenElse(number < count, done, None)

    def thread(index: Any) -> tirx.Stmt:
        return loop(times, lambda time: one(time * most + index), kind)

    return loop(most, thread, tag="threadIdx.x")


def unravel(number: Any, extents: Sequence[Any]) -> list[Any]:
    """The point of a box that has a number."""
    point = []
    for extent in reversed(extents[1:]):
        quotient, rest = _divided(number, extent)
        point.append(rest)
        number = quotient
    return [number, *reversed(point)] if extents else []


def _divided(number: Any, by: Any) -> tuple[Any, Any]:
    """Quotient and rest of a number that is not below 0."""
    if not isinstance(by, int):  # C's quotient: TVM would correct the other one below 0
        return tirx.truncdiv(number, by), tirx.truncmod(number, by)
    if by == 1:
        return number, tirx.const(0, str(number.ty))
    return tirx.floordiv(number, by), tirx.floormod(number, by)


def ceil(size: Size, by: int) -> Any:
    """The quotient rounded up."""
    if isinstance(size, int):
        return -(-size // by)
    return tirx.truncdiv(expression(size) + (by - 1), tirx.const(by, "int64"))


def wide(number: Any) -> Any:
    """As int64."""
    return number if str(number.ty) == "int64" else number.astype("int64")


def place(base: Size, steps: Sequence[Size], digits: Sequence[Any]) -> Any:
    """Where something is, as int64."""
    total = expression(base)
    for step, digit in zip(steps, digits, strict=True):
        total = total if step == 0 else total + wide(digit) * expression(step)
    return total


def local(dtype: str, count: int, name: str) -> relax.Var:
    """Registers of a thread: indices are constants once loops are unrolled."""
    return tirx.decl_buffer((count,), dtype, name, scope="local")


def copied(count: int, into: relax.Var, there: Any, source: relax.Var, start: Any) -> tirx.Stmt:
    """Neighbours, at once."""

    def one(lane: Any) -> tirx.Stmt:
        value = tirx.BufferLoad(source, [start + lane.astype(str(start.ty))])
        return tirx.BufferStore(into, value, [there + lane.astype(str(there.ty))])

    return loop(count, one, tirx.ForKind.VECTORIZED)


def within(
    done: tirx.Stmt, extents: Sequence[Size], tile: Sequence[int], digits: Sequence[Any]
) -> tirx.Stmt:
    """Done where digits are below their extents: where tiles may go beyond, or there is nothing."""
    for extent, size, digit in zip(extents, tile, digits, strict=True):
        if not isinstance(extent, int) or extent % size:
            done = tirx.IfThenElse(digit < expression(extent), done, None)
    return done


# -- memory ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a read is found.

    Attributes
    ----------
    buffer : relax.Var
    at : callable
        Of the digits of a part: the index.
    row : int
        How many of the innermost digit's values lie side by side, from a multiple of as many on.
    """

    buffer: relax.Var
    at: Callable[[Sequence[Any]], Any]
    row: int


class Memory:
    """The parameters of a kernel, as rows of integers.

    Parameters
    ----------
    function : tvm.tirx.PrimFunc
    bits : mapping
        Of each parameter that is read or written.
    is_one : bool
        Whether some may be the same memory.
    """

    def __init__(self, function: tirx.PrimFunc, bits: Mapping[int, Size], is_one: bool) -> None:
        self._function = function
        self._bits = dict(sorted(bits.items()))
        self._views: dict[tuple[int, str], relax.Var] = {}
        first, *others = self._bits
        pointer = function.params[first].data
        self._base = tirx.Var("base", pointer.ty) if is_one else None
        self._away = {param: tirx.Var(f"away{param}", "int64") for param in others}

    def view(self, param: int, dtype: str) -> relax.Var:
        """A parameter as a row of a dtype."""
        if (param, dtype) not in self._views:
            size = wide(tirx.const(0, "int64") + ceil(self._bits[param], bits_of(dtype)))
            name = f"{self._function.params[param].name}_{dtype}"
            self._views[param, dtype] = tirx.decl_buffer((size,), dtype, name)
        return self._views[param, dtype]

    def source(self, read: Read) -> Source:
        """Where a read is found in the parameter."""
        is_row = bool(read.steps) and read.steps[-1] == 1
        row = even([read.base, *read.steps[:-1]], 16) if is_row else 1
        buffer = self.view(read.param, f"uint{read.bits}")
        return Source(buffer, lambda digits: place(read.base, read.steps, digits), row)

    def nest(self, counts: Sequence[Any], body: Callable[[list[Any]], tirx.Stmt]) -> tirx.Stmt:
        """A launch for the points of a box; of one at least, which may have nothing to do."""
        self._views = {}
        one = tirx.const(1, "int64")
        extents = [n if isinstance(n, int) else tirx.max(n, one).astype("int32") for n in counts]

        def inside(number: Any) -> tirx.Stmt:
            done = body(unravel(number, extents))
            views = self._views.items()
            return sequence(
                *(tirx.DeclBuffer(v, data=self._pointer(p)) for (p, _), v in views), done
            )

        return loop(functools.reduce(lambda a, b: a * b, extents, 1), inside, tag="blockIdx.x")

    def _pointer(self, param: int) -> ir.Expr:
        if self._base is None:
            return self._function.params[param].data
        away = self._away.get(param)
        return self._base if away is None else tirx.handle_add_byte_offset(self._base, away)

    def kernel(self, outputs: Sequence[int], nests: Sequence[tirx.Stmt]) -> tirx.PrimFunc:
        """The function, of these nests."""
        function = self._function
        regions: tuple[list, list] = [], []
        for param in self._bits:
            buffer = function.params[param]
            box = [ir.Range(tirx.const(0, size.ty.dtype), size) for size in buffer.ty.shape[:]]
            regions[param in outputs].append(tirx.BufferRegion(buffer, box))
        before = self._distances() if self._base is not None else []
        root = SBlockRealize([], True, SBlock([], *regions, "root", sequence(*before, *nests)))
        done = tirx.PrimFunc(function.params, root, function.ret_type, function.attrs)
        return done.with_attr("tirx.is_scheduled", True)

    def _distances(self) -> list[tirx.Stmt]:
        """How far parameters are from the first one: numbers, read where pointers were written.

        FP8StorageLegalize does not know a pointer that is reinterpreted.
        """
        pointers = [self._function.params[param].data for param in self._bits]
        slots = tirx.tvm_stack_alloca("tvm_ffi_any", len(pointers))
        stack = tirx.Var("slots", slots.ty)
        done = [tirx.Bind(self._base, pointers[0]), tirx.Bind(stack, slots)]
        for slot, pointer in enumerate(pointers):
            done.append(tirx.Evaluate(tirx.tvm_struct_set(stack, slot, _UNION_VALUE, pointer)))
        first, *others = (
            tirx.tvm_struct_get(stack, slot, _UNION_VALUE, "int64") for slot in range(len(pointers))
        )
        away = zip(self._away.values(), others, strict=True)
        return [*done, *(tirx.Bind(var, number - first) for var, number in away)]


# -- groups ----------------------------------------------------------------------------------------


def even(sizes: Iterable[Size], most: int) -> int:
    """The largest power of two, up to one, that divides sizes, whatever they are."""
    while any(over(size, most) is None for size in sizes):
        most //= 2
    return most


def most_lanes(parts: Sequence[Part]) -> int:
    """Units of a group."""
    dtype, widest = parts[0].dtype, max(part.widest for part in parts)
    if dtype.startswith("uint"):
        return _ACCESS // widest
    # Of others than this one TVM has no vectors where the target has no such numbers.
    return 4 if dtype == "bfloat16" else 1


def row_of(part: Part, most: int) -> int:
    """Units, up to so many, that are values of the innermost digit, from a multiple on."""
    if not part.steps or part.steps[-1] != 1:
        return 1
    return even([part.into, part.extents[-1], *part.steps[:-1]], most)


def group(
    part: Part,
    digits: Sequence[Any],
    lanes: int,
    find: Callable[[Read], Source],
    keep: Callable[[Any, ir.Expr], tirx.Stmt],
) -> tirx.Stmt:
    """Make units of consecutive values of the innermost digit, and keep each by its number."""
    rows: list[tirx.Stmt] = []

    def moved(lane: Any) -> list[Any]:
        return [*digits[:-1], digits[-1] + wide(lane)] if lanes > 1 else list(digits)

    def load(source: Source) -> Callable[[Any], ir.Expr]:
        if lanes == 1 or source.row % lanes:
            return lambda lane: tirx.BufferLoad(source.buffer, [source.at(moved(lane))])
        row = local(str(source.buffer.ty.dtype), lanes, "row")
        zero = tirx.const(0, "int32")
        rows.extend(
            [tirx.AllocBuffer(row), copied(lanes, row, zero, source.buffer, source.at(digits))]
        )
        return lambda lane: tirx.BufferLoad(row, [lane])

    loads = [load(find(read)) for read in part.reads]

    def one(lane: Any) -> tirx.Stmt:
        return keep(lane, part.value([each(lane) for each in loads], moved(lane)))

    return sequence(*rows, loop(lanes, one))


# -- the flat nest ---------------------------------------------------------------------------------

Stage = Callable[[Any], tuple[list[tirx.Stmt], Callable[[Read], Source]]]


def flat_nest(
    memory: Memory,
    output: int,
    parts: Sequence[Part],
    total: Size,
    lanes: int,
    span: int,
    stage: Stage | None = None,
) -> tirx.Stmt:
    """Thread blocks make consecutive units, in groups.

    Parameters
    ----------
    memory : Memory
    output : int
    parts : sequence of Part
        All of the output.
    total : Size
        Its units, a multiple of a group.
    lanes, span : int
        Units of a group, and of a thread block.
    stage : callable, optional
        Of a thread block's number: what is done before, and where words are found then.
    """
    dtype = parts[0].dtype
    parts = sorted(parts, key=lambda part: math.prod(map(nominal, part.extents)))

    def inside(point: list[Any]) -> tirx.Stmt:
        before, find = stage(point[0]) if stage is not None else ([], memory.source)

        def one(number: Any) -> tirx.Stmt:
            at = wide(point[0]) * span + wide(number) * lanes
            made, zero = local(dtype, lanes, "made"), tirx.const(0, "int32")
            if all(row_of(part, lanes) == lanes for part in parts):
                make = _made(parts, at, lanes, find, made, zero)
            else:
                make = loop(lanes, lambda lane: _made(parts, at + wide(lane), 1, find, made, lane))
            write = copied(lanes, memory.view(output, dtype), at, made, zero)
            return within(sequence(tirx.AllocBuffer(made), make, write), [total], [span], [at])

        return sequence(*before, threads(span // lanes, one))

    return memory.nest([ceil(total, span)], inside)


def _made(
    parts: Sequence[Part],
    at: Any,
    lanes: int,
    find: Callable[[Read], Source],
    made: relax.Var,
    first: Any,
) -> tirx.Stmt:
    """Make units by the part that they are of; or by all that make bits of them."""
    is_whole = all(part.is_whole for part in parts)

    def keep(lane: Any, unit: ir.Expr) -> tirx.Stmt:
        index = first + lane
        return tirx.BufferStore(made, unit if is_whole else made[index] | unit, [index])

    zero = tirx.const(0, str(made.ty.dtype))
    done = loop(lanes, lambda lane: tirx.BufferStore(made, zero, [first + lane]))
    for number, part in enumerate(parts):
        digits, is_there = _digits_at(part, at)
        make = group(part, digits, lanes, find, keep)
        if not is_whole:
            done = sequence(done, tirx.IfThenElse(is_there, make, None))
        else:
            done = tirx.IfThenElse(is_there, make, done) if number else make
    return done


def _digits_at(part: Part, at: Any) -> tuple[list[Any], ir.Expr]:
    """The digits of a unit, and whether it is of the part."""
    zero = tirx.const(0, "int64")
    rest, holds, digits = at, tirx.const(True, "bool"), []
    if part.into != 0:
        holds = at >= expression(part.into)
        rest = tirx.max(at - expression(part.into), zero)
    for extent, step in zip(part.extents, part.steps, strict=True):
        digit, rest = _divided(rest, step if isinstance(step, int) else expression(step))
        digits.append(digit)
        holds = tirx.And(holds, digit < expression(extent))
    return digits, tirx.And(holds, tirx.EQ(rest, zero))
