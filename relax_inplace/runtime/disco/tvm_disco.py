"""TVM's Disco, also where ``import tvm`` has left it out.

``tvm/runtime/__init__.py`` imports Disco before the library that holds its classes, which is loaded
at the end of ``import tvm`` (``tvm/backend/_autoload_backends.py``), and not at all where there is
no compiler. So ``tvm.runtime.disco`` is None, or its classes are bound to nothing.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm_ffi.libinfo import load_lib_ctypes

__all__ = ["disco"]

_LIBRARY = "tvm_runtime_extra"
_CLASSES = ("DRef", "Session", "ThreadedSession", "ProcessSession", "SocketSession")


def _load_library() -> None:
    if tvm_ffi.get_global_func("runtime.disco.SessionThreaded", allow_missing=True) is not None:
        return
    loaded = tvm.base._LOADED_LIBS
    folder = Path(loaded["tvm_runtime"]._name).resolve().parent
    try:
        loaded[_LIBRARY] = load_lib_ctypes("tvm", _LIBRARY, "RTLD_LOCAL", extra_lib_paths=[folder])
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"relax_inplace.runtime.disco: lib{_LIBRARY}, expected in {folder}, cannot be loaded "
            f"({error}): it holds TVM's Disco; install the whole apache-tvm wheel"
        ) from error


def _import_disco() -> Any:
    _load_library()
    name = "tvm.runtime.disco"
    if hasattr(sys.modules.get(f"{name}._ffi_api"), "SessionThreaded"):
        return importlib.import_module(name)
    sys.modules.pop(f"{name}._ffi_api", None)  # it has the functions that there were then: none
    if tvm.runtime.disco is None:
        return importlib.import_module(name)
    api = importlib.import_module(f"{name}._ffi_api")
    module = tvm.runtime.disco
    module.session._ffi_api = api
    for one in _CLASSES:
        tvm_ffi.register_object(f"runtime.disco.{one}")(getattr(module, one))
    return module


disco = _import_disco()
