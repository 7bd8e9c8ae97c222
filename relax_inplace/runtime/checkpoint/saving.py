"""Write weights to files, for this package and for the formats' own readers."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from ...errors import StructuredError
from ..forget_locals import forget_locals
from ..params import Params
from ..progress import ProgressOption, progress_bar
from ..shown import shown, system_text
from ..tensor_info import TensorInfo
from . import safetensors, tensor_cache
from .folder_update import FolderUpdate
from .shard import Weight

__all__ = ["SaveError", "save_params"]

_SHARD = 32 << 20  # TVM's own writer's default
_FORMATS = {
    "tensor-cache": (tensor_cache.DTYPES, tensor_cache.write_tensor_cache),
    "safetensors": (set(safetensors.DTYPES.values()), safetensors.write_safetensors),
}


class SaveError(StructuredError):
    """Weights were not saved; what was saved before can still be loaded.

    Attributes
    ----------
    where : str
        The folder.
    given : str
    expected : str
    remedy : str
        What to do.
    """

    template = "{where}: {given}, expected {expected}; {remedy}"


def save_params(
    params: Params,
    folder: str | os.PathLike[str],
    format: str = "tensor-cache",
    *,
    shard_bytes: int = _SHARD,
    key: str | None = None,
    progress: ProgressOption = None,
) -> None:
    """Write weights, their names and their mark into a folder.

    They replace those in the folder that :func:`open_checkpoint` or another reader of the format
    would find. The old ones are removed once the new ones are on the disk, and so is what killed
    saves have left; other files are left alone.

    Parameters
    ----------
    params : Params
    folder : path
        It is made if it is not there.
    format : str
        ``tensor-cache``, which TVM reads, or ``safetensors``, which Hugging Face's libraries read.
    shard_bytes : int
        Of a file, at most; a larger weight gets one of its own. Weights on another device take so
        much host memory; those on the host take none.
    key : str, optional
        For the mark, of converted weights: see :class:`Provenance`.
    progress : bool or callable, optional
        See :func:`progress_bar`.

    Raises
    ------
    SaveError
        A weight is lost, the format cannot hold it, or the disk is full.
    """
    try:
        _save(params, Path(folder), format, shard_bytes, key, progress)
    except BaseException as error:
        forget_locals(error)  # an error is no owner of weights
        raise


def _save(
    params: Params,
    folder: Path,
    format: str,
    shard_bytes: int,
    key: str | None,
    progress: ProgressOption,
) -> None:
    if format not in _FORMATS:
        _refuse(folder, f"format={format!r}", " or ".join(map(repr, _FORMATS)), "give one of them")
    dtypes, write = _FORMATS[format]
    if params.partial is not None:
        _refuse(
            folder,
            f"weights that {shown(params.partial)} has converted in part, and then failed",
            "weights of one layout",
            "load them again",
        )
    provenance = params.provenance
    if key is not None:
        if provenance is None:
            _refuse(folder, "a key and weights without a mark", "converted weights", "omit the key")
        provenance = dataclasses.replace(provenance, key=key)
    weights = _checked(params, folder, format, dtypes)
    needed = sum(one.nbytes for one in weights)
    whole = "what the folder holds is whole, old or new: make room, or choose another folder"
    expected = f"to write {needed:,} bytes"
    try:
        with FolderUpdate(folder) as update, progress_bar(progress, needed, "save") as bar:
            free = shutil.disk_usage(folder).free
            if needed > free:
                _refuse(folder, f"the disk has {free:,} bytes free", expected, whole)
            write(update, _shards(weights, shard_bytes), provenance, bar)
    except OSError as error:
        _refuse(folder, f"{system_text(error)}, {_free(folder)}", expected, whole, error)


def _checked(params: Params, folder: Path, format: str, dtypes: Collection[str]) -> list[Weight]:
    """The weights with their types; what cannot be saved is refused before a file is made."""
    weights = []
    for name, tensor in params.items():
        problem = ""
        if not hasattr(tensor, "dtype"):
            problem = "is lost" if tensor is None else f"is {type(tensor).__name__}, not a tensor"
        elif not tensor.is_contiguous():
            problem = "is a view that is not contiguous"
        elif str(tensor.dtype) not in dtypes:
            problem = f"is {tensor.dtype}"
        elif any("\ud800" <= letter <= "\udfff" for letter in name):
            problem = "has half a letter in its name"
        elif name == "__metadata__" and format == "safetensors":
            problem = "has the name of the header's metadata"
        if problem:
            _refuse(
                folder,
                f"weight {shown(name)} {problem}",
                f"tensors that {format} can hold",
                "load it again, or save in the other format",
            )
        shape = tuple(map(int, tensor.shape))
        nbytes = TensorInfo(name, shape, str(tensor.dtype)).nbytes or 0
        weights.append(Weight(name, shape, str(tensor.dtype), nbytes, tensor))
    if not weights:
        _refuse(folder, "no weights", "at least one", "load them first")
    return weights


def _shards(weights: list[Weight], limit: int) -> list[list[Weight]]:
    shards: list[list[Weight]] = []
    room = -1
    for one in weights:
        if not shards or one.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(one)
        room -= one.nbytes
    return shards


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,} bytes free"
    except OSError:
        return "and no disk there"


def _refuse(
    folder: Path, given: str, expected: str, remedy: str, because: BaseException | None = None
) -> NoReturn:
    fields = {"where": shown(folder), "given": given, "expected": expected, "remedy": remedy}
    raise SaveError.of(**fields) from because
