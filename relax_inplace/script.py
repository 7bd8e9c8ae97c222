"""TVMScript: ``R.inplace_update_tuple`` and ``R.lift_param`` in the parser and in the IR builder.

The printer needs nothing: TVM prints a call to the op ``relax.x`` as ``R.x``, type arguments and
all (src/relax/script/printer/call.cc), which is what is parsed here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from tvm import ir, relax

from .marker import lift_param
from .op import _make_call

__all__ = ["register"]

# Every module that TVM's star imports copy the names of Relax's IR builder to: what
# tvm.script.ir_builder.relax, tvm.script.parser.relax and tvm.script.relax resolve to.
_NAMESPACES = (
    "tvm.relax.script.builder.ir",
    "tvm.relax.script.builder",
    "tvm.relax.script.parser",
    "tvm.relax.script",
)


def inplace_update_tuple(
    tuple: relax.Expr, index: int, value: relax.Expr, ty_args: Sequence[Any] = ()
) -> relax.Call:
    """Replace a field of a tuple, in place: see :func:`relax_inplace.inplace_update_tuple`.

    ``ty_args`` is the type of the result, where it is not what inference would give; passes write
    it, people need not.
    """
    return _make_call(tuple, index, value, [_as_type(ty) for ty in ty_args])


def _as_type(ty: Any) -> ir.Type:
    if isinstance(ty, ir.Type):
        return ty
    # The parser's proxies: `R.Tuple` for the empty tuple, `R.Tuple(...)`, `R.Tensor(...)`.
    return ty().asobject() if callable(ty) and not hasattr(ty, "asobject") else ty.asobject()


def register() -> None:
    """Add the names where TVMScript looks for them."""
    for namespace in _NAMESPACES:
        module = importlib.import_module(namespace)
        exported = getattr(module, "__all__", None)
        for function in (inplace_update_tuple, lift_param):
            name = function.__name__
            setattr(module, name, function)
            if isinstance(exported, list) and name not in exported:
                exported.append(name)
