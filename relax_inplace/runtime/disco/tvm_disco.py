"""TVM's Disco, also where ``import tvm`` has left it out.

``tvm/runtime/__init__.py`` imports Disco before the library that holds its classes, which is loaded
at the end of ``import tvm`` (``tvm/backend/_autoload_backends.py``), and not at all where there is
no compiler. So ``tvm.runtime.disco`` is None, or its classes are bound to nothing.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm_ffi.libinfo import load_lib_ctypes

__all__ = ["disco"]

_NAME, _LIBRARY = "tvm.runtime.disco", "tvm_runtime_extra"


def _import_disco() -> Any:
    if tvm_ffi.get_global_func("runtime.disco.SessionThreaded", allow_missing=True) is None:
        loaded = tvm.base._LOADED_LIBS
        paths = [Path(loaded["tvm_runtime"]._name).resolve().parent]
        try:
            loaded[_LIBRARY] = load_lib_ctypes("tvm", _LIBRARY, "RTLD_LOCAL", extra_lib_paths=paths)
        except (OSError, RuntimeError) as error:
            raise ImportError(
                f"relax_inplace.runtime.disco: lib{_LIBRARY}, expected in {paths[0]}, cannot be "
                f"loaded ({error}): it holds TVM's Disco; install the whole apache-tvm wheel"
            ) from error
    module = importlib.import_module(_NAME)
    if not hasattr(module.session._ffi_api, "SessionThreaded"):
        tvm_ffi.init_ffi_api("runtime.disco", f"{_NAME}._ffi_api")
        for name in ("DRef", "Session", "ThreadedSession", "ProcessSession", "SocketSession"):
            tvm_ffi.register_object(f"runtime.disco.{name}")(getattr(module, name))
    return module


disco = _import_disco()
