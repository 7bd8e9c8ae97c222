"""Find out what lies at a path, and check all of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..shown import shown, system_text
from .checkpoint import Checkpoint
from .error import refuse
from .manifest_names import INDEX, SEARCHED, TENSOR_CACHE
from .safetensors import read_safetensors, read_safetensors_index
from .tensor_cache import read_tensor_cache

__all__ = ["open_checkpoint"]

_IS_PART = re.compile(r"-\d{5,}-of-\d{5,}\.safetensors$")  # by its name, of what an index names


def open_checkpoint(path: str | os.PathLike[str] | Checkpoint, *, ties: bool = False) -> Checkpoint:
    """Read what files of weights say of themselves, and check it against the files.

    Takes no memory for a weight, and reads none.

    Parameters
    ----------
    path : path or Checkpoint
        A folder with TVM's tensor cache, or with safetensors; a manifest of either; a
        ``.safetensors`` file. A checkpoint that is open is returned as it is.
    ties : bool
        Whether weights that the metadata of safetensors says are others' are there, too:
        ``safetensors.torch.save_model`` writes a tied weight once, and its other names there.

    Raises
    ------
    CheckpointError
        There is nothing of the kind, or it is damaged.
    """
    checkpoint = path if isinstance(path, Checkpoint) else _opened(Path(path))
    return checkpoint.with_ties() if ties else checkpoint


def _opened(path: Path) -> Checkpoint:
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
        f"a folder with {TENSOR_CACHE}, {INDEX} or a .safetensors file, or one of those",
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
            f"{TENSOR_CACHE}, {INDEX} or one whole .safetensors file",
            "give the path of the file" if single else "check the path",
        )
    return folder / single[0]
