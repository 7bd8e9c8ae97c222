"""The door between kernels and Relax: one kernel, written as a tensor expression, becomes one call.

A kernel belongs to a module, and Relax has two places that build one: a ``relax.BlockBuilder``
(``nn.Module.export_tvm`` is one, too), and TVMScript's IR builder, while an ``@R.function`` in an
``@I.ir_module`` is parsed. Whichever is active takes the kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import tvm
from tvm import relax, tirx
from tvm.relax.frontend import nn
from tvm.relax.script.builder import ir as script
from tvm.relax.utils import gen_call_tir_inputs
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.ir.frame import IRModuleFrame

from ..ir.kernels import LAYOUT
from ._argument import LayoutError, require

__all__ = ["call_kernel", "of_known_type", "takes_nn_tensors"]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def takes_nn_tensors(
    layout: Callable[_Parameters, _Result],
) -> Callable[_Parameters, _Result]:
    """Let a layout take ``nn.Tensor`` as well as expressions, and return what it was given."""

    @functools.wraps(layout)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        if not any(isinstance(arg, nn.Tensor) for arg in (*args, *kwargs.values())):
            return layout(*args, **kwargs)
        plain: Any = layout
        result = plain(
            *(_expression(arg) for arg in args),
            **{name: _expression(arg) for name, arg in kwargs.items()},
        )
        name = layout.__name__
        if isinstance(result, tuple):
            wrap: Any = tuple(nn.op.wrap_nested(field, name) for field in result)
        else:
            wrap = nn.op.wrap_nested(result, name)
        return wrap

    return wrapped


def _expression(value: Any) -> Any:
    return value._expr if isinstance(value, nn.Tensor) else value


def call_kernel(where: str, name: str, kernel: Callable[..., Any], *args: Any) -> relax.Expr:
    """Call a kernel, as the active builder would with ``call_te`` or ``R.emit_te``.

    Parameters
    ----------
    where : str
        The layout that calls, for the error, and for an attribute of the PrimFunc, by which
        ``LiftInplaceTransformParams`` knows it.
    name : str
        For the PrimFunc. The builder appends a number if it is taken.
    kernel : callable
        Makes the result, a ``te.Tensor``, from the arguments.
    *args
        Tensors, and sizes that the kernel cannot read off them.

    Raises
    ------
    LayoutError
        No builder is active.
    """
    builder = _active_builder(where)
    attrs = {LAYOUT: where}
    if isinstance(builder, relax.BlockBuilder):
        return builder.call_te(kernel, *args, primfunc_name_hint=name, primfunc_attrs=attrs)
    function, operands, types = gen_call_tir_inputs(kernel, *args, primfunc_attrs=attrs)
    return relax.op.call_tir(_declared(name, function), operands, types)


def of_known_type(where: str, expr: relax.Expr) -> relax.Expr:
    """The expression itself, or, if TVM has not inferred its type yet, a variable bound to it."""
    require(
        isinstance(expr, relax.Expr),
        where,
        f"a {type(expr).__name__}",
        "a Relax expression or an nn.Tensor",
        "a layout is part of a function that is being built, and does not convert arrays itself",
    )
    if not expr.ty.is_missing():
        return expr
    builder = _active_builder(where)
    if isinstance(builder, relax.BlockBuilder):
        return builder.emit(expr)
    return script.emit(expr)


def _active_builder(where: str) -> relax.BlockBuilder | IRBuilder:
    # A script is parsed in one go: if there is one, it is what runs now.
    if IRBuilder.is_in_scope():
        builder = IRBuilder.current()
        if any(isinstance(frame, IRModuleFrame) for frame in builder.frames):
            return builder
        given = "an @R.function in no module"
    else:
        builder = relax.BlockBuilder.current()
        if builder is not None:
            return builder
        given = "neither a BlockBuilder nor an @I.ir_module is active"
    raise LayoutError.of(
        where=where,
        given=given,
        expected="a module to put the kernel into",
        remedy="call it inside `with bb.function(...)`, in `nn.Module.forward`, or in an "
        "@R.function of an @I.ir_module",
    )


def _declared(name: str, function: tirx.PrimFunc) -> tvm.ir.GlobalVar:
    """The kernel in the module that is parsed.

    ``R.emit_te`` fails at a name that is taken ("already exists"), and the frame does not show
    which are: so names are tried.
    """
    number = 0
    while True:
        numbered = f"{name}_{number}" if number else name
        try:
            return script.decl_function(numbered, function)
        except (RuntimeError, ValueError) as error:
            if "already exists" not in str(error):
                raise
            number += 1
