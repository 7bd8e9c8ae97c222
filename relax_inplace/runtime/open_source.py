"""Find out what lies at a path, and check all of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .safetensors_files import INDEX, SINGLE, read_safetensors, read_safetensors_index
from .source import Source
from .source_error import refuse, shown, system_text
from .tensor_cache import MANIFESTS, read_tensor_cache

__all__ = ["SEARCHED", "open_source"]

# In a folder, in this order, as TVM and Hugging Face do; then the only .safetensors file in it.
SEARCHED = (*MANIFESTS, SINGLE, INDEX)
_IS_PART = re.compile(r"-\d{5,}-of-\d{5,}\.safetensors$")  # by its name, of what an index names


def open_source(path: str | os.PathLike[str] | Source, *, ties: bool = False) -> Source:
    """Read what files of weights say of themselves, and check it against the files.

    Takes no memory for a weight, and reads none.

    Parameters
    ----------
    path : path or Source
        A folder with TVM's tensor cache, or with safetensors; a manifest of either; a
        ``.safetensors`` file. A source that is open is returned as it is.
    ties : bool
        Whether weights that the metadata of safetensors says are others' are there, too:
        ``safetensors.torch.save_model`` writes a tied weight once, and its other names there.

    Raises
    ------
    SourceError
        There is nothing of the kind, or it is damaged.
    """
    source = path if isinstance(path, Source) else _opened(Path(path))
    return source.with_ties() if ties else source


def _opened(path: Path) -> Source:
    if os.path.isdir(path):
        path = _manifest(path)
    if path.name.endswith(".safetensors"):
        return read_safetensors(path)
    if path.name.endswith(".safetensors.index.json"):
        return read_safetensors_index(path)
    if path.name.endswith(".json"):
        return read_tensor_cache(path)
    refuse(
        shown(path),
        "no weights there" if os.path.lexists(path) else "no such file or folder",
        f"a folder with {MANIFESTS[0]}, {INDEX} or a .safetensors file, or one of those",
        "check the path",
    )


def _manifest(folder: Path) -> Path:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        refuse(
            shown(folder),
            system_text(error),
            "a folder that can be read",
            "check its owner and mode",
            because=error,
        )
    for name in SEARCHED:
        if name in names:
            return folder / name
    single = [one for one in names if one.endswith(".safetensors") and not one.startswith(".")]
    if len(single) != 1 or _IS_PART.search(single[0]):
        refuse(
            shown(folder),
            f"{len(single)} .safetensors {'file' if len(single) == 1 else 'files'} and no manifest",
            f"{MANIFESTS[0]}, {INDEX} or one whole .safetensors file",
            "give the path of the file" if single else "check the path",
        )
    return folder / single[0]
