"""The op ``relax.inplace_update_tuple``: constructor, type inference, normalisation, lowering.

``R.inplace_update_tuple(tuple, index, value)`` replaces a field of the tuple *object* and returns
that object. It consumes the name of the tuple: see :mod:`relax_inplace.lower.ownership`.

The type of a call is the tuple's type, with the field's type replaced by the value's. A call may
also carry the type of its result, as ``ty_args=(T,)``. With a void type it is a statement: the name
stays valid, but for that field. So a long transform does not have n tuple types of n fields. With a
type, the tuple may have an unknown type: :mod:`relax_inplace.lower.tuple_objects` makes such calls,
and the VM checks them.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import ir, relax, tirx
from tvm.relax.utils import convert_to_expr

from .libinfo import load_library

__all__ = [
    "BUILTIN",
    "OP_NAME",
    "VOID",
    "inplace_update_tuple",
    "is_statement",
    "is_update",
    "register",
    "the_op",
]

OP_NAME = "relax.inplace_update_tuple"
BUILTIN = "vm.builtin.inplace_update_tuple"
VOID = relax.TupleType([])  # what TVM's code generators take for "no result" (HasVoidType)


def inplace_update_tuple(tuple: relax.Expr, index: int, value: relax.Expr) -> relax.Call:
    """Replace a field of a tuple, in place.

    The call replaces the field in the tuple object and returns the same object. The old field is
    freed if nothing else refers to it. The call consumes the name of the tuple: a later use is a
    compile-time error, and the result takes its place. Variables that hold fields of the tuple stay
    valid.

    The call is impure. The function has to be ``@R.function(pure=False)``, and the call may not be
    in a dataflow block.

    Parameters
    ----------
    tuple : relax.Expr
        An expression of tuple type.
    index : int
        The index of the field, a constant: ``-n <= index < n`` for a tuple of ``n`` fields.
    value : relax.Expr
        The new field: a tensor, shape, prim value, tuple, or ``R.null_value()``, which empties
        the slot. It may have another type than the old field.

    Returns
    -------
    relax.Call
        The same tuple. Its type is that of ``tuple``, with the type of the field replaced.

    Raises
    ------
    TypeError
        ``tuple`` is not a tuple, or ``index`` is not a constant integer.
    IndexError
        ``index`` is out of range.
    ValueError
        In TVMScript: the call is in a pure function or in a dataflow block. (TVM's own check would
        only say that the module is not well-formed.)

    Examples
    --------
    Replace the first weight by its transpose, and return the same tuple:

    >>> w0 = R.permute_dims(params[0])
    >>> p0 = R.inplace_update_tuple(params, 0, w0)
    >>> return p0  # and no more use of `params`
    """
    return _make_call(tuple, index, value)


def is_update(expr: Any) -> bool:
    """Whether an expression is an update: the op, or the builtin that it is lowered to."""
    if type(expr) is not ir.Call:  # the classes of tvm-ffi are abstract: isinstance is slow
        return False
    callee = expr.op
    if type(callee) is ir.Op:
        return callee.same_as(the_op())
    return type(callee) is relax.ExternFunc and callee.global_symbol == BUILTIN


@functools.cache
def the_op() -> ir.Op:
    """The registered op; compare by identity, reading an Op's name is slow."""
    return ir.Op.get(OP_NAME)


def is_statement(var: relax.Var) -> bool:
    """Whether the variable of a binding is void, so that the binding is there for its effect."""
    return isinstance(var.ty, relax.TupleType) and len(var.ty.fields) == 0


def _make_call(
    tuple: Any, index: Any, value: Any, ty_args: Sequence[ir.Type] = (), span: Any = None
) -> relax.Call:
    tuple, value = convert_to_expr(tuple), convert_to_expr(value)
    position = _constant_index(index, span)
    if not tuple.ty.is_missing():  # else FNormalize does this, once it is known
        position = _normalized_index(tuple, position, len(ty_args) > 0, span)
    operands = [tuple, relax.prim_value(position), value]
    return relax.Call(the_op(), operands, None, list(ty_args), span)


