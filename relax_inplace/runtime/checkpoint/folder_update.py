"""Replace the weights in a folder: at every moment the old or the new ones are whole.

New files have names that nothing had before; they reach the disk. Then one rename puts their
manifest in its place, and what a reader could look at instead of it is removed, what ours searches
last first. So each reader finds the old weights until one call is done, and the new ones after it.
Then the files go that only those manifests named.

A crash leaves, before the rename, new files that nothing names; after it, old manifests that are
still to be removed, whole, and old files. The next save removes all that, but for files under names
that another writer gave them, whose manifest is gone: nobody knows whose they are.

A saver holds a shared lock on the folder (flock), which ends with its process. One that gets it
alone knows that files of other savers, which no JSON file in the folder mentions, are dead ones'.
On a file system without locks these stay.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from .error import CheckpointError
from .files import read_whole
from .manifest_names import INSTEAD

__all__ = ["FolderUpdate"]

_LARGEST = 256 << 20  # bytes of a JSON file
_TRIES = 600  # of a tenth of a second, for the lock
_NEW = re.compile(  # the names of files that updates make, 0.1's too; the group is a token
    r"(?:params_shard_|model-|\.(?:params_|model|tensor-cache).+\.)([0-9a-f]{12})"
    r"(?:_\d+\.bin|-\d{5,}-of-\d{5,}\.safetensors|\.tmp)"
)


class FolderUpdate:
    """New files in a folder; without ``commit`` they are gone at the end.

    Parameters
    ----------
    folder : Path
        It is made if it is not there.

    Attributes
    ----------
    token : str
        In the names of the new files: no other update has it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.token = secrets.token_hex(6)
        self._new: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)

    def new_file(self, name: str) -> Path:
        """Where to write a file of this name, which has the token in it."""
        assert _NEW.fullmatch(name)
        self._new.append(self._folder / name)
        return self._new[-1]

    def commit(self, manifest: str, document: msgspec.Struct) -> None:
        """Make the new files count, by the manifest of this name.

        Raises
        ------
        OSError
            What was there before is still there, unless it is a file that could not be removed.
        """
        instead = INSTEAD[manifest]
        for name in (manifest, *instead):
            if (self._folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a directory")
        temporary = self.new_file(f".{manifest}.{self.token}.tmp")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
        obsolete = self._named_by_these_alone({manifest, *instead})
        for path in self._new:
            _sync(path)
        _sync(self._folder)  # the new names are on the disk before what names them
        os.replace(temporary, self._folder / manifest)
        _sync(self._folder)
        for name in (*reversed(instead), *obsolete):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._folder / name)
                if name in instead:
                    _sync(self._folder)  # so that a crash of the system finds them in this order

    def __enter__(self) -> FolderUpdate:
        self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._remove_leftovers()
            self._share_lock()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            with contextlib.suppress(OSError):
                self._remove_leftovers()
                # Not left to `close`: a process that was forked meanwhile has the lock open, too.
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        finally:
            os.close(self._lock)

    def _share_lock(self) -> None:
        """Wait for one that removes files, but not for ever: a process may be forked meanwhile."""
        for _ in range(_TRIES):
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:
                return None
        raise OSError(errno.EBUSY, "another process has locked the folder")

    def _remove_leftovers(self) -> None:
        """Remove the files of savers that no manifest names: of this one, and of dead ones.

        What is there is asked, not a variable: Ctrl-C can come right after the rename.
        """
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_alone = True
        except OSError:
            is_alone = False
        found = [_NEW.fullmatch(name) for name in os.listdir(self._folder)]
        left = [match for match in found if match and (is_alone or match[1] == self.token)]
        manifests = self._json_files() if left else {}
        for match in left:
            is_temporary = match[0].endswith(".tmp")
            if is_temporary or not _is_mentioned(match[1], manifests):
                with contextlib.suppress(OSError):
                    os.unlink(self._folder / match[0])

    def _named_by_these_alone(self, replaced: Iterable[str]) -> list[str]:
        """The files beside that these manifests name, and no other JSON file mentions."""
        manifests = self._json_files()
        named = {name for one in replaced for name in _named(manifests.pop(one, None))}
        return sorted(name for name in named if not _is_mentioned(name, manifests))

    def _json_files(self) -> dict[str, bytes | None]:
        """What could be a manifest; None for one that cannot be read."""
        contents: dict[str, bytes | None] = {}
        for name in os.listdir(self._folder):
            if name.endswith(".json") and os.path.isfile(self._folder / name):
                contents[name] = None
                with contextlib.suppress(CheckpointError):
                    contents[name] = read_whole(self._folder / name, _LARGEST)
        return contents


def _is_mentioned(name: str, manifests: dict[str, bytes | None]) -> bool:
    """Whether one of them has the name, or may have it."""
    return any(one is None or name.encode() in one for one in manifests.values())


def _named(manifest: bytes | None) -> set[str]:
    """The files beside a manifest that it names; none if it is damaged."""
    try:
        document = json.loads(manifest or b"")
        if "weight_map" in document:
            files = set(document["weight_map"].values())
        else:
            files = {shard["dataPath"] for shard in document["records"]}
        # Nothing but weights is removed, whatever an old manifest says. Letters that JSON may
        # escape could be mentioned elsewhere and not be found.
        return {
            file for file in files if re.fullmatch(r"[\w .+=-]+\.(bin|safetensors)", file, re.A)
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
