"""What ``I``, ``R`` and ``T`` are while a file is parsed: what a program needs, and nothing else.

TVM's parser evaluates a program's expressions with Python's ``eval``
(tvm/script/parser/core/evaluator.py), and its namespaces hold more than a module of IR needs: other
modules, Python functions that become kernels, macros, source that is compiled. So a program is
given copies with the rest left out. They hold no module, so that no chain of attributes leads out.
"""

from __future__ import annotations

import types
from typing import Any

from tvm.script.parser import ir, relax, tirx

from .shape_text import check_shape_text

__all__ = ["DECORATORS", "HARMLESS_BUILTINS", "SCRIPT_MODULES", "script_namespaces", "step"]

DECORATORS = (relax.function, tirx.prim_func)
HARMLESS_BUILTINS = ("bool", "float", "int", "len", "range")

# The names of modules that a file may import a namespace from, and which one that is.
SCRIPT_MODULES = {
    f"tvm.script.{inside}{name}": letter
    for inside in ("", "parser.")
    for name, letter in (("ir", "I"), ("relax", "R"), ("tirx", "T"), ("tir", "T"))
}

# They take Python functions, run Python, read files or run a compiler.
_LEFT_OUT = {
    "I": {"pyfunc"},
    "R": {"call_py_func", "dist", "emit_te", "macro", "rewriter"},
    "T": {
        "add_to_parent",
        "call_ffi_kernel",
        "call_kernel",
        "inline",
        "jit",
        "macro",
        "meta_class",
        "register_script_namespace",
    },
}


def script_namespaces() -> dict[str, types.SimpleNamespace]:
    """``I``, ``R`` and ``T``."""
    namespaces = {}
    for letter, module in (("I", ir), ("R", relax), ("T", tirx)):
        names = set(module.__all__) - _LEFT_OUT[letter]
        namespaces[letter] = types.SimpleNamespace(
            **{name: _without_modules(getattr(module, name)) for name in sorted(names)}
        )
    # Strings in these are evaluated (tvm/relax/script/parser/entry.py, _eval_shape).
    namespaces["R"].Tensor = _tensor
    namespaces["R"].Shape = _shape
    return namespaces


def step(value: Any, name: str) -> Any:
    """What ``value.name`` is for a program; LookupError if that is not for it."""
    if name.startswith("_"):
        raise LookupError(name)
    if isinstance(value, types.SimpleNamespace):
        return vars(value)[name]
    if value is tirx.axis or type(value).__module__.startswith("tvm.backend."):
        found = getattr(value, name, None)  # T.axis.remap, T.ptx.ldmatrix
        if found is None or isinstance(found, types.ModuleType):
            raise LookupError(name)
        return found
    raise LookupError(name)


def _without_modules(value: Any) -> Any:
    """The operators of ``R.nn`` and its like, in the place of the module."""
    if not isinstance(value, types.ModuleType):
        return value
    members = {name: each for name, each in vars(value).items() if not name.startswith("_")}
    return types.SimpleNamespace(
        **{
            name: each
            for name, each in members.items()
            if isinstance(each, types.FunctionType) and each.__module__.startswith("tvm.relax.op.")
        }
    )


def _tensor(shape: Any = None, dtype: Any = None, vdevice: Any = None, ndim: int = -1) -> Any:
    _check_dimensions(shape)
    return relax.Tensor(shape, dtype, vdevice, ndim)


def _shape(values: Any = None, ndim: int = -1) -> Any:
    _check_dimensions(values)
    return relax.Shape(values, ndim)


def _check_dimensions(shape: Any) -> None:
    if isinstance(shape, (list, tuple)):
        for dimension in shape:
            if isinstance(dimension, str):
                check_shape_text(dimension)
