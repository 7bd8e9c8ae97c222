"""The inverse of a kernel that moves elements: proved, then written as a kernel.

Definition
----------
A kernel of one loop nest computes, for each ``i`` of a box ``I``, and each place once::

    B[p(i)] = F(A[q(i)])      or, where c(i) does not hold, anything else

It is undone by ``A[x] = F'(B[p(r(x))])``, where ``F'`` undoes ``F``, if for all places ``x`` of
``A``

1. ``r(x)`` is in ``I``,
2. ``q(r(x)) = x``,
3. ``c(r(x))`` holds,

and no two ``i`` have the same ``p(i)``. TVM finds ``r`` (``IndexMap.inverse``, by the iterators of
``detect_iter_map``); where it comes from does not matter, as 1 to 3 are proved of it: by TVM's
analyzer, sizes being any numbers from 0 on. ``F`` is a chain of exact casts, ``xor`` with a
constant, and ``not``.

So a blocked layout, with or without a rim that is filled up, has its inverse, and what leaves out,
repeats or mixes elements has none.

A kernel that a layout has made says which (:mod:`relax_inplace.layout.pairs`): the layout knows
what undoes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import tvm_ffi
from tvm import ir, relax, sym, te, tirx
from tvm.s_tir import SBlockRealize
from tvm.tirx.buffer import BufferType

from .box_proof import equal, holds_everywhere
from .exact_cast import cast_back, lossy

__all__ = ["Made", "make_elementwise", "undo_kernel"]

# Makes the operand of a call again from its result, in the function that is being built.
Made: TypeAlias = Callable[[relax.Expr], relax.Expr]


class _Unproved(Exception):  # noqa: N818  never leaves this file
    """Why a kernel is not known to have an inverse."""


def undo_kernel(
    kernel: tirx.PrimFunc,
    name: str,
    operands: Sequence[relax.TensorType],
    result: relax.TensorType,
    sizes: Sequence[ir.Expr],
) -> Made | str:
    """What undoes a kernel, or why nothing is known to.

    Parameters
    ----------
    kernel : tvm.tirx.PrimFunc
    name : str
        Of the kernel.
    operands : sequence of relax.TensorType
        Of the call. A kernel of several is not undone here.
    result : relax.TensorType
    sizes : sequence of tvm.ir.Expr
        What it is called with besides tensors.
    """
    try:
        if len(operands) != 1:
            raise _Unproved("reads several tensors")
        return _undo_moves(kernel, name, operands[0], result, sizes)
    except _Unproved as error:
        return f"`{name}` {error}"


def make_elementwise(name: str, function: Callable[[ir.Expr], ir.Expr]) -> Made:
    """Call a kernel that computes each element from the one at its place."""

    def kernel(given: te.Tensor) -> te.Tensor:
        return te.compute(given.shape, lambda *at: function(given[at]), "restored")

    return lambda value: relax.BlockBuilder.current().call_te(
        kernel, value, primfunc_name_hint=name
    )


# -- what a kernel does --------------------------------------------------------------------------


@dataclasses.dataclass
class _Moves:
    """What a kernel computes: see the definition."""

    box: dict[relax.Var, ir.Expr]  # the extent of each index
    writes: list[ir.Expr]
    reads: list[ir.Expr]
    conditions: list[ir.Expr]
    undone: list[Callable[[ir.Expr], ir.Expr]]  # what undoes F, step by step


def _moves_of(kernel: tirx.PrimFunc) -> _Moves:
    tensors = [param for param in kernel.params[:] if _is_tensor(param)]
    if len(tensors) != 2:
        raise _Unproved("has other tensors than its call")
    if any(len(tensor.ty.strides) for tensor in tensors):
        raise _Unproved("has strides")
    box, block = _only_block(kernel.body)
    store = block.body
    if not isinstance(store, tirx.BufferStore) or not store.buffer.same_as(tensors[1]):
        raise _Unproved("does not write each element once")
    moves = _Moves(box, store.indices[:], [], [], [])
    load = _loaded(store.value, moves)
    if not load.source.same_as(tensors[0]):
        raise _Unproved("reads what it has written")
    moves.reads = load.indices[:]
    if any(_loads_in(expr) for expr in (*moves.writes, *moves.reads, *moves.conditions)):
        raise _Unproved("moves elements to where others say")
    return moves


def _is_tensor(param: relax.Var) -> bool:
    return isinstance(param.ty, BufferType)


def _only_block(body: tirx.Stmt) -> tuple[dict[relax.Var, ir.Expr], Any]:
    """The block that does everything, and its indices, each from 0 to below its extent."""
    several = _Unproved("is more than one block of independent elements")
    if isinstance(body, SBlockRealize) and not body.block.iter_vars:
        if body.block.alloc_buffers or body.block.match_buffers:
            raise several
        body = body.block.body
    loops: dict[relax.Var, ir.Expr] = {}
    while isinstance(body, tirx.For):
        if body.thread_binding is not None or not _is_number(body.min, 0):
            raise _Unproved("is scheduled already")
        loops[body.loop_var] = body.extent
        body = body.body
    if not isinstance(body, SBlockRealize):
        raise several
    block = body.block
    if block.init is not None or block.alloc_buffers or block.match_buffers:
        raise several
    if not _is_number(body.predicate, 1):
        raise _Unproved("is scheduled already")
    box = {}
    for index, value in zip(block.iter_vars[:], body.iter_values[:], strict=True):
        extent = loops.pop(value, None) if isinstance(value, relax.Var) else None
        if extent is None or index.iter_type != tirx.IterVar.DataPar:
            raise several
        if not _is_number(index.dom.min, 0) or not tvm_ffi.structural_equal(
            index.dom.extent, extent
        ):
            raise _Unproved("is scheduled already")
        box[index.var] = extent
    if loops:  # which may run no times
        raise several
    return box, block


def _is_number(expr: ir.Expr, number: int) -> bool:
    return isinstance(expr, tirx.IntImm) and int(expr) == number


def _loaded(value: ir.Expr, moves: _Moves) -> ir.TensorLoad:
    """The element that a value is computed from; notes how."""
    while not isinstance(value, ir.TensorLoad):
        if isinstance(value, tirx.Select):
            value = _side(value.condition, value.true_value, value.false_value, moves)
        elif isinstance(value, ir.Call) and value.op.same_as(_IF):
            condition, if_true, if_false = value.args[:]
            value = _side(condition, if_true, if_false, moves)
        elif isinstance(value, tirx.Cast):
            source, target = str(value.value.ty.dtype), str(value.ty.dtype)
            back = cast_back(source, target)
            if back is None:
                raise _Unproved(f"casts: {lossy(source, target)}")
            moves.undone.append(back)
            value = value.value
        elif isinstance(value, tirx.BitwiseNot):
            moves.undone.append(lambda done: ~done)
            value = value.a
        elif isinstance(value, tirx.BitwiseXor) and isinstance(value.b, tirx.IntImm):
            moves.undone.append(_flip(value.b))
            value = value.a
        else:
            raise _Unproved("computes new numbers")
    return value


_IF = ir.Op.get("prim.if_then_else")


def _side(condition: ir.Expr, if_true: ir.Expr, if_false: ir.Expr, moves: _Moves) -> ir.Expr:
    """The side that reads an element; notes when it is chosen."""
    reads = bool(_loads_in(if_true))
    moves.conditions.append(condition if reads else tirx.Not(condition))
    return if_true if reads else if_false


def _loads_in(expr: ir.Expr) -> list[ir.TensorLoad]:
    loads: list[ir.TensorLoad] = []
    tvm_ffi.structural_walk(expr, (ir.TensorLoad, lambda load: loads.append(load)))
    return loads


def _flip(bits: ir.Expr) -> Callable[[ir.Expr], ir.Expr]:
    return lambda value: value ^ bits


# -- that it can be undone -----------------------------------------------------------------------


def _undo_moves(
    kernel: tirx.PrimFunc,
    name: str,
    operand: relax.TensorType,
    result: relax.TensorType,
    sizes: Sequence[ir.Expr],
) -> Made:
    moves = _in_sizes_of_call(_moves_of(kernel), _sizes_of_call(kernel, operand, result, sizes))
    shape = list(operand.shape.values[:])
    at = [tirx.Var(f"x{axis}", index.ty.dtype) for axis, index in enumerate(moves.reads)]
    places = {var: _as(extent, var.ty.dtype) for var, extent in zip(at, shape, strict=True)}
    unknown = {
        var
        for expr in (*shape, *moves.box.values(), *moves.reads, *moves.writes, *moves.conditions)
        for var in tirx.analysis.undefined_vars(expr)
        if var not in moves.box
    }
    if not unknown <= {
        v for ty in (operand, result) for v in relax.analysis.tir_vars_in_type(ty)[:]
    }:
        raise _Unproved("depends on more than the sizes of its tensors")
    found = _inverse_of(moves.reads, moves.box, at)
    there = dict(zip(moves.box, found, strict=True))
    goals = [there[index] >= 0 for index in moves.box]
    goals += [there[index] < extent for index, extent in moves.box.items()]
    for index, var in zip(moves.reads, at, strict=True):
        goals.append(equal(_substitute(index, there), var))
    goals += [_substitute(condition, there) for condition in moves.conditions]
    if not holds_everywhere(goals, places):
        raise _Unproved("is not proved to keep every element")
    if not _are_distinct(moves.writes, moves.box):
        raise _Unproved("is not proved to write each element once")
    sources = [sym.Analyzer().simplify(_substitute(index, there)) for index in moves.writes]
    variables = sorted(unknown, key=lambda var: str(var.name))

    def kernel_back(given: te.Tensor, *numbers: ir.Expr) -> te.Tensor:
        own = dict(zip(variables, numbers, strict=True))

        def element(*places: relax.Var) -> ir.Expr:
            here = {var: _as(place, var.ty.dtype) for var, place in zip(at, places, strict=True)}
            value = given[tuple(_as(_substitute(s, {**own, **here}), "int64") for s in sources)]
            for undone in moves.undone:
                value = undone(value)
            return value

        return te.compute([_substitute(dim, own) for dim in shape], element, "restored")

    return lambda value: relax.BlockBuilder.current().call_te(
        kernel_back, value, *variables, primfunc_name_hint=f"undo_{name.replace('.', '_')}"
    )


def _sizes_of_call(
    kernel: tirx.PrimFunc,
    operand: relax.TensorType,
    result: relax.TensorType,
    sizes: Sequence[ir.Expr],
) -> dict[relax.Var, ir.Expr]:
    """What the variables in the kernel's shapes are in its call."""
    known: dict[relax.Var, ir.Expr] = {}
    tensors = [param for param in kernel.params[:] if _is_tensor(param)]
    if [str(t.ty.dtype) for t in tensors] != [str(ty.dtype) for ty in (operand, result)]:
        raise _Unproved("is called with tensors of other dtypes")
    numbers = [param for param in kernel.params[:] if not _is_tensor(param)]
    if len(numbers) != len(sizes):
        raise _Unproved("takes other numbers than it is given")
    pairs = list(zip(numbers, sizes, strict=True))
    for tensor, ty in zip(tensors, (operand, result), strict=True):
        pairs += zip(tensor.ty.shape[:], ty.shape.values[:], strict=True)
    for var, size in pairs:
        if isinstance(var, relax.Var):
            known.setdefault(var, _as(size, var.ty.dtype))
    return known


