"""A worker: the entry point of its process, and what its controller can ask of it.

A worker executes what it is asked one after the other, and an exception ends it; in worker 0, which
is a thread of the controller, it ends the controller (``src/runtime/extra/disco/disco_worker.cc``).
So what takes long or may fail is a task, which runs in a thread of its own, and whose failure is a
value. The worker stays free to say how far it is, and to be told to stop.

A task is an object in a register of the worker, as any value of Disco: with the controller's `DRef`
goes the task, and the transform or the weights that it has made.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import tvm
import tvm_ffi
from tvm.runtime.vm import VirtualMachine

from ... import runtime
from ...libinfo import load_library
from ..forget_locals import forget_locals
from ..params import Params
from ..progress import Progress
from ..transform import Transform, open_module, transform_in
from .sharding import part_of
from .tvm_disco import disco  # noqa: F401  registers what TVM's own sessions ask

__all__ = ["PREFIX", "Task", "one_line", "serve"]

load_library()

PREFIX = "relax_inplace.disco."  # of what a worker can be asked
_place: list[Any] = []  # of a node's worker: what TVM's SocketSession tells its workers


def serve(arguments: Sequence[str]) -> NoReturn:
    """Be a worker until the session ends, and end the process.

    The arguments are numbers: its own, those of workers and of groups, two file descriptors; and of
    a worker of another machine those of nodes, of its own, of groups, and of workers per node.
    """
    numbers = list(map(int, arguments))
    _place.extend(numbers[5:])
    # Ctrl-C in a terminal reaches every process of it; what becomes of a call the controller says.
    signal.signal(signal.SIGINT, signal.SIG_DFL if _place else signal.SIG_IGN)
    status = 1
    try:
        tvm_ffi.get_global_func("runtime.disco.WorkerProcess")(*numbers[:5])
        status = 0
    except Exception as error:  # of what the controller's program has called
        print(f"worker {numbers[0]}: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a conversion that is still running would be waited for


class _StoppedError(Exception):
    """The controller has said so."""


class Task:
    """Something that a worker does; its outcome, when it is done, and what it has made."""

    def __init__(self, do: str, request: dict[str, Any], given: Sequence[Any]):
        asked = (f"runtime.disco.{one}" for one in ("worker_rank", "world_size", "device"))
        self.rank, self.workers, self.device = (tvm_ffi.get_global_func(one)() for one in asked)
        self._do, self._request, self._given = do, request, given
        self.progress: Progress | None = None
        self.outcome: dict[str, Any] | None = None
        self.result: Any = None
        self.is_stopped = False

    def _told(self, progress: Progress) -> None:
        if self.is_stopped:
            raise _StoppedError("stopped")
        self.progress = progress

    def run(self) -> None:
        """Do it."""
        try:
            self.result = self._made()
            self.outcome = {"status": "done", **_said_of(self.result)}
        except BaseException as error:
            forget_locals(error)  # an error is no owner of weights
            self.outcome = _failed(error)
        finally:
            self._given = ()

    def _made(self) -> Any:
        given = [one.result if isinstance(one, Task) else one for one in self._given]
        path = self._request.pop("path", "").replace("{rank}", str(self.rank))
        options = {"progress": self._told, **self._request}
        match self._do:
            case "load_transform":
                return self._transform(path, **self._request)
            case "load_params" | "convert_params":
                return self._params(path, *given, **options)
            case "save_params":
                return runtime.save_params(given[0], path, **options)
        transform, params, *inputs = given
        return getattr(runtime, self._do)(transform, params, inputs=inputs, **options)

    def _transform(self, path: str, device: str | None, name: str | None) -> Transform:
        on = self.device if device is None else tvm.runtime.device(device)
        found = os.stat(path) if os.path.exists(path) else None
        state = found and (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        with _loading:
            library = _library(os.path.realpath(path), state)
        return transform_in(VirtualMachine(library, on), name, on, path)

    def _params(
        self,
        path: str,
        transform: Transform | None,
        *inputs: Any,
        ties: bool = False,
        **options: Any,
    ) -> Params:
        """Load weights; and convert them, if that is asked for, and they come one by one."""
        how = {name: options.pop(name) for name in ("strict", "verify") if name in options}
        whole = runtime.checkpoint.open_checkpoint(path, ties=ties)
        source = part_of(whole, self.rank, self.workers, transform)
        if transform is None:
            return runtime.load_params(source, self.device, **options)
        on = transform.device
        if self._do == "convert_params" and (
            transform.is_streamed or source.provenance is not None
        ):
            return runtime.convert_params(transform, source, on, inputs=inputs, **how, **options)
        return runtime.load_params(source, on, transform, **options)


@functools.cache
def _library(path: str, _state: object) -> Any:
    """The library of that state; one for all workers of a process, as TVM's own Disco has it."""
    return open_module(path)


_loading = threading.Lock()


def _said_of(made: Any) -> dict[str, Any]:
    if isinstance(made, Transform):
        return {"name": made.name}
    if made is None:
        return {}
    report = None if made.report is None else dataclasses.asdict(made.report)
    said = {"count": len(made), "nbytes": made.nbytes, "is_converted": made.provenance is not None}
    return {**said, "report": report}


def _failed(error: BaseException) -> dict[str, Any]:
    is_stop = isinstance(error, _StoppedError) or isinstance(error.__cause__, _StoppedError)
    said = {"status": "stopped" if is_stop else "failed", "kind": type(error).__name__}
    slots = [name for name in ("converted", "original", "lost") if hasattr(error, name)]
    return {**said, "message": one_line(error), **{name: getattr(error, name) for name in slots}}


def one_line(error: BaseException) -> str:
    """What an error says, in a line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# -- what a worker can be asked -------------------------------------------------------------------


def _begin(do: str, request: str, *given: Any) -> Task:
    task = Task(do, json.loads(request), given)
    threading.Thread(target=task.run, name=f"worker {task.rank}").start()
    return task


def _state(task: Task) -> str:
    outcome = task.outcome  # first: the progress is the last then
    progress = None if task.progress is None else dataclasses.asdict(task.progress)
    return json.dumps({"progress": progress, "outcome": outcome})


def _stop(task: Task) -> None:
    task.is_stopped = True


def _value(task: Task) -> Any:
    made = task.result
    return made.fields if isinstance(made, Params) else made.vm.module


def _join() -> None:
    """Give a node's worker its rank among all, as TVM's SocketSession does."""
    if _place:
        tvm_ffi.get_global_func("runtime.disco.socket_session_init_workers")(*_place)


for _function in (_begin, _state, _stop, _value, _join):
    tvm_ffi.register_global_func(PREFIX + _function.__name__[1:], _function, override=True)
