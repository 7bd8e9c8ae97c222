"""TVMScript: ``R.inplace_update_tuple`` and ``R.lift_param`` in the parser and in the IR builder.

The printer needs no change: TVM prints a call to the op ``relax.x`` as ``R.x``, with its type
arguments (src/relax/script/printer/call.cc). The functions here parse that form.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import error, ir, relax
from tvm.script.ir_builder import IRBuilder

from . import op
from .marker import lift_param

__all__ = ["register"]

# TVM's star imports copy the names of Relax's IR builder to these modules, to which
# tvm.script.ir_builder.relax, tvm.script.parser.relax and tvm.script.relax resolve.
_NAMESPACES = (
    "tvm.relax.script.builder.ir",
    "tvm.relax.script.builder",
    "tvm.relax.script.parser",
    "tvm.relax.script",
)


def inplace_update_tuple(
    tuple: relax.Expr, index: int, value: relax.Expr, ty_args: Sequence[Any] = ()
) -> relax.Call:
    # ``ty_args`` is the type of the result, where inference would give another: passes write it.
    _print_diagnostics()
    _require_impure()
    return op._make_call(tuple, index, value, [_as_type(ty) for ty in ty_args])


inplace_update_tuple.__doc__ = op.inplace_update_tuple.__doc__


def _require_impure() -> None:
    """Refuse an update in a pure function, and in a dataflow block, that is being parsed."""
    if not IRBuilder.is_in_scope():
        return
    for frame in reversed(IRBuilder.current().frames[:]):
        if getattr(frame, "is_dataflow", False):
            raise ValueError("R.inplace_update_tuple is impure: move it out of R.dataflow()")
        if hasattr(frame, "is_pure"):  # of a function: what is outside of it does not count
            if frame.is_pure:
                raise ValueError(
                    f"R.inplace_update_tuple is impure: add pure=False, as in "
                    f"@R.function(pure=False), to `{frame.name}`"
                )
            return


@functools.cache
def _print_diagnostics() -> None:
    """Print the text of a diagnostic that nobody catches, in a process that has parsed an update.

    TVM's own hook prints a note on TVM_BACKTRACE instead (tvm/__init__.py, tvm_wrap_excepthook). It
    is replaced when the first update is parsed. Without an update, nothing changes.
    """
    others = sys.excepthook

    def print_and_go_on(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        if kind is error.DiagnosticError and not tvm._should_print_backtrace():
            print(value, file=sys.stderr)
        others(kind, value, trace)

    sys.excepthook = print_and_go_on


def _as_type(ty: Any) -> ir.Type:
    if isinstance(ty, ir.Type):
        return ty
    # The parser's proxies: `R.Tuple` for the empty tuple, `R.Tuple(...)`, `R.Tensor(...)`.
    return ty().asobject() if callable(ty) and not hasattr(ty, "asobject") else ty.asobject()


def register() -> None:
    """Add the names to the modules in which TVMScript looks them up."""
    for namespace in _NAMESPACES:
        module = importlib.import_module(namespace)
        exported = getattr(module, "__all__", None)
        for function in (inplace_update_tuple, lift_param):
            name = function.__name__
            setattr(module, name, function)
            if isinstance(exported, list) and name not in exported:
                exported.append(name)
