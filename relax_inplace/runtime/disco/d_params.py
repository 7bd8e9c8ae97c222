"""A compiled transform on each worker, and each worker's weights: loaded, converted, saved."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...weight_names import read_names
from ..progress import ProgressOption
from ..transform import ModuleError
from .report import WorkersReport, report_of
from .tvm_disco import disco
from .workers import Kept, Workers

__all__ = [
    "DParams",
    "DTransform",
    "convert_params",
    "load_params",
    "load_transform",
    "save_params",
    "transform_params",
]

_OF_FILES = {"names": None, "extra": "error", "ties": False, "checksum": False}
_OF_A_CONVERSION = {"strict": False, "verify": False}


class DTransform(Kept):
    """A compiled transform, and its module, on each worker: see :func:`load_transform`.

    Attributes
    ----------
    name : str
    is_streamed : bool
    module : tvm.runtime.disco.DModule
        ``module["decode"]`` is a function of all workers.
    """

    def __init__(self, workers: Workers, number: int, name: str, is_streamed: bool):
        super().__init__(workers, number)
        self.name = name
        self.is_streamed = is_streamed
        self.module = disco.DModule(workers.value(number), workers.session)


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


def load_transform(
    session: Any, path: str | os.PathLike[str], device: Any = None, name: str | None = None
) -> DTransform:
    """Load a compiled module on each worker, and find its transform.

    Parameters
    ----------
    session : ThreadedSession, ProcessSession or SocketSession
    path : path
        Of the module on the workers' machines. ``{rank}`` is the worker's number.
    device : tvm.runtime.Device, optional
        By default each worker's own: what ``session.init_ccl`` has given it, or the CPU.
    name : str, optional
        Of the transform, where the module has several.

    Raises
    ------
    ModuleError
        The session is TVM's own; or the workers have loaded different transforms.
    WorkerError
        The module cannot be loaded: see :func:`~relax_inplace.runtime.load_transform`.
    """
    workers = Workers.of(session)
    request = {"do": "load_transform", "path": os.fspath(path), "name": name}
    request["device"] = None if device is None else str(device)
    number, said = workers.run("load_transform", request)
    made = DTransform(workers, number, said[0]["name"], said[0]["is_streamed"])
    for rank, one in enumerate(said):
        if one != said[0]:
            raise ModuleError.of(
                where=os.fspath(path),
                given=f"`{said[0]['name']}`, layout {said[0]['layout']}, on worker 0 and "
                f"`{one['name']}`, layout {one['layout']}, on worker {rank}",
                expected="the same transform on all",
                remedy="copy the same module to each machine",
            )
    return made


def load_params(
    session: Any,
    path: str | os.PathLike[str],
    transform: DTransform | None = None,
    *,
    shard_info: str | Mapping[str, Any] | None = None,
    progress: ProgressOption = None,
    **options: Any,
) -> DParams:
    """Have each worker load its part of a folder.

    Parameters
    ----------
    session : ThreadedSession, ProcessSession or SocketSession
    path : path
        On the workers' machines; see
        :func:`~relax_inplace.runtime.checkpoint.open_checkpoint`. ``{rank}`` is the worker's
        number. Of names such as ``w_shard-1-of-2`` each worker takes its own.
    transform : DTransform, optional
        Whose weights they are: then there must be those and no others, of its shapes and dtypes.
    shard_info : str or dict, optional
        How whole weights are cut, as TVM's ``ShardLoader`` has it. By default what the module's
        ``get_shard_info`` says.
    progress : bool or callable, optional
        Of all workers.
    **options
        ``names``, ``extra``, ``ties``, ``checksum`` as for
        :func:`~relax_inplace.runtime.load_params`; a callable cannot be sent.

    Raises
    ------
    WorkerError
        A worker's files are damaged, or are not what is asked for. Nothing stays loaded.
    WorkersInterrupted
    """
    return _made_of_files(
        "load", Workers.of(session), path, transform, shard_info, options, (), progress
    )


def transform_params(
    transform: DTransform,
    params: DParams,
    *,
    inputs: Sequence[Any] = (),
    progress: ProgressOption = None,
    **options: Any,
) -> DParams:
    """Convert each worker's weights in the memory that they occupy.

    Parameters
    ----------
    transform : DTransform
    params : DParams
        Of the same session.
    inputs : sequence
        What the function takes before the weights: a DRef, or what Disco can pass on.
    progress : bool or callable, optional
        Of all workers.
    **options
        ``strict``, ``verify`` as for :func:`~relax_inplace.runtime.transform_params`.

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
    if transform.workers is not params.workers:
        raise ValueError(
            "transform_params: the transform and the weights are of two sessions, expected one; "
            "load both in the same"
        )
    request = {"do": "transform", "transform": transform.number, "params": params.number}
    request["options"] = _checked("transform_params", options, _OF_A_CONVERSION)
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
    inputs: Sequence[Any] = (),
    progress: ProgressOption = None,
    **options: Any,
) -> DParams:
    """Load each worker's weights and convert them; one by one, if the transform is streamed.

    Weights in the files that this transform has converted are loaded, no more.

    Parameters
    ----------
    transform : DTransform
    path, shard_info
        As for :func:`load_params`.
    inputs, progress
        As for :func:`transform_params`.
    **options
        Of both.

    Raises
    ------
    WorkerError, WorkersInterrupted
    """
    _checked("convert_params", options, _OF_FILES | _OF_A_CONVERSION)
    of_files = {key: value for key, value in options.items() if key in _OF_FILES}
    others = {key: value for key, value in options.items() if key in _OF_A_CONVERSION}
    do, given = ("stream", inputs) if transform.is_streamed else ("load", ())
    params = _made_of_files(
        do, transform.workers, path, transform, shard_info, of_files, given, progress
    )
    if transform.is_streamed or params.is_converted:
        return params
    return transform_params(transform, params, inputs=inputs, progress=progress, **others)


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
    workers, folder = params.workers, os.fspath(folder)
    if workers.count > 1 and "{rank}" not in folder:
        raise ValueError(
            f"save_params: the folder {folder} would be that of all {workers.count} workers, "
            "expected one for each; put {rank} into its name"
        )
    request = {"do": "save", "params": params.number, "folder": folder, "format": format}
    number, _ = workers.run("save_params", request, progress=progress)
    workers.forget(number)


def _made_of_files(
    do: str,
    workers: Workers,
    path: str | os.PathLike[str],
    transform: DTransform | None,
    shard_info: str | Mapping[str, Any] | None,
    options: dict[str, Any],
    inputs: Sequence[Any],
    progress: ProgressOption,
) -> DParams:
    what = "load_params" if do == "load" else "convert_params"
    options = _checked(what, options, _OF_FILES)
    names = options["names"]
    if isinstance(names, (str, os.PathLike)):
        names = read_names(names)
    if callable(names):
        raise TypeError(
            f"{what}: names is a callable, expected what can be sent to workers; give a mapping or "
            "a sequence"
        )
    options["names"] = dict(names) if isinstance(names, Mapping) else names and list(names)
    if shard_info is not None and not isinstance(shard_info, str):
        shard_info = json.dumps(shard_info)
    request = {
        "do": do,
        "transform": None if transform is None else transform.number,
        "path": os.fspath(path),
        "shard_info": shard_info,
        "options": options,
    }
    number, said = workers.run(what, request, *inputs, progress=progress)
    return DParams(workers, number, said)


def _checked(what: str, options: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """All of the options that there are."""
    for name in options:
        if name not in known:
            raise TypeError(f"{what}: there is no option {name}, expected {', '.join(known)}")
    return known | options
