"""The files of a checkpoint: which may be read, and how.

A name in a manifest leads to a file in the manifest's own folder, or nowhere. Hugging Face's cache
has to work: there, the manifest and the files it names are links, from
`<model>/snapshots/<revision>/` into `<model>/blobs/`. Some of them may be copies; a folder outside
of the cache may have links to the large files in it. So a link may lead to the folder that the
manifest's own file lies in, and to `blobs/` of the cache that the folder is in, or of the user's;
not deeper.

Regular files are read, without a second copy: no FIFO that waits for ever, no device, no mapping.
Pages of a mapped file count as resident as long as they are mapped; what `pread` moves lies in the
memory it was asked to fill, and nowhere else in the process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import tvm_ffi

from ...libinfo import load_library
from ..shown import shown, system_text
from .error import refuse

__all__ = ["contained_path", "open_regular", "opened", "read_into", "read_whole"]

_CHUNK = 1 << 28  # bytes that a call reads: a signal is answered in between


def open_regular(path: Path) -> int:
    """The descriptor of a file that is open for reading; the caller closes it."""
    try:
        is_regular = stat.S_ISREG(os.stat(path).st_mode)  # to open a device may do something
        # Without O_NONBLOCK, opening a FIFO that is there now waits until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if is_regular else -1
    except (OSError, ValueError) as error:
        refuse(
            shown(path),
            system_text(error),
            "a file that can be read",
            "check the path",
            because=error,
        )
    if not is_regular or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        if is_regular:
            os.close(descriptor)
        refuse(shown(path), "not a regular file given", "a file", "check the path")
    return descriptor


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file, and close it."""
    descriptor = open_regular(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_into(descriptor: int, memory: np.ndarray, offset: int, where: str) -> None:
    """Fill memory with the bytes at an offset, by as many threads as there are processors."""
    load_library()
    read = tvm_ffi.get_global_func("relax_inplace.ReadFile")
    for start in range(0, memory.nbytes, _CHUNK):
        part = memory[start : start + _CHUNK]
        error = read(tvm_ffi.from_dlpack(part), descriptor, offset + start)
        if error > 0:
            refuse(where, os.strerror(error), f"to read {memory.nbytes:,} bytes")
        if error < 0:
            missing = offset + memory.nbytes - os.fstat(descriptor).st_size
            refuse(
                where,
                f"the file ends {max(1, missing):,} bytes too early",
                f"{memory.nbytes:,} bytes from {offset:,} on",
            )


def read_whole(path: Path, limit: int) -> bytes:
    """All of a file that is at most so large."""
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            refuse(shown(path), f"{size:,} bytes given", f"a manifest of at most {limit:,}")
        memory = np.empty(size, "uint8")
        read_into(descriptor, memory, 0, shown(path))
        return memory.tobytes()


def contained_path(manifest: Path, name: str, where: str) -> Path:
    """The real path of a file that a manifest names, in the folder it may lie in."""
    if problem := _problem(name):
        refuse(
            where,
            f"the file {shown(name)} {problem}",
            "the name of a file in the manifest's folder",
            "do not trust these weights: such a name reads what is none of theirs",
        )
    try:
        real = Path(os.path.realpath(manifest.parent / name, strict=True))
    except OSError as error:
        refuse(
            where,
            f"the file {shown(name)}: {system_text(error)}",
            "a file in the manifest's folder",
            because=error,
        )
    folder = Path(os.path.realpath(manifest.parent))
    beside = Path(os.path.realpath(manifest)).parent
    if not real.is_relative_to(folder) and real.parent not in (beside, *_blobs(folder, real)):
        refuse(
            where,
            f"the file {shown(name)} is a link to {shown(real)}",
            "a file in the manifest's folder",
            "do not trust these weights, or put the file there",
        )
    return real


def _blobs(folder: Path, real: Path) -> list[Path]:
    """Where Hugging Face's cache keeps what a folder's links lead to; no links themselves."""
    own = [above.parent / "blobs" for above in folder.parents if above.name == "snapshots"]
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    hub = Path(os.path.realpath(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")))
    model = real.parent.parent
    return [*own, model / "blobs"] if model.parent == hub else own


def _problem(name: str) -> str:
    if not name:
        return "has no name"
    if "\0" in name:
        return "has a NUL in its name"
    if PurePosixPath(name).is_absolute():
        return "is absolute"
    if ".." in PurePosixPath(name).parts:
        return "leaves the folder"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return "has a name that no file can have"
    return ""
