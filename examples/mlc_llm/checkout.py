"""MLC-LLM's Python, imported from a checkout beside the stock TVM wheel.

Its package loads the engine's library, which is not built here: the compiler's modules do without.
What they look for in TVM's Python that has moved since is put where they look.
"""

from __future__ import annotations

import importlib.machinery
import logging
import os
import sys
import types
from pathlib import Path

import tvm
from tvm import relax

__all__ = ["import_mlc_llm"]


class _AnyConstant(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, tvm.ir.GenericConst)


class _DataTypeImm(metaclass=_AnyConstant):
    """A constant data type is a constant of any type now."""

    def __new__(cls, dtype: object) -> tvm.ir.GenericConst:  # type: ignore[misc]
        return tvm.ir.GenericConst(tvm.DataType(dtype), relax.AnyType())


_MOVED = {
    "Constant": tvm.ir.Constant,
    "StringImm": tvm.ir.StringImm,
    "DataTypeImm": _DataTypeImm,
}


def import_mlc_llm(checkout: str | os.PathLike[str]) -> None:
    """Make ``import mlc_llm.model`` and ``import mlc_llm.interface.compile`` work."""
    folder = Path(checkout).resolve() / "python" / "mlc_llm"
    if not (folder / "model" / "model.py").exists():
        raise FileNotFoundError(f"{checkout} is no checkout of MLC-LLM: it has no {folder}")
    if "mlc_llm" in sys.modules:
        return
    package = types.ModuleType("mlc_llm")
    package.__path__ = [str(folder)]
    package.__spec__ = importlib.machinery.ModuleSpec("mlc_llm", None, is_package=True)
    sys.modules["mlc_llm"] = package
    for name, now in _MOVED.items():
        if not hasattr(relax, name):
            setattr(relax, name, now)
    if not hasattr(tvm.ir.GenericConst, "data"):
        tvm.ir.GenericConst.data = property(lambda constant: constant.value)
    if not hasattr(relax.Var, "name_hint"):
        relax.Var.name_hint = property(lambda var: var.name)
    import mlc_llm.interface.compile
    import mlc_llm.model  # noqa: F401

    logging.disable(logging.INFO)
