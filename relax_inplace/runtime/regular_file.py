"""Regular files, read without a second copy: no FIFO that waits for ever, no device, no mapping.

Pages of a mapped file count as resident as long as they are mapped; what `pread` moves lies in the
memory it was asked to fill, and nowhere else in the process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .source_error import refuse, shown, system_text

__all__ = ["open_regular", "opened", "read_into", "read_whole"]

_CHUNK = 1 << 26  # bytes a call moves: a signal is answered in between, and Linux moves below 2 GiB


def open_regular(path: Path) -> int:
    """Open a file for reading.

    Returns
    -------
    int
        Its descriptor, which the caller closes.

    Raises
    ------
    SourceError
        It cannot be opened, or is not a regular file.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        refuse(
            shown(path),
            system_text(error),
            "a file that can be read",
            "check the path",
            because=error,
        )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
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
    """Fill memory with the bytes at an offset.

    Raises
    ------
    SourceError
        The file ends before, or cannot be read.
    """
    done = 0
    while done < memory.nbytes:
        try:
            moved = os.preadv(descriptor, [memory[done : done + _CHUNK].data], offset + done)
        except OSError as error:
            refuse(where, system_text(error), f"to read {memory.nbytes:,} bytes", because=error)
        if moved == 0:
            refuse(
                where,
                f"the file ends {memory.nbytes - done:,} bytes too early",
                f"{memory.nbytes:,} bytes from {offset:,} on",
            )
        done += moved


def read_whole(path: Path, limit: int) -> bytes:
    """All of a file that is at most so large."""
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            refuse(shown(path), f"{size:,} bytes given", f"a manifest of at most {limit:,}")
        memory = np.empty(size, "uint8")
        read_into(descriptor, memory, 0, shown(path))
        return memory.tobytes()
