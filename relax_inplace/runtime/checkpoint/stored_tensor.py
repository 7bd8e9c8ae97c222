"""A tensor in a file of a checkpoint, and the file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..shown import shown
from ..tensor_info import TensorInfo
from .error import refuse

__all__ = ["CheckpointFile", "StoredTensor"]

_DIMENSIONS = 64  # of what numpy can show


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor(TensorInfo):
    """One weight as it is stored, and the tensor that it becomes.

    Attributes
    ----------
    file : Path
        The real one, no link.
    offset : int
        In the file.
    stored_nbytes : int
    encoding : str
        ``raw``, or ``f32-to-bf16``: the upper halves of float32 numbers.
    whole : StoredTensor or None
        What is stored, if this is a part of it, and what makes the part.
    cut : callable or None
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    stored_nbytes: int
    encoding: str = "raw"
    whole: StoredTensor | None = None
    cut: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class CheckpointFile:
    """A file of weights, as it was when the checkpoint was opened.

    Attributes
    ----------
    path : Path
        The real one, no link.
    name : str
        As the manifest calls it.
    nbytes : int
    state : tuple of int
        Which file it is, how large, and when it was changed.
    md5 : str or None
        Of all its bytes, if the manifest says it.
    header : str
        The sha256 of what it says of itself.
    """

    path: Path
    name: str
    nbytes: int
    state: tuple[int, ...]
    md5: str | None = None
    header: str = ""

    @classmethod
    def of(
        cls, path: Path, name: str, descriptor: int, md5: str | None = None, header: bytes = b""
    ) -> CheckpointFile:
        """Describe a file that is open."""
        state = _state(descriptor)
        return cls(path, name, state[0], state, md5, hashlib.sha256(header).hexdigest())

    def check_unchanged(self, descriptor: int) -> None:
        """Raise a CheckpointError if an open file is not the one that was checked."""
        now = _state(descriptor)
        if now != self.state:
            refuse(
                shown(self.path),
                f"it has changed since it was opened ({now[0]:,} bytes now)",
                f"the file of {self.nbytes:,} bytes that was checked",
                "open the weights again once nobody writes them",
            )

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        begin: int,
        nbytes: int,
        where: str,
        encoding: str = "raw",
    ) -> StoredTensor:
        """A tensor in this file, as a manifest says, and as can be: that is checked."""
        info = TensorInfo(name, tuple(shape), dtype)
        stored = (_element_count(shape, where),), "bfloat16" if encoding == "f32-to-bf16" else dtype
        expected = TensorInfo(name, *stored).nbytes
        if nbytes != expected:
            refuse(where, f"{nbytes:,} bytes for {info} stored as {encoding}", f"{expected:,}")
        if begin + nbytes > self.nbytes:
            refuse(
                where,
                f"bytes {begin:,} to {begin + nbytes:,}",
                f"bytes of the file {shown(self.name)}, which has {self.nbytes:,}",
            )
        return StoredTensor(
            name,
            shape=tuple(shape),
            dtype=dtype,
            file=self.path,
            offset=begin,
            stored_nbytes=nbytes,
            encoding=encoding,
        )


def _state(descriptor: int) -> tuple[int, ...]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino


def _element_count(shape: Sequence[int], where: str) -> int:
    """How many numbers a shape has, if 64 bits can count them.

    The sizes that are not 0 are multiplied first: 2**62 x 2**62 x 0 overflows in TVM on its way.
    """
    if len(shape) > _DIMENSIONS:
        refuse(where, f"{len(shape):,} dimensions", f"at most {_DIMENSIONS}")
    count = 1
    for size in shape:
        count *= size or 1
        if count >= 1 << 60:  # times 8 bytes, 2**63
            refuse(where, f"the shape {shown(list(shape))}", "a size that 64 bits can count")
    return 0 if 0 in shape else count
