"""The paths of the libraries, and loading them: without the compiler, without ``import tvm``.

The builtins come in two forms: a shared library, which a process loads before a module, and an
archive, which is linked into a module (``self_contained_options``) or into a program (CMake).
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

__all__ = [
    "BUILTINS",
    "find_cmake_path",
    "find_library",
    "find_static_library",
    "load_library",
    "self_contained_options",
]

# The first function that a compiled module asks for: cpp/registry.cc has the same text.
BUILTINS = (
    "relax_inplace.builtins of version 0.2 (load librelax_inplace.so before the module, "
    "in Python: import relax_inplace)"
)


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
    names = {"darwin": "librelax_inplace.dylib", "win32": "relax_inplace.dll"}
    return _installed("lib", names.get(sys.platform, "librelax_inplace.so"))


def find_static_library() -> str:
    """Path of the archive that holds the builtins; position independent.

    Returns
    -------
    str
        Absolute path of ``librelax_inplace.a`` (``relax_inplace_static.lib`` on Windows).

    Raises
    ------
    FileNotFoundError
        The package was not built.
    """
    names = {"win32": "relax_inplace_static.lib"}
    return _installed("lib", names.get(sys.platform, "librelax_inplace.a"))


def find_cmake_path() -> str:
    """Folder of the CMake package, for ``relax_inplace_ROOT``.

    ``python -m relax_inplace --cmakedir`` prints it.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        The package was not built.
    """
    config = _installed("share", "cmake", "relax_inplace", "relax_inplace-config.cmake")
    return str(Path(config).parent)


def _installed(*parts: str) -> str:
    path = Path(__file__).resolve().parent.joinpath(*parts)
    if not path.is_file():
        raise FileNotFoundError(
            f"relax_inplace: no {path.name} at {path}. This is a source tree, not an installed "
            "package: run `pip install .` in it, and import relax_inplace from another folder"
        )
    return str(path)


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the shared library, once; its builtins are in tvm-ffi's registry afterwards.

    Raises
    ------
    ImportError
        The process has those of another version: a module that was exported with them came first.
    """
    import tvm_ffi  # libtvm_ffi must be there first: our library links against it

    library = ctypes.CDLL(find_library())
    found = tvm_ffi.get_global_func("relax_inplace.Builtins")()
    if found != BUILTINS:
        ours, theirs = (text.split(" (")[0] for text in (BUILTINS, found))
        raise ImportError(
            f"relax_inplace needs `{ours}`, but this process has `{theirs}`: the first library or "
            "self-contained module that is loaded serves all; import relax_inplace before it, and "
            "export the module again"
        )
    return library


def self_contained_options(
    static_library: str | os.PathLike | None = None,
    tvm_ffi_library: str | os.PathLike | None = None,
) -> list[str]:
    """Options for the linker by which a module is exported with the builtins in it.

    ``executable.export_library("lib.so", options=self_contained_options())``. Such a module runs
    where TVM's runtime is, in Python or C++, and nothing else. Once it has been loaded it stays in
    the process. docs/deploy.md says what happens when several are.

    Parameters
    ----------
    static_library : str or path, optional
        The archive with the builtins, for another machine than this; CMake makes it.
    tvm_ffi_library : str or path, optional
        ``libtvm_ffi.so`` for that machine.

    Returns
    -------
    list of str
        For a compiler that links as gcc and clang do.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    NotImplementedError
        On Windows, whose linker takes other options.
    """
    import tvm_ffi.libinfo

    if sys.platform == "win32":
        raise NotImplementedError(
            "self_contained_options: not on Windows: load relax_inplace.dll before the module"
        )

    archive = Path(static_library or find_static_library()).resolve()
    registry = Path(tvm_ffi_library or tvm_ffi.libinfo.find_libtvm_ffi()).resolve()
    for path in (archive, registry):
        if not path.is_file():
            raise FileNotFoundError(f"self_contained_options: no library at {path}")
    if sys.platform == "darwin":
        return [f"-Wl,-force_load,{archive}", str(registry), "-lc++"]
    return [
        "-Wl,--whole-archive",  # nothing refers to it: it registers itself when it is loaded
        str(archive),
        "-Wl,--no-whole-archive",
        "-Wl,--exclude-libs,ALL",  # its symbols are not another copy's
        "-Wl,-z,nodelete",  # tvm-ffi's registry keeps pointers into it
        str(registry),
        "-lstdc++",  # the compiler may be one of C
        "-ldl",  # before glibc 2.34
    ]
