"""A compiled transform on each worker."""

from __future__ import annotations

import os
from typing import Any

from ..transform import ModuleError
from .tvm_disco import disco
from .workers import Kept, Workers

__all__ = ["DTransform", "load_transform"]


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


def load_transform(
    session: Any, path: str | os.PathLike[str], device: Any = None, name: str | None = None
) -> DTransform:
    """Load a compiled module on each worker, and find its transform.

    Parameters
    ----------
    session : tvm.runtime.disco.Session
        A :class:`ThreadedSession`, :class:`ProcessSession` or :class:`SocketSession` of this
        package.
    path : path
        Of the module on the workers' machines. ``{rank}`` is the worker's number.
    device : tvm.runtime.Device, optional
        By default each worker's own: what ``session.init_ccl`` has given it, or the CPU.
    name : str, optional
        Of the transform, where the module has several.

    Raises
    ------
    ModuleError
        The session's workers cannot be asked; or they have loaded different transforms.
    WorkerError
        The module cannot be loaded: see :func:`~relax_inplace.runtime.load_transform`.
    """
    workers = Workers.of(session)
    request = {"do": "load_transform", "path": os.fspath(path), "name": name}
    if device is not None:
        request["device"] = str(device)
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
