"""convert_params: from files to converted weights in one call, with a cache.

The key of a cached result is a digest of the source's fingerprint (names, sizes and times of the
files, and their own metadata), the transform's name and layout, its target, the inputs, and the
versions of TVM and of this package.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tvm_ffi

from ..weight_names import GivenNames
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.error import CheckpointError
from .checkpoint.loading import load_params
from .checkpoint.open import open_checkpoint
from .checkpoint.saving import SaveError, save_params
from .checkpoint.selection import Selection, select
from .device import device_of
from .memory_sampler import MemorySampler
from .params import Params
from .progress import ProgressOption
from .report import Report
from .stream_params import stream_params
from .tensor_copy import digest_of
from .transform import ModuleError, Transform
from .transform_params import ConvertedError, transform_params

__all__ = ["convert_params"]

_MADE_BY = ("relax-inplace", "apache-tvm")


def convert_params(
    function: Any,
    path: str | os.PathLike[str] | Checkpoint,
    device: Any,
    *,
    cache: str | os.PathLike[str] | None = None,
    format: str = "tensor-cache",
    names: GivenNames | None = None,
    extra: str = "error",
    ties: bool = False,
    inputs: Sequence[Any] = (),
    strict: bool = False,
    verify: bool = False,
    checksum: bool = False,
    progress: ProgressOption = None,
) -> Params:
    """Load weights and convert them, or load the result of an earlier conversion.

    Parameters
    ----------
    function : Transform, VirtualMachine or module
        A compiled transform. If it is streamed, the weights are: see :func:`stream_params`.
    path : path or Checkpoint
        See :func:`~relax_inplace.runtime.checkpoint.open_checkpoint`. Weights there that this
        transform has converted are only loaded.
    device : tvm.runtime.Device or str
        The device of the weights.
    cache : str or path, optional
        A folder for the result. A result there, of the same files and the same transform, is
        loaded; the weights are then not converted. Any other result is replaced.
    format : str
        The format of the cache: see :func:`~relax_inplace.runtime.save_params`.
    names, extra, ties
        As for :func:`load_params`.
    inputs, strict, verify
        As for :func:`transform_params`.
    checksum : bool
        As for :func:`load_params`.
    progress : bool or callable, optional
        As for :func:`transform_params`.

    Returns
    -------
    Params
        The weights, with a mark. If nothing was converted, the ``report`` names the folder that
        they were read from.

    Raises
    ------
    ModuleError, CheckpointError, ConvertedError, HeldWeightsError, TransformError
        As :func:`load_transform`, :func:`load_params` and :func:`transform_params`.
    ValueError
        The cache is the folder of the originals.
    TypeError
        With a cache: an input is neither tensor, number, text nor shape.

    Warns
    -----
    UserWarning
        The result could not be saved. It is returned nevertheless.
    """
    transform, device = Transform.of(function), device_of(device)
    if transform.weights is None:
        raise ModuleError.of(
            where="convert_params",
            given="a function without its module",
            expected="a transform with its module, which describes the weights",
            remedy="give the virtual machine, or the result of load_transform",
        )
    if verify and transform.is_streamed:
        raise ModuleError.of(
            where="convert_params(verify=True)",
            given=f"`{transform.name}`, whose weights are never resident",
            expected="a transform of resident weights",
            remedy="compile it without lazy=True, with reference=True",
        )
    source = open_checkpoint(path, ties=ties)
    if source.provenance is not None:
        if inputs:
            raise ConvertedError.of(
                given=f"weights that `{source.provenance.transform}` converted, "
                "maybe with other inputs",
                expected="weights as they were stored",
                remedy="load them with load_params to use them as they are",
            )
        return _as_converted(
            *(transform, path, device, checksum, progress), names=names, extra=extra
        )
    if cache is not None and os.path.realpath(cache) == os.path.realpath(source.path.parent):
        raise ValueError(
            f"convert_params: {cache} holds the original weights, which a cache there would "
            "replace; give it a folder of its own"
        )
    selection = select(source, transform, names, extra)
    key = "" if cache is None else _key(source, transform, selection, inputs)
    if cache is not None and _key_of(cache) == key:
        try:
            return _as_converted(transform, cache, device, checksum, progress, names=names)
        except CheckpointError as error:
            warnings.warn(f"{error}. The weights are converted again", stacklevel=2)
    if transform.is_streamed:
        params = stream_params(
            *(transform, source, device),
            inputs=inputs,
            names=names,
            extra=extra,
            checksum=checksum,
            progress=progress,
        )
    else:
        params = load_params(
            source,
            device,
            transform,
            checksum=checksum,
            progress=progress,
            names=names,
            extra=extra,
        )
        transform_params(
            transform, params, inputs=inputs, strict=strict, verify=verify, progress=progress
        )
    if cache is not None:
        try:
            save_params(params, cache, format, key=key, progress=progress)
        except SaveError as error:
            warnings.warn(f"the converted weights were not saved: {error}", stacklevel=2)
    return params


def _as_converted(
    transform: Transform,
    path: Any,
    device: Any,
    checksum: bool,
    progress: ProgressOption,
    **chosen: Any,
) -> Params:
    with MemorySampler(device) as memory:
        start = time.perf_counter()
        params = load_params(
            path, device, transform, checksum=checksum, progress=progress, **chosen
        )
        seconds = time.perf_counter() - start
    params.report = Report(
        transform.name,
        seconds,
        0,
        0,
        0,
        params.nbytes,
        None,
        memory.samples,
        memory.peak,
        read_from=str(path.path if isinstance(path, Checkpoint) else Path(path)),
    )
    return params


def _key_of(cache: str | os.PathLike[str]) -> str | None:
    """The key of a cached result; None if there is no readable one."""
    try:
        provenance = open_checkpoint(cache).provenance
    except (OSError, CheckpointError):
        return None
    return provenance.key if provenance is not None else None


def _key(
    source: Checkpoint, transform: Transform, selection: Selection, inputs: Sequence[Any]
) -> str:
    made_by = [metadata.version(name) for name in _MADE_BY]
    parts = [source.fingerprint, transform.name, transform.layout, transform.target, *made_by]
    parts += [*selection.names, *(_text_of(one) for one in inputs)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _text_of(value: Any) -> str:
    """A text that differs for different inputs."""
    if isinstance(value, tvm_ffi.Tensor):
        return f"{value.dtype}{list(map(int, value.shape))} {digest_of(value).hex()}"
    if isinstance(value, (bool, int, float, str, tvm_ffi.Shape)):
        return repr(value)
    raise TypeError(
        f"convert_params: an input is of type {type(value).__name__}: a result for it cannot be "
        "cached; leave out cache, or give tensors, numbers, text or shapes"
    )
