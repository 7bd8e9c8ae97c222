"""A CUDA device that does everything as late as it may, in this process (emulated_device.cc).

There is no way to take a device away again, so it is loaded by ``device_checks.py`` alone, in a
process of its own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import tvm
import tvm_ffi

HERE = Path(__file__).parent


def is_possible() -> bool:
    """There is no CUDA driver that would be found in its place."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return sys.platform.startswith("linux")
    return False


def build(folder: Path) -> Path:
    """Compile it into a folder."""
    library = folder / "libcuda_emulated.so"
    include = [
        Path(tvm.__file__).parent / "include",
        *map(Path, tvm_ffi.libinfo.include_paths()),
    ]
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-shared", "-fPIC"]
    command += [f"-I{path}" for path in include]
    command += [str(HERE / "emulated_device.cc"), "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run(command, check=True)
    return library


def load(library: Path) -> None:
    """Make it this process's `tvm.cuda(0)`; once."""
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    assert tvm.cuda(0).exist
