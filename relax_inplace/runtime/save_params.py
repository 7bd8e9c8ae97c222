"""Write weights to files, for this package and for the formats' own readers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import tvm_ffi

from ..errors import StructuredError
from .folder_update import FolderUpdate
from .forget_locals import forget_locals
from .mark import MARK, Mark
from .params import Params
from .progress import ProgressBar, ProgressOption, progress_bar
from .safetensors_files import DTYPES as SAFETENSORS_DTYPES
from .safetensors_files import INDEX, SINGLE
from .source_error import shown, system_text
from .tensor_bytes import bytes_of
from .tensor_cache import DTYPES as TENSOR_CACHE_DTYPES
from .tensor_cache import MANIFESTS
from .tensor_copy import on_host
from .tensor_type import TensorType

__all__ = ["SaveError", "save_params"]

_SAME_FILES = ("tensor-cache-b16.json", "ndarray-cache-b16.json")  # TVM's writer adds one
_INSTEAD = {  # what readers of a format may look at instead, or ours before; in the order of ours
    "tensor-cache": (*MANIFESTS[1:], *_SAME_FILES),
    "safetensors": (*MANIFESTS, *_SAME_FILES, SINGLE),
}
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

    They replace those in the folder that :func:`open_source` or another reader of the format would
    find. The old ones are removed once the new ones are on the disk, and so is what killed saves
    have left; other files are left alone.

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
    if params.broken_by is not None:
        _refuse(
            folder,
            f"weights that {shown(params.broken_by)} has converted in part, and then failed",
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
            _WRITERS[format](update, _shards(weights, shard_bytes), mark, bar)
    except OSError as error:
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
    update: FolderUpdate, shards: list[_Weights], mark: Mark | None, bar: ProgressBar
) -> None:
    entries = []
    for index, shard in enumerate(shards):
        name = f"params_shard_{update.token}_{index}.bin"
        records, offset = [], 0
        for one, _ in shard:
            records.append(
                {
                    "name": one.name,
                    "shape": one.shape,
                    "dtype": one.dtype,
                    "format": "raw",
                    "nbytes": one.nbytes,
                    "byteOffset": offset,
                }
            )
            offset += one.nbytes or 0
        md5 = hashlib.md5(usedforsecurity=False)
        _write_file(update.new_file(name), b"", shard, bar, md5)
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
    document = {"metadata": metadata, "records": entries}
    update.commit(MANIFESTS[0], _json(document), _INSTEAD["tensor-cache"])


def _write_safetensors(
    update: FolderUpdate, shards: list[_Weights], mark: Mark | None, bar: ProgressBar
) -> None:
    # Hugging Face's libraries refuse a file that does not say "pt", "tf", "flax" or "mlx".
    metadata = {"format": "pt"} | ({} if mark is None else {MARK: mark.to_json()})
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    weight_map = {}
    total = 0
    for index, shard in enumerate(shards):
        file = f"model-{update.token}-{index + 1:05}-of-{len(shards):05}.safetensors"
        # Large elements first: then each weight is aligned to its own.
        shard.sort(key=lambda one: -tvm_ffi.dtype(one[0].dtype).bits)
        header: dict[str, Any] = {"__metadata__": metadata}
        offset = 0
        for one, _ in shard:
            end = offset + (one.nbytes or 0)
            dtype = names[str(one.dtype)]
            header[one.name] = {"dtype": dtype, "shape": one.shape, "data_offsets": [offset, end]}
            weight_map[one.name] = file
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        _write_file(update.new_file(file), len(text).to_bytes(8, "little") + text, shard, bar)
        total += offset
    document = {"metadata": {"total_size": total} | metadata, "weight_map": weight_map}
    update.commit(INDEX, _json(document), _INSTEAD["safetensors"])


_WRITERS = {"tensor-cache": _write_tensor_cache, "safetensors": _write_safetensors}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode()


def _write_file(
    path: Path, header: bytes, shard: _Weights, bar: ProgressBar, digest: Any = None
) -> None:
    """Write weights one after the other, those on the host from where they are."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write(descriptor, memoryview(header))
        for one, tensor in shard:
            content = bytes_of(on_host(tensor)).data
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
