"""A name in a manifest leads to a file in the manifest's own folder, or nowhere.

Hugging Face's cache has to work: there, the manifest and the files it names are links, from
`<model>/snapshots/<revision>/` into `<model>/blobs/`. Some of them may be copies; a folder outside
of the cache may have links to the large files in it. So a link may lead to the folder that the
manifest's own file lies in, and to `blobs/` of the cache that the folder is in, or of the user's;
not deeper.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from .source_error import refuse, shown, system_text

__all__ = ["contained_path"]


def contained_path(manifest: Path, name: str, where: str) -> Path:
    """The real path of a file that a manifest names.

    Parameters
    ----------
    manifest : Path
    name : str
        As the manifest has it.
    where : str
        For the error.

    Raises
    ------
    SourceError
        The name leaves the folder, or there is no such file.
    """
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
