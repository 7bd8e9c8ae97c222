"""A compiled transform on each worker, and each worker's weights: loaded, converted, saved.

Options are those of the functions of the same names in :mod:`relax_inplace.runtime`, as far as they
can be sent to workers: ``names`` is no callable. Paths are on the workers' machines, and ``{rank}``
in one is the worker's number. Progress is that of all workers.

Each function raises :class:`WorkerError` if a worker fails: the others are stopped at their next
weight, and what is in the slots of each is in ``workers`` of the error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..convert.held import HeldWeight
from ..memory_sampler import Sample
from ..report import Report
from .sessions import Session
from .tvm_disco import disco

__all__ = [
    "DParams",
    "DTransform",
    "convert_params",
    "load_params",
    "load_transform",
    "restore_params",
    "save_params",
    "transform_params",
]

_Path = str | os.PathLike[str]


class DTransform:
    """A compiled transform, and its module, on each worker: see :func:`load_transform`.

    Attributes
    ----------
    name : str
    module : tvm.runtime.disco.DModule
        ``module["decode"]`` is a function of all workers.
    """

    def __init__(self, session: Session, task: Any, said: Sequence[Mapping[str, Any]]):
        self._session, self._task = session, task
        self.name = said[0]["name"]
        self.module = disco.DModule(session._ask("value", task), session)


class DParams:
    """The weights of each worker, which is their only owner.

    They are freed when this object is gone, and every ``fields`` of it.

    Attributes
    ----------
    nbytes : list of int
        By rank.
    is_converted : bool
    reports : list of Report
        What the last conversion took on each worker, by rank; empty if there was none. Memory is
        that of the worker's process.
    """

    def __init__(self, session: Session, task: Any, said: Sequence[Mapping[str, Any]]):
        self._session, self._task = session, task
        self._is(said)

    def _is(self, said: Sequence[Mapping[str, Any]]) -> None:
        self._count = said[0]["count"]
        self.nbytes = [one["nbytes"] for one in said]
        self.is_converted = all(one["is_converted"] for one in said)
        self.reports = [_report(**one["report"]) for one in said if one["report"] is not None]

    @property
    def fields(self) -> Any:
        """A DRef of the tuple, for a function of all workers: it refers to no weight by itself."""
        return self._session._ask("value", self._task)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        state = "converted" if self.is_converted else "as stored"
        return f"<DParams: {len(self)} weights on each of {len(self.nbytes)} workers, {state}>"


def load_transform(
    session: Any, path: _Path, device: Any = None, name: str | None = None
) -> DTransform:
    """Load a compiled module on each worker, and find its transform.

    Parameters
    ----------
    session : ThreadedSession, ProcessSession or SocketSession
    path : path
        Of the module.
    device : tvm.runtime.Device, optional
        By default each worker's own: what ``session.init_ccl`` has given it, or the CPU.
    name : str, optional
        Of the transform, where the module has several.
    """
    on = None if device is None else str(device)
    run = _checked(session)._run
    return DTransform(session, *run("load_transform", path=path, device=on, name=name))


def load_params(
    session: Any, path: _Path, transform: DTransform | None = None, **options: Any
) -> DParams:
    """Have each worker load its part of a folder: see docs/disco.md, "Which part is a worker's".

    Parameters
    ----------
    session : ThreadedSession, ProcessSession or SocketSession
    path : path
        See :func:`~relax_inplace.runtime.checkpoint.open_checkpoint`.
    transform : DTransform, optional
        Whose weights they are: then there must be those and no others, of its shapes and dtypes.
    **options
        ``names``, ``extra``, ``ties``, ``checksum``, ``progress``.
    """
    task = None if transform is None else _task_in(session, transform)
    return DParams(session, *_checked(session)._run("load_params", task, path=path, **options))


def convert_params(
    transform: DTransform, path: _Path, *, inputs: Sequence[Any] = (), **options: Any
) -> DParams:
    """Load each worker's weights and convert them; one by one, if the transform is streamed.

    Weights in the files that this transform has converted are loaded, no more. Parameters are those
    of :func:`load_params` and :func:`transform_params`.
    """
    given = (transform._task, *inputs)
    made = transform._session._run("convert_params", *given, path=path, **options)
    params = DParams(transform._session, *made)
    if params.is_converted:
        return params
    how = {name: options[name] for name in ("strict", "verify", "progress") if name in options}
    return transform_params(transform, params, inputs=inputs, **how)


def transform_params(
    transform: DTransform, params: DParams, *, inputs: Sequence[Any] = (), **options: Any
) -> DParams:
    """Convert each worker's weights in the memory that they occupy.

    Parameters
    ----------
    transform : DTransform
    params : DParams
        Of the same session.
    inputs : sequence
        What the function takes before the weights: a DRef, or what Disco can pass on.
    **options
        ``strict``, ``verify``, ``progress``.

    Returns
    -------
    DParams
        The same object, with ``reports``.
    """
    return _changed("transform_params", transform, params, inputs, options)


def restore_params(
    transform: DTransform, params: DParams, *, inputs: Sequence[Any] = (), **options: Any
) -> DParams:
    """Convert each worker's weights back; parameters as for :func:`transform_params`."""
    return _changed("restore_params", transform, params, inputs, options)


def save_params(params: DParams, folder: _Path, **options: Any) -> None:
    """Have each worker write its weights, their names and their mark into a folder of its own.

    Parameters
    ----------
    params : DParams
    folder : path
        With ``{rank}`` in it, if there are several workers.
    **options
        ``format``, ``progress``.
    """
    if len(params.nbytes) > 1 and "{rank}" not in os.fspath(folder):
        raise ValueError(
            f"save_params: the folder {folder} would be that of all {len(params.nbytes)} workers, "
            "expected one for each; put {rank} into its name"
        )
    params._session._run("save_params", params._task, path=folder, **options)


def _checked(session: Any) -> Session:
    if not isinstance(session, Session):
        given = f"{type(session).__module__}.{type(session).__name__}"
        raise TypeError(
            f"expected a session of relax_inplace.runtime.disco, but got a {given}: TVM's own "
            "workers lack what is asked of them, and end"
        )
    return session


def _task_in(session: Session, transform: DTransform) -> Any:
    """Its task; what another session has under that number is something else."""
    if transform._session is not session:
        raise ValueError(f"`{transform.name}` is of another session; load it in this one")
    return transform._task


def _changed(
    do: str, transform: DTransform, params: DParams, inputs: Sequence[Any], options: dict[str, Any]
) -> DParams:
    session = params._session
    params._is(session._run(do, _task_in(session, transform), params._task, *inputs, **options)[1])
    return params


def _report(samples: Any, peak_sample: Any, held: Any, **fields: Any) -> Report:
    return Report(
        **fields,
        samples=[Sample(**one) for one in samples],
        peak_sample=Sample(**peak_sample),
        held=[HeldWeight(**one) for one in held],
    )
