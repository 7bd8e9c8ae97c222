"""Write weights to files, for this package and for the formats' own readers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, TensorSpec, serialize_file

from ..errors import StructuredError
from .folder_update import FolderUpdate
from .forget_locals import forget_locals
from .mark import MARK, Mark
from .obsolete_files import obsolete_files
from .params import Params
from .progress import ProgressBar, ProgressOption, progress_bar
from .safetensors_files import DTYPES as SAFETENSORS_DTYPES
from .safetensors_files import INDEX
from .source_error import shown, system_text
from .tensor_bytes import bytes_of
from .tensor_cache import DTYPES as TENSOR_CACHE_DTYPES
from .tensor_cache import MANIFESTS
from .tensor_copy import on_host
from .tensor_type import TensorType

__all__ = ["SaveError", "save_params"]

_SHARD = 32 << 20  # TVM's own writer's default
_CHUNK = 1 << 24
_Weights = list[tuple[TensorType, Any]]


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

    They replace those in the folder that :func:`open_source` would find. The old ones are removed
    once the new ones are on the disk; other files are left alone.

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
        For the mark, of converted weights: see :class:`Mark`.
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
    if format not in _WRITERS:
        _refuse(folder, f"format={format!r}", " or ".join(map(repr, _WRITERS)), "give one of them")
    if params.partial is not None:
        _refuse(
            folder,
            f"weights that {shown(params.partial)} has converted in part, and then failed",
            "weights of one layout",
            "load them again",
        )
    mark = params.mark
    if key is not None:
        if mark is None:
            _refuse(folder, "a key and weights without a mark", "converted weights", "omit the key")
        mark = dataclasses.replace(mark, key=key)
    weights = _checked(params, folder, format)
    needed = sum(one.nbytes or 0 for one, _ in weights)
    try:
        with FolderUpdate(folder) as update, progress_bar(progress, needed, "save") as bar:
            free = shutil.disk_usage(folder).free
            if needed > free:
                _refuse_full(folder, needed, f"the disk has {free:,} bytes free")
            _WRITERS[format](update, folder, _shards(weights, shard_bytes), mark, bar)
    except (OSError, SafetensorError) as error:
        _refuse_full(folder, needed, f"{system_text(error)}, {_free(folder)}", error)


def _checked(params: Params, folder: Path, format: str) -> _Weights:
    """The weights with their types; what cannot be saved is refused before a file is made."""
    dtypes = TENSOR_CACHE_DTYPES if format == "tensor-cache" else set(SAFETENSORS_DTYPES.values())
    weights = []
    for name, tensor in params.items():
        problem = ""
        if not hasattr(tensor, "dtype"):
            problem = "is lost" if tensor is None else f"is {type(tensor).__name__}, not a tensor"
        elif not tensor.is_contiguous():
            problem = "is a view that is not contiguous"
        elif str(tensor.dtype) not in dtypes:
            problem = f"is {tensor.dtype}"
        elif name == "__metadata__" and format == "safetensors":
            problem = "has the name of the header's metadata"
        if problem:
            _refuse(
                folder,
                f"weight {shown(name)} {problem}",
                f"tensors that {format} can hold",
                "load it again, or save in the other format",
            )
        weights.append((TensorType(name, tuple(map(int, tensor.shape)), str(tensor.dtype)), tensor))
    if not weights:
        _refuse(folder, "no weights", "at least one", "load them first")
    return weights


def _shards(weights: _Weights, limit: int) -> list[_Weights]:
    shards: list[_Weights] = []
    room = -1
    for one, tensor in weights:
        nbytes = one.nbytes or 0
        if not shards or nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append((one, tensor))
        room -= nbytes
    return shards


def _write_tensor_cache(
    update: FolderUpdate, folder: Path, shards: list[_Weights], mark: Mark | None, bar: ProgressBar
) -> None:
    entries = []
    for index, shard in enumerate(shards):
        name = f"params_shard_{update.token}_{index}.bin"
        md5 = hashlib.md5(usedforsecurity=False)
        records = []
        offset = 0
        descriptor = os.open(
            update.new_file(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
        )
        try:
            for one, tensor in shard:
                content = bytes_of(on_host(tensor))
                _write(descriptor, content, md5)
                records.append(
                    {
                        "name": one.name,
                        "shape": one.shape,
                        "dtype": one.dtype,
                        "format": "raw",
                        "nbytes": content.nbytes,
                        "byteOffset": offset,
                    }
                )
                offset += content.nbytes
                bar.update(content.nbytes, one.name)
        finally:
            os.close(descriptor)
        entries.append(
            {
                "dataPath": name,
                "format": "raw-shard",
                "nbytes": offset,
                "md5sum": md5.hexdigest(),
                "records": records,
            }
        )
    metadata = {} if mark is None else {MARK: mark.to_json()}
    _commit(update, folder, MANIFESTS[0], {"metadata": metadata, "records": entries})


def _write_safetensors(
    update: FolderUpdate, folder: Path, shards: list[_Weights], mark: Mark | None, bar: ProgressBar
) -> None:
    # Hugging Face's libraries refuse a file that does not say "pt", "tf", "flax" or "mlx".
    metadata = {"format": "pt"} | ({} if mark is None else {MARK: mark.to_json()})
    weight_map = {}
    for index, shard in enumerate(shards):
        name = f"model-{update.token}-{index + 1:05}-of-{len(shards):05}.safetensors"
        contents = [(one, bytes_of(on_host(tensor))) for one, tensor in shard]
        specs = {
            one.name: TensorSpec(
                dtype=str(one.dtype),
                shape=[int(size) for size in one.shape or ()],
                data_ptr=content.ctypes.data,
                data_len=content.nbytes,
            )
            for one, content in contents
        }
        serialize_file(specs, update.new_file(name), metadata)
        for one, content in contents:
            weight_map[one.name] = name
            bar.update(content.nbytes, one.name)
    total = sum(one.nbytes or 0 for shard in shards for one, _ in shard)
    index_metadata = {"total_size": total} | metadata
    _commit(update, folder, INDEX, {"metadata": index_metadata, "weight_map": weight_map})


_WRITERS = {"tensor-cache": _write_tensor_cache, "safetensors": _write_safetensors}


def _commit(update: FolderUpdate, folder: Path, manifest: str, document: dict[str, Any]) -> None:
    obsolete = obsolete_files(folder, manifest)
    update.commit(manifest, json.dumps(document, indent=1).encode(), obsolete)


def _write(descriptor: int, content: np.ndarray, md5: Any) -> None:
    for start in range(0, content.nbytes, _CHUNK):
        rest = content[start : start + _CHUNK].data
        md5.update(rest)
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,} bytes free"
    except OSError:
        return "and no disk there"


def _refuse_full(
    folder: Path, needed: int, given: str, because: BaseException | None = None
) -> NoReturn:
    raise SaveError.of(
        where=shown(folder),
        given=given,
        expected=f"to write {needed:,} bytes",
        remedy="what the folder holds is whole, old or new: make room, or choose another folder",
    ) from because


def _refuse(folder: Path, given: str, expected: str, remedy: str) -> NoReturn:
    raise SaveError.of(where=shown(folder), given=given, expected=expected, remedy=remedy)
