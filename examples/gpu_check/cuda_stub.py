"""A stand-in for CUDA's driver on a machine without one, so that TVM compiles kernels there.

TVM hands CUDA source to a compiler when its CUDA runtime is loaded (``ffi.Module.create.cuda``,
src/backend/cuda/runtime/cuda_module.cc); if not, the module keeps the source, and is compiled where
it is loaded (cuda_fallback_module.cc), which takes a compiler there. That runtime is not loaded
without ``libcuda.so.1``. Nothing of it is called while kernels are compiled: a library will do
whose functions say that there is no device.

``load_stub`` comes before ``import tvm``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["find_cudart", "load_stub"]

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def load_stub() -> None:
    """Make this process able to load TVM's CUDA runtime, and let nvcc compile kernels."""
    os.environ["TVM_CUDA_COMPILE_MODE"] = "nvcc"
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
        return
    except OSError:
        pass
    spec = importlib.util.find_spec("tvm")
    assert spec is not None and spec.origin is not None
    runtime = Path(spec.origin).parent / "lib" / "libtvm_runtime_cuda.so"
    wanted = sorted({*re.findall(rb"\0(cu[A-Z]\w+)(?=\0)", runtime.read_bytes())})
    source = "".join(f"int {name.decode()}() {{ return {_NO_DEVICE}; }}\n" for name in wanted)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        command = [os.environ.get("CC", "cc"), "-x", "c", "-", "-shared", "-fPIC", "-o", library]
        command += ["-Wl,-soname,libcuda.so.1"]
        subprocess.run([*map(str, command)], input=source, text=True, check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    if (cudart := find_cudart()) is not None:
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(cudart), ctypes.RTLD_GLOBAL)


def find_cudart() -> Path | None:
    """The CUDA runtime of CUDA 13, for which TVM's wheel was built, from a toolkit."""
    nvcc = Path(shutil.which("nvcc") or "/").resolve()
    roots = [*nvcc.parents[1:2], *sorted(Path("/usr/local").glob("cuda*"), reverse=True)]
    for folder in (root / lib for root in roots for lib in ("lib64", "lib")):
        found = folder / "libcudart.so.13"
        if found.is_file():
            return found
    return None
