"""Each worker's weights: loaded, converted where they are, saved."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...weight_names import GivenNames, read_names
from ..progress import ProgressOption
from .d_transform import DTransform
from .report import WorkersReport, report_of
from .workers import Kept, Workers

__all__ = ["DParams", "convert_params", "load_params", "save_params", "transform_params"]


class DParams(Kept):
    """The weights of each worker, which is their only owner.

    They are freed when this object is gone, and every ``fields`` of it.

    Attributes
    ----------
    nbytes : list of int
        By rank.
    is_converted : bool
    report : WorkersReport or None
        What the last conversion took.
    """

    def __init__(self, workers: Workers, number: int, said: Sequence[dict[str, Any]]):
        super().__init__(workers, number)
        self._is(said)

    def _is(self, said: Sequence[dict[str, Any]]) -> None:
        self.nbytes = [one["nbytes"] for one in said]
        self.is_converted = all(one["is_converted"] for one in said)
        self.report: WorkersReport | None = report_of([one["report"] for one in said])
        self._count = said[0]["weights"]

    @property
    def fields(self) -> Any:
        """A DRef of the tuple, for a function of all workers: it refers to no weight by itself."""
        return self.workers.value(self.number)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        state = "converted" if self.is_converted else "as stored"
        return f"<DParams: {len(self)} weights on each of {self.workers.count} workers, {state}>"


def load_params(
    session: Any,
    path: str | os.PathLike[str],
    transform: DTransform | None = None,
    *,
    shard_info: str | Mapping[str, Any] | None = None,
    names: GivenNames | None = None,
    extra: str = "error",
    ties: bool = False,
    checksum: bool = False,
    progress: ProgressOption = None,
) -> DParams:
    """Have each worker load its part of a folder.

    Parameters
    ----------
    session : tvm.runtime.disco.Session
    path : path
        On the workers' machines; see :func:`~relax_inplace.runtime.open_source`. ``{rank}`` is the
        worker's number. Of names such as ``w_shard-1-of-2`` each worker takes its own.
    transform : DTransform, optional
        Whose weights they are: then there must be those and no others, of its shapes and dtypes.
    shard_info : str or dict, optional
        How whole weights are cut, as TVM's ``ShardLoader`` has it. By default what the module's
        ``get_shard_info`` says.
    names, extra, ties
        As for :func:`~relax_inplace.runtime.load_params`; a callable cannot be sent.
    checksum, progress
        As for :func:`~relax_inplace.runtime.load_params`; progress is that of all workers.

    Raises
    ------
    WorkerError
        A worker's files are damaged, or are not what is asked for. Nothing stays loaded.
    WorkersInterrupted
    """
    workers = Workers.of(session)
    request = _request("load", transform, path, shard_info, checksum, names, extra, ties)
    number, said = workers.run("load_params", request, progress=progress)
    return DParams(workers, number, said)


def transform_params(
    transform: DTransform,
    params: DParams,
    *,
    inputs: Sequence[Any] = (),
    strict: bool = False,
    verify: bool = False,
    progress: ProgressOption = None,
) -> DParams:
    """Convert each worker's weights in the memory that they occupy.

    Parameters
    ----------
    transform : DTransform
    params : DParams
        Of the same session.
    inputs : sequence
        What the function takes before the weights: a DRef, or what Disco can pass on.
    strict, verify, progress
        As for :func:`~relax_inplace.runtime.transform_params`.

    Returns
    -------
    DParams
        The same object, with a ``report``.

    Raises
    ------
    WorkerError
        A worker has failed; the others were stopped at their next weight. ``workers`` of the error
        says what is in each slot of each worker.
    WorkersInterrupted
        Ctrl-C, with the same.
    """
    request = {
        "do": "transform",
        "transform": transform.number,
        "params": params.number,
        "strict": strict,
        "verify": verify,
    }
    _require_same(transform, params)
    workers = params.workers
    number, said = workers.run("transform_params", request, *inputs, progress=progress)
    workers.forget(number)
    params._is(said)
    return params


def convert_params(
    transform: DTransform,
    path: str | os.PathLike[str],
    *,
    shard_info: str | Mapping[str, Any] | None = None,
    names: GivenNames | None = None,
    extra: str = "error",
    ties: bool = False,
    inputs: Sequence[Any] = (),
    strict: bool = False,
    verify: bool = False,
    checksum: bool = False,
    progress: ProgressOption = None,
) -> DParams:
    """Load each worker's weights and convert them; one by one, if the transform is streamed.

    Weights in the files that this transform has converted are loaded, no more.

    Parameters
    ----------
    transform : DTransform
    path, shard_info, names, extra, ties, checksum
        As for :func:`load_params`.
    inputs, strict, verify, progress
        As for :func:`transform_params`.

    Raises
    ------
    WorkerError, WorkersInterrupted
    """
    workers = transform.workers
    if transform.is_streamed:
        request = _request("stream", transform, path, shard_info, checksum, names, extra, ties)
        number, said = workers.run("convert_params", request, *inputs, progress=progress)
        return DParams(workers, number, said)
    params = load_params(
        *(transform.workers.session, path, transform),
        shard_info=shard_info,
        names=names,
        extra=extra,
        ties=ties,
        checksum=checksum,
        progress=progress,
    )
    if params.is_converted:
        return params
    return transform_params(
        transform, params, inputs=inputs, strict=strict, verify=verify, progress=progress
    )


def save_params(
    params: DParams,
    folder: str | os.PathLike[str],
    format: str = "tensor-cache",
    *,
    progress: ProgressOption = None,
) -> None:
    """Have each worker write its weights, their names and their mark into a folder of its own.

    Parameters
    ----------
    params : DParams
    folder : path
        On the workers' machines, with ``{rank}`` in it.
    format, progress
        As for :func:`~relax_inplace.runtime.save_params`.

    Raises
    ------
    ValueError
        The folder would be the same for several workers.
    WorkerError, WorkersInterrupted
    """
    workers = params.workers
    if workers.count > 1 and "{rank}" not in os.fspath(folder):
        raise ValueError(
            f"save_params: the folder {os.fspath(folder)} would be that of all {workers.count} "
            "workers, expected one for each; put {rank} into its name"
        )
    request = {
        "do": "save",
        "params": params.number,
        "folder": os.fspath(folder),
        "format": format,
    }
    number, _ = workers.run("save_params", request, progress=progress)
    workers.forget(number)


def _request(
    do: str,
    transform: DTransform | None,
    path: str | os.PathLike[str],
    shard_info: str | Mapping[str, Any] | None,
    checksum: bool,
    names: GivenNames | None,
    extra: str,
    ties: bool,
) -> dict[str, Any]:
    if shard_info is not None and not isinstance(shard_info, str):
        shard_info = json.dumps(shard_info)
    if isinstance(names, (str, os.PathLike)):
        names = read_names(names)
    if callable(names):
        raise TypeError(
            "load_params: names is a callable, expected what can be sent to workers; give a "
            "mapping or a sequence"
        )
    return {
        "do": do,
        "transform": None if transform is None else transform.number,
        "path": os.fspath(path),
        "shard_info": shard_info,
        "checksum": checksum,
        "names": dict(names) if isinstance(names, Mapping) else names and list(names),
        "extra": extra,
        "ties": ties,
    }


def _require_same(transform: DTransform, params: DParams) -> None:
    if transform.workers is not params.workers:
        raise ValueError(
            "transform_params: the transform and the weights are of two sessions, expected one; "
            "load both in the same"
        )
