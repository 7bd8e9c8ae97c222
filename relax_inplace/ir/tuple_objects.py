"""A tuple as an object: of no type, read and made by builtins of the virtual machine.

TVM's passes visit the type of a variable wherever it is used (src/relax/ir/expr_functor.cc), so
that n reads of a tuple of n fields take each of them n² steps; and they take two tuples of the same
fields for one. An object has one variable, of type ``R.Any``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tvm import ir, relax

__all__ = ["ANY", "GET_ITEM", "MAKE_TUPLE", "is_tuple", "make_tuple", "object_type", "read_field"]

ANY = relax.AnyType()
GET_ITEM = "vm.builtin.tuple_getitem"
MAKE_TUPLE = "vm.builtin.make_tuple"


def is_tuple(ty: ir.Type) -> bool:
    """Whether a value of the type has fields; the empty tuple stands for "nothing"."""
    return isinstance(ty, relax.TupleType) and len(ty.fields) > 0


def object_type(ty: ir.Type) -> ir.Type:
    """The type of a variable that may be an object."""
    return ANY if is_tuple(ty) else ty


def read_field(source: relax.Expr, index: int, ty: ir.Type, span: Any = None) -> relax.Call:
    """A field of an object, of a given type. It is a pure call."""
    args = [_extern(GET_ITEM), source, relax.prim_value(index)]
    return relax.Call(_pure(), args, None, [ty], span, ret_ty=ty)


def make_tuple(fields: Sequence[relax.Expr], span: Any = None) -> relax.Call:
    """A new object. No pass takes it for another one of the same fields."""
    return relax.Call(_pure(), [_extern(MAKE_TUPLE), *fields], None, [ANY], span, ret_ty=ANY)


@functools.cache
def _pure() -> ir.Op:
    return ir.Op.get("relax.call_pure_packed")


@functools.cache
def _extern(name: str) -> relax.ExternFunc:
    return relax.ExternFunc(name)