def _at(span: Any) -> str:
    """', at file:line:column' where the source is known."""
    if not isinstance(span, ir.Span):
        return ""
    return f", at {span.source_name.name}:{span.line}:{span.column}"


def _constant_index(index: Any, span: Any) -> int:
    if isinstance(index, tirx.IntImm):
        if index.ty.dtype != "bool":
            return int(index.value)
    elif not isinstance(index, (bool, ir.Expr)):
        try:
            return operator.index(index)
        except TypeError:
            pass
    raise TypeError(
        f"R.inplace_update_tuple: expected a constant integer as index, but got `{index}` "
        f"({type(index).__name__}){_at(span)}"
    )


def _normalized_index(tuple: relax.Expr, index: int, has_type: bool, span: Any) -> int:
    if has_type and index >= 0 and isinstance(tuple.ty, relax.AnyType):
        return index  # see relax_inplace.lower.tuple_objects
    if not isinstance(tuple.ty, relax.TupleType):
        raise TypeError(
            f"R.inplace_update_tuple: expected a tuple as first operand, but `{tuple}` has type "
            f"{tuple.ty}{_at(span)}"
        )
    n = len(tuple.ty.fields)
    if not -n <= index < n:
        raise IndexError(
            f"R.inplace_update_tuple: index {index} is out of range: `{tuple}` is a tuple of {n} "
            f"fields, so expected {-n} <= index < {n}{_at(span)}"
        )
    return index % n


def _infer_type(call: relax.Call, _builder: relax.BlockBuilder) -> ir.Type:
    args, ty_args, span = call.args[:], call.ty_args[:], call.span
    if len(args) != 3 or len(ty_args) > 1:
        raise TypeError(
            "R.inplace_update_tuple: expected 3 operands (tuple, index, value) and at most one "
            f"type argument, but got {len(args)} and {len(ty_args)}{_at(span)}"
        )
    source, index, value = args
    position = _normalized_index(source, _constant_index(index, span), bool(ty_args), span)
    if ty_args:
        return ty_args[0]
    return relax.TupleType(_array_with_item()(source.ty.fields, position, value.ty))


def _normalize(_builder: relax.BlockBuilder, call: relax.Call) -> relax.Call:
    source, index, value = call.args
    return _make_call(source, index, value, call.ty_args, call.span)


def _lower(_builder: relax.BlockBuilder, call: relax.Call) -> relax.Call:
    if not isinstance(call.args[0].ty, relax.AnyType):
        raise ValueError(
            "R.inplace_update_tuple is lowered in tvm.compile and tvm.relax.build only, but a "
            f"pipeline has come to it outside of them{_at(call.span)}. Give the pipeline to "
            "tvm.compile(mod, target, relax_pipeline=...). If you did: `import relax_inplace` "
            "before `from tvm.relax import build`, which otherwise is TVM's own"
        )
    return relax.Call(relax.ExternFunc(BUILTIN), call.args, None, [call.ty], call.span)


@functools.cache
def _array_with_item() -> tvm_ffi.Function:
    return tvm_ffi.get_global_func("relax_inplace.ArrayWithItem")


def register() -> None:
    """Register the op with the compiler, by the library's packed function. May be called again.

    ``FLowerBuiltin`` keeps the update an op until ``LowerRuntimeBuiltin``. It lowers the form that
    our part of ``tvm.relax.build`` gives an update (:mod:`.lower.tuple_objects`), and refuses any
    other. A pipeline that is run by hand to its end would skip the ownership check, and keep every
    original.
    """
    load_library()
    tvm_ffi.get_global_func("relax_inplace.RegisterOp")(
        {
            "FPurity": False,
            "FInferType": _infer_type,
            "FNormalize": tvm_ffi.get_global_func("relax_inplace.NormalizeIfNeeded")(_normalize),
            "FLowerBuiltin": _lower,
        }
    )
