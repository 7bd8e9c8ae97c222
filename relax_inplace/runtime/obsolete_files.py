"""Which files a new manifest makes obsolete: what only the manifests name that it replaces."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from .open_source import SEARCHED
from .regular_file import read_whole
from .source_error import SourceError

__all__ = ["obsolete_files"]

_OTHERS = ("tensor-cache-b16.json", "ndarray-cache-b16.json")  # TVM's writer adds one: same files
_LARGEST = 256 << 20


def obsolete_files(folder: Path, manifest: str) -> list[str]:
    """The names of files in a folder to remove once a new manifest is there.

    A manifest that is searched for before the new one would hide it, and goes with its files. One
    that is searched for later stays, with its files. If one that stays cannot be read, files stay.

    Parameters
    ----------
    folder : Path
    manifest : str
        The name of the new one; it replaces the one of its name.

    Raises
    ------
    IsADirectoryError
        There is a folder where a manifest is searched for.
    """
    before = [
        name for name in SEARCHED[: SEARCHED.index(manifest)] if os.path.lexists(folder / name)
    ]
    for name in (*before, manifest):
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{name} is a directory")
    staying = [name for name in (*SEARCHED, *_OTHERS) if name not in before and name != manifest]
    try:
        kept = {file for name in staying for file in _named(folder / name)}
    except _UnreadableError:
        return before
    old: set[str] = set()
    for name in (*before, manifest):
        try:
            old |= _named(folder / name)
        except _UnreadableError:
            continue  # then nobody knows which files are its
    return before + sorted(old - kept)


class _UnreadableError(Exception):
    pass


def _named(manifest: Path) -> set[str]:
    """The files beside a manifest that it names."""
    if not manifest.exists():
        return set()
    try:
        document = json.loads(read_whole(manifest, _LARGEST))
        if "weight_map" in document:
            files = set(document["weight_map"].values())
        else:
            files = {shard["dataPath"] for shard in document["records"]}
        beside = {file for file in files if file == Path(file).name}
    except (SourceError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        raise _UnreadableError from e
    # Nothing but weights is removed, whatever an old manifest says; NUL is in no file's name.
    return {
        file for file in beside if file.endswith((".bin", ".safetensors")) and file.isprintable()
    }
