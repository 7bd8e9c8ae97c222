"""stream_params: read each weight when its step comes, and convert it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import tvm_ffi

from ..weight_names import GivenNames
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.open import open_checkpoint
from .checkpoint.prefetching import Prefetcher
from .checkpoint.reading import CheckpointReader
from .checkpoint.selection import select
from .checkpoint.tied_weights import require_equal
from .convert.observe import convert, require_memory
from .convert.own import Ownership
from .device import device_of
from .params import Params
from .progress import ProgressOption
from .provenance import Provenance
from .tensor_info import dimensions_of
from .transform import ModuleError, Transform
from .transform_params import ConvertedError

__all__ = ["stream_params"]


def stream_params(
    function: Any,
    path: str | os.PathLike[str] | Checkpoint,
    device: Any,
    *,
    names: GivenNames | None = None,
    extra: str = "error",
    ties: bool = False,
    inputs: Sequence[Any] = (),
    checksum: bool = False,
    progress: ProgressOption = None,
) -> Params:
    """Load weights one by one, and convert each as it comes.

    While one weight is converted, the next one is read, and no more. So the peak is the converted
    weights, the tensors of one step, and one weight. On the host, a weight that is only moved is
    read on the way to its new place, and passes through memory once.

    Parameters
    ----------
    function : Transform, VirtualMachine or module
        A transform that was compiled with ``lazy=True``.
    path : path or Checkpoint
        See :func:`~relax_inplace.runtime.checkpoint.open_checkpoint`.
    device : tvm.runtime.Device or str
        The device of the weights.
    inputs : sequence
        The function's arguments before the weights.
    names, extra, ties, checksum, progress
        As for :func:`~relax_inplace.runtime.load_params`.

    Returns
    -------
    Params
        The converted weights, with a mark and a ``report``.

    Raises
    ------
    CheckpointError
        The files are damaged, or are not those of the module. No weight has been read.
    ConvertedError
        The files hold converted weights.
    TransformError
        The conversion failed. The originals are in the files; ``params`` of the error holds the
        finished weights.
    """
    transform, device = Transform.of(function), device_of(device)
    if not transform.is_streamed or transform.weights is None or transform.params is None:
        raise ModuleError.of(
            where="stream_params",
            given=f"`{transform.name}`, which takes its weights all at once",
            expected="the module of a transform that asks for them one by one",
            remedy="call transform_params, or compile it with lazy=True",
        )
    source = open_checkpoint(path, ties=ties)
    selection = select(source, transform, names, extra)
    if selection.provenance is not None:
        raise ConvertedError.of(
            given=f"weights that `{selection.provenance.transform}` has converted, in {path}",
            expected="weights as they were stored",
            remedy="load them with load_params, and use them as they are",
        )
    require_equal(source, selection.tied)
    records = selection.records
    given = dict(zip((one.name for one in transform.weights), records, strict=True))
    transform = transform.with_dimensions(dimensions_of(given, transform.weights))
    assert transform.params is not None
    require_memory(transform, 0, device)
    slots = 1 + max(int(one.slot.split(".")[0]) for one in transform.params)
    params = Params(tvm_ffi.Array([None] * slots), source=source.fingerprint)
    stored = [record.name for record in selection.records]
    ownership = Ownership(params, transform)
    try:
        with (
            ownership,
            CheckpointReader(source, device, checksum) as reader,
            Prefetcher(reader, stored, transform.loads, transform.moved) as get_weight,
        ):
            report = convert(
                *(transform, ownership, [*inputs, get_weight]),
                device=device,
                progress=progress,
                doing="convert",
            )
            provenance = Provenance(transform.name, transform.layout, source.fingerprint)
            params.ignored = tuple(selection.ignored)
            params._read_as.update(selection.read_as)
            params._become(params._names_of(transform.params), provenance)
            params.report = report
            ownership.is_done = True
        return params
    except BaseException as error:
        raise ownership.named(error)  # noqa: B904 (mostly the same one)
