"""Replace what a manifest names, so that at every moment the old or the new files are whole.

New files are written under temporary names, reach the disk, and get their own names, which nothing
had before. Then one rename replaces the manifest: before it the old files count, after it the new.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

__all__ = ["FolderUpdate"]


class FolderUpdate:
    """New files in a folder; without ``commit`` they are gone at the end.

    Parameters
    ----------
    folder : Path
        It is made if it is not there.

    Attributes
    ----------
    token : str
        For the names of the new files: no other update has it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.token = secrets.token_hex(6)
        self._new: list[tuple[Path, Path]] = []  # temporary name, name
        self._manifest: tuple[Path, int] | None = None  # and the inode of its new file
        folder.mkdir(parents=True, exist_ok=True)

    def new_file(self, name: str) -> Path:
        """Where to write a file that will have this name."""
        temporary = self._folder / f".{name}.{self.token}.tmp"
        self._new.append((temporary, self._folder / name))
        return temporary

    def commit(self, manifest: str, content: bytes, obsolete: Iterable[str] = ()) -> None:
        """Make the new files count, by this manifest; remove those that are obsolete.

        Raises
        ------
        OSError
            What was there before is still there, unless it is a file that could not be removed.
        """
        for temporary, _ in self._new:
            _sync(temporary)
        temporary = self.new_file(manifest)
        temporary.write_bytes(content)
        _sync(temporary)
        *shards, (temporary, path) = self._new
        for temporary_shard, shard in shards:
            os.rename(temporary_shard, shard)
        _sync(self._folder)  # the shards' names are on the disk before what names them
        self._manifest = path, temporary.stat().st_ino
        os.replace(temporary, path)
        _sync(self._folder)
        for name in obsolete:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._folder / name)

    def __enter__(self) -> FolderUpdate:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_committed():
            return
        for temporary, path in self._new:
            for new in (temporary, path) if self.token in path.name else (temporary,):
                with contextlib.suppress(OSError):
                    os.unlink(new)

    def _is_committed(self) -> bool:
        # What is there is asked, not a variable: Ctrl-C can come right after the rename.
        if self._manifest is None:
            return False
        path, inode = self._manifest
        with contextlib.suppress(OSError):
            return path.lstat().st_ino == inode
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