def _in_sizes_of_call(moves: _Moves, known: Mapping[relax.Var, ir.Expr]) -> _Moves:
    def all_of(exprs: Sequence[ir.Expr]) -> list[ir.Expr]:
        return [_substitute(expr, known) for expr in exprs]

    return _Moves(
        dict(zip(moves.box, all_of(list(moves.box.values())), strict=True)),
        all_of(moves.writes),
        all_of(moves.reads),
        all_of(moves.conditions),
        moves.undone,
    )


def _substitute(expr: ir.Expr, values: Mapping[relax.Var, ir.Expr]) -> ir.Expr:
    return tvm_ffi.structural_map(expr, (relax.Var, lambda var: values.get(var, var)), order="post")


def _as(number: ir.Expr, dtype: Any) -> ir.Expr:
    """A number of that dtype; a constant stays one."""
    if isinstance(number, tirx.IntImm):
        return tirx.const(int(number), str(dtype))
    return number if str(number.ty.dtype) == str(dtype) else number.astype(str(dtype))


def _inverse_of(
    exprs: Sequence[ir.Expr], box: Mapping[relax.Var, ir.Expr], at: Sequence[relax.Var]
) -> list[ir.Expr]:
    """The indices that come to be at a place, as TVM finds them: not proved yet."""
    ranges = [ir.Range.from_min_extent(tirx.const(0, str(v.ty.dtype)), e) for v, e in box.items()]
    try:
        inverse = tirx.IndexMap(list(box), list(exprs), None).inverse(ranges)
    except RuntimeError:  # "Could not parse mapping as sum of iterators" and its like
        raise _Unproved("is not proved to move elements only") from None
    found = inverse.map_indices(list(at))
    return [_as(index, var.ty.dtype) for index, var in zip(found, box, strict=True)]


def _are_distinct(exprs: Sequence[ir.Expr], box: Mapping[relax.Var, ir.Expr]) -> bool:
    """Whether no two points of the box have the same place."""
    plain = {expr for expr in exprs if isinstance(expr, relax.Var)}
    if all(index in plain for index in box):
        return True
    at = [tirx.Var(f"y{axis}", expr.ty.dtype) for axis, expr in enumerate(exprs)]
    here = dict(zip(at, exprs, strict=True))
    back = [_substitute(index, here) for index in _inverse_of(exprs, box, at)]
    return holds_everywhere([equal(b, i) for b, i in zip(back, box, strict=True)], box)
