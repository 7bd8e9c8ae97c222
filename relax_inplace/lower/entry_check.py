"""What a function checks of its arguments, before it changes the first field.

Definition
----------
A function that updates a tuple begins with one call of a builtin, on all its parameters. It checks
their kinds, dtypes, ranks, sizes, strides and offsets, at any depth of tuples, and that no tuple,
and no tensor that is overwritten, stands in two places (cpp/checks.cc). It returns the
values of the symbolic sizes, as the types of fields define them; ``R.match_cast`` gives these their
names. What a type says by an expression of sizes is matched by ``R.match_cast``, too.

The builtin's name is a sentence: a virtual machine that does not find it says it
(:data:`relax_inplace.libinfo.BUILTINS`). It is the first function that a module asks for, so that
the library is named before any other builtin is missed, and before anything changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tvm import ir, relax, tirx

from ..ir.tuple_objects import ANY, is_tuple, read_field
from ..ir.updates import OVERWRITES, STREAMED
from ..libinfo import BUILTINS
from ..op import VOID

__all__ = ["entry_check", "is_entry_check"]

_Path = tuple[int, ...]


def entry_check(
    function: relax.Function, name: str, params: Sequence[relax.Var], updates: bool
) -> list[relax.Binding]:
    """The bindings that a function begins with.

    Parameters
    ----------
    function : relax.Function
        With the types of its tuples.
    name : str
    params : sequence of relax.Var
        Its parameters by now: tuples are objects of no type.
    updates : bool
        Whether it is impure: what is pure checks only what it needs to know sizes.
    """
    sizes = _symbolic_sizes(function)
    of_tuples = _sizes_of_tuples(function)
    if not updates and not of_tuples:
        return []
    attrs = function.attrs or {}
    number = {size: index for index, size in enumerate(sizes)}
    types = [_described(param, number) for param in function.params[:]]
    if STREAMED in attrs:
        types[-1] = {"kind": "slots", "size": len(function.params[-1].ty.fields)}
    first_weight = sum(_leaves(param.ty) for param in function.params[:-1])
    spec = {
        "sizes": len(sizes),
        "updates": updates,
        "overwrites": [first_weight + int(index) for index in attrs.get(OVERWRITES, ())],
        "params": [
            {"name": param.name, "type": ty}
            for param, ty in zip(function.params[:], types, strict=True)
        ],
    }
    args = [ir.StringImm(name), ir.StringImm(json.dumps(spec)), *params]
    callee = relax.ExternFunc(BUILTINS)
    bindings: list[relax.Binding] = []
    if not of_tuples:
        call = relax.Call(callee, args, None, [VOID], ret_ty=VOID)
        bindings.append(relax.VarBinding(relax.Var("_", VOID), call))
    else:
        ty = relax.ShapeType(ndim=len(sizes))
        if updates:
            call = relax.Call(callee, args, None, [ty], ret_ty=ty)
        else:
            pure = ir.Op.get("relax.call_pure_packed")
            call = relax.Call(pure, [callee, *args], None, [ty], ret_ty=ty)
        dims, named = relax.Var("dims", ty), relax.ShapeType(sizes)
        bindings.append(relax.VarBinding(dims, call))
        bindings.append(relax.MatchCast(relax.Var("dims", named), dims, named))
    for param, new in zip(function.params[:], params, strict=True):
        for path, ty in _matched_later(param.ty, ()):
            bindings += _match(new, path, ty)
    return bindings


def is_entry_check(binding: relax.Binding) -> bool:
    """Whether it is the call of the builtin."""
    value = binding.value
    if type(value) is not ir.Call:
        return False
    callee = value.op
    return type(callee) is relax.ExternFunc and callee.global_symbol == BUILTINS


def _leaves(ty: ir.Type) -> int:
    return sum(map(_leaves, ty.fields[:])) if is_tuple(ty) else 1


def _symbolic_sizes(function: relax.Function) -> list[tirx.Var]:
    """All that the parameters define, each once."""
    return list(dict.fromkeys(var for param in function.params[:] for var in _defined_by(param)))


def _sizes_of_tuples(function: relax.Function) -> bool:
    """Whether a tuple defines some."""
    return any(is_tuple(param.ty) and _defined_by(param) for param in function.params[:])


def _defined_by(param: relax.Var) -> Sequence[tirx.Var]:
    if isinstance(param.ty, ir.PrimType):
        return [param]
    return relax.analysis.definable_tir_vars_in_type(param.ty)[:]


def _described(param: relax.Var, number: Mapping[tirx.Var, int]) -> Any:
    """A parameter's type, as the builtin reads it."""

    def dim(size: ir.PrimExpr) -> Any:
        if isinstance(size, tirx.IntImm):
            return int(size)
        return [number[size]] if size in number else None

    def described(ty: ir.Type) -> Any:
        if isinstance(ty, relax.TensorType):
            shape = None
            if isinstance(ty.shape, relax.ShapeExpr):
                shape = [dim(size) for size in ty.shape.values[:]]
            dtype = None if ty.dtype is None else str(ty.dtype.dtype)
            return {
                "kind": "tensor",
                "dtype": dtype,
                "ndim": ty.ndim,
                "shape": shape,
                "device": None,
            }
        if is_tuple(ty):
            return [described(field) for field in ty.fields[:]]
        if isinstance(ty, relax.ShapeType):
            values = None if ty.values is None else [dim(size) for size in ty.values[:]]
            return {"kind": "shape", "ndim": ty.ndim, "values": values}
        if isinstance(ty, ir.PrimType):
            return {"kind": "prim", "dtype": str(ty.dtype), "size": dim(param)}
        if isinstance(ty, relax.FuncType):
            return {"kind": "callable"}
        return {"kind": "any"}

    return described(param.ty)


def _matched_later(ty: ir.Type, path: _Path) -> Iterator[tuple[_Path, ir.Type]]:
    """The fields of a tuple whose types have an expression of sizes."""
    if is_tuple(ty):
        for index, field in enumerate(ty.fields[:]):
            if is_tuple(field) or _has_expression(field):
                yield from _matched_later(field, (*path, index))
    elif path:
        yield path, ty


def _has_expression(ty: ir.Type) -> bool:
    dims: Sequence[ir.PrimExpr] = ()
    if isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr):
        dims = ty.shape.values[:]
    elif isinstance(ty, relax.ShapeType) and ty.values is not None:
        dims = ty.values[:]
    return not all(isinstance(dim, (tirx.IntImm, tirx.Var)) for dim in dims)


def _match(source: relax.Var, path: _Path, ty: ir.Type) -> Iterator[relax.Binding]:
    for index in path:
        field = relax.Var("checked", ANY)
        yield relax.VarBinding(field, read_field(source, index, ANY))
        source = field
    yield relax.MatchCast(relax.Var("checked", ty), source, ty)
