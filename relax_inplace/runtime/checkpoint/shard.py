"""A file of a save: a header, and weights one after the other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from ..progress import ProgressBar
from ..tensor_bytes import bytes_of
from ..tensor_copy import on_host

__all__ = ["Weight", "write_shard"]

_CHUNK = 1 << 24


class Weight(NamedTuple):
    """What is saved."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    tensor: Any


def write_shard(
    path: Path, header: bytes, shard: list[Weight], bar: ProgressBar, digest: Any = None
) -> None:
    """Write weights one after the other, those on the host from where they are."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write(descriptor, memoryview(header))
        for one in shard:
            content = bytes_of(on_host(one.tensor)).data
            for start in range(0, content.nbytes, _CHUNK):
                part = content[start : start + _CHUNK]
                if digest is not None:
                    digest.update(part)
                _write(descriptor, part)
            bar.update(content.nbytes, one.name)
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
