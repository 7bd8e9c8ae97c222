"""Where the shared library is, and loading it: without the compiler, without ``import tvm``."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

__all__ = ["find_library", "load_library"]


def find_library() -> str:
    """Path of the shared library that holds the builtins.

    Loading it registers ``vm.builtin.inplace_update_tuple`` with tvm-ffi; it needs ``libtvm_ffi``
    and nothing else, so a C++ program or a process without the compiler can load it too.

    Returns
    -------
    str
        Absolute path of ``librelax_inplace.so`` (``.dylib`` on macOS, ``relax_inplace.dll`` on
        Windows).

    Raises
    ------
    FileNotFoundError
        The package was not built: it lies there as a source tree.
    """
    name = {"darwin": "librelax_inplace.dylib", "win32": "relax_inplace.dll"}.get(
        sys.platform, "librelax_inplace.so"
    )
    path = Path(__file__).resolve().parent / "lib" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"relax_inplace: no {name} at {path}. This is a source tree, not an installed "
            "package: run `pip install .` in it, and import relax_inplace from another folder"
        )
    return str(path)


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the shared library, once; its builtins are in tvm-ffi's registry afterwards."""
    import tvm_ffi  # noqa: F401  libtvm_ffi must be there first: our library links against it

    return ctypes.CDLL(find_library())
