"""What a worker does for its controller, and what it says of it.

A worker executes what it is asked one after the other, and an exception ends it; in worker 0, which
is a thread of the controller, it ends the controller (``src/runtime/extra/disco/disco_worker.cc``).
So what takes long or may fail is a task, which runs in a thread of its own, and whose failure is a
value. The worker stays free to say how far it is, and to be told to stop.

An object that a task makes, a transform or weights, is kept under the task's number until it is
forgotten. The numbers are the controller's; no two of its tasks have the same.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm.runtime.vm import VirtualMachine

from ...errors import StructuredError
from ...libinfo import load_library
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.error import refuse
from ..checkpoint.loading import load_params, load_selected, require_room
from ..checkpoint.open import open_checkpoint
from ..checkpoint.saving import save_params
from ..checkpoint.selection import select
from ..forget_locals import forget_locals
from ..params import Params
from ..progress import Progress
from ..report import Report
from ..shown import shown
from ..stream_params import stream_params
from ..transform import ModuleError, Transform, open_module, transform_in
from ..transform_params import transform_params
from .sharding import (
    ShardedReader,
    ShardInfo,
    is_presharded,
    numbered,
    read_shard_info,
    shard_info_of,
    sharded,
    shards_for,
)

__all__ = ["NAMES"]

load_library()  # also where TVM's own entry point imports this

_KEPT_SAMPLES = 64  # of memory over time, which a report may have thousands of


class _StoppedError(Exception):
    """The controller has said so."""


@dataclasses.dataclass
class _Task:
    """Something that a worker does; its outcome, when it is done, and what it has made."""

    request: dict[str, Any]
    rank: int
    workers: int
    own_device: Any
    inputs: tuple[Any, ...] = ()
    progress: Progress | None = None
    outcome: dict[str, Any] | None = None
    result: Any = None  # a transform, or weights
    is_stopped: bool = False

    @property
    def device(self) -> Any:
        named = self.request.get("device")
        return tvm.runtime.device(named) if named else self.own_device

    def told(self, progress: Progress) -> None:
        if self.is_stopped:
            raise _StoppedError("stopped")
        self.progress = progress

    def run(self) -> None:
        try:
            self.outcome = {"said": _DOES[self.request["do"]](self)}
        except BaseException as error:
            forget_locals(error)  # an error is no owner of weights
            self.outcome = {"error": _described(error), "slots": _slots_after(error, self)}
        finally:
            self.inputs = ()


# By the worker's number and the task's: worker threads of one process have the same numbers.
_tasks: dict[tuple[int, int], _Task] = {}


# -- what a worker can be asked -------------------------------------------------------------------


def _begin(number: int, request: str, *inputs: Any) -> None:
    rank, workers, device = map(_worker, ("worker_rank", "world_size", "device"))
    task = _Task(json.loads(request), rank, workers, device, inputs)
    _tasks[task.rank, number] = task
    threading.Thread(target=task.run, name=f"worker {task.rank}").start()


def _state(number: int) -> str:
    task = _tasks[_worker("worker_rank"), number]
    outcome = task.outcome  # first: the progress is the last then
    progress = None if task.progress is None else dataclasses.asdict(task.progress)
    return json.dumps({"progress": progress, "outcome": outcome})


def _stop(number: int) -> None:
    _tasks[_worker("worker_rank"), number].is_stopped = True


def _value(number: int) -> Any:
    result = _tasks[_worker("worker_rank"), number].result
    return result.fields if isinstance(result, Params) else result.vm.module


def _forget(number: int) -> None:
    del _tasks[_worker("worker_rank"), number]


def _worker(what: str) -> Any:
    """What Disco says of the worker whose thread this is."""
    return tvm_ffi.get_global_func(f"runtime.disco.{what}")()


NAMES: dict[str, str] = {}
for _function in (_begin, _state, _stop, _value, _forget):
    _name = _function.__name__[1:]
    NAMES[_name] = f"relax_inplace.disco.{_name}"
    tvm_ffi.register_global_func(NAMES[_name], _function, override=True)


# -- what is done ---------------------------------------------------------------------------------


def _made_by(task: _Task, what: str) -> Any:
    """The transform or the weights that an earlier task has made."""
    return _tasks[task.rank, task.request[what]].result


def _load_transform(task: _Task) -> dict[str, Any]:
    path, name = _path(task, "path"), task.request["name"]
    vm = VirtualMachine(_library(path), task.device)
    task.result = transform = transform_in(vm, name, task.device, path)
    return {
        "name": transform.name,
        "layout": transform.layout,
        "is_streamed": transform.is_streamed,
    }


def _library(path: str) -> Any:
    """The library at a path; one for all workers of a process, as TVM's own Disco has it."""
    try:
        found = os.stat(path)
    except OSError:
        return open_module(path)  # which says what is wrong
    key = (os.path.realpath(path), found.st_ino, found.st_size, found.st_mtime_ns)
    with _loading:
        if key not in _libraries:
            _libraries[key] = open_module(path)
        return _libraries[key]


_libraries: dict[tuple[Any, ...], Any] = {}
_loading = threading.Lock()


def _load(task: _Task) -> dict[str, Any]:
    transform = _transform_for(task)
    device = task.device if transform is None else transform.device
    source, info = _opened(task, transform)
    options = task.request["options"]
    options.pop("ties")
    if not info:
        task.result = load_params(source, device, transform, progress=task.told, **options)
    else:
        checksum = options.pop("checksum")
        module = None if transform is None else transform.vm.module
        selection = select(sharded(source, info, task.workers), transform, **options)
        require_room(source, selection, device, checksum)
        with ShardedReader(source, device, checksum, info, module, task.rank) as reader:
            task.result = load_selected(source, selection, reader, task.told)
    return _said_of(task.result)


def _transform(task: _Task) -> dict[str, Any]:
    params = _made_by(task, "params")
    options = {"inputs": task.inputs, "progress": task.told, **task.request["options"]}
    transform_params(_made_by(task, "transform"), params, **options)
    return _said_of(params)


def _stream(task: _Task) -> dict[str, Any]:
    transform = _made_by(task, "transform")
    source, info = _opened(task, transform)
    if info:
        raise ModuleError.of(
            where=f"convert_params, worker {task.rank}",
            given=f"`{transform.name}`, which asks for its weights one by one, and shard info",
            expected="weights that are sharded in their files",
            remedy="shard them beforehand, or compile the transform without lazy=True",
        )
    options = {"inputs": task.inputs, "progress": task.told, **task.request["options"]}
    options.pop("ties")
    task.result = stream_params(transform, source, transform.device, **options)
    return _said_of(task.result)


def _save(task: _Task) -> dict[str, Any]:
    folder, format = _path(task, "folder"), task.request["format"]
    save_params(_made_by(task, "params"), folder, format, progress=task.told)
    return {}


_DOES: dict[str, Callable[[_Task], dict[str, Any]]] = {
    "load_transform": _load_transform,
    "load": _load,
    "transform": _transform,
    "stream": _stream,
    "save": _save,
}


def _transform_for(task: _Task) -> Transform | None:
    return None if task.request["transform"] is None else _made_by(task, "transform")


def _path(task: _Task, key: str) -> str:
    return str(task.request[key]).replace("{rank}", str(task.rank))


def _opened(task: _Task, transform: Transform | None) -> tuple[Checkpoint, ShardInfo]:
    """The worker's part of a folder, and how those of its weights are cut that are whole there."""
    whole = open_checkpoint(_path(task, "path"), ties=task.request["options"]["ties"])
    given: str | None = task.request["shard_info"]
    if given is not None and is_presharded(whole):
        refuse(
            shown(whole.path),
            "shards, and shard info",
            "weights that are whole, or no shard info",
            "leave out shard_info: these weights are sharded already",
        )
    source = shards_for(whole, task.rank, task.workers)
    if transform is not None and transform.weights is not None and transform.params is not None:
        types = transform.weights if source.provenance is None else transform.params
        source = numbered(source, [one.name for one in types])
    is_whole = source.provenance is None and not is_presharded(whole)
    if given is None and transform is not None and is_whole:
        given = shard_info_of(transform.vm.module)
    return source, {} if given is None else read_shard_info(given)


# -- what is said of it ---------------------------------------------------------------------------


def _said_of(params: Params) -> dict[str, Any]:
    report = None if params.report is None else _fields_of(params.report)
    return {
        "weights": len(params),
        "nbytes": params.nbytes,
        "is_converted": params.provenance is not None,
        "report": report,
    }


def _fields_of(report: Report) -> dict[str, Any]:
    samples = report.samples
    step = -(-len(samples) // _KEPT_SAMPLES)
    kept = [*samples[:-1:step], samples[-1]]
    return dataclasses.asdict(dataclasses.replace(report, samples=kept))


def _described(error: BaseException) -> dict[str, Any]:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return {
        "kind": type(error).__name__,
        "message": lines[0] if lines else type(error).__name__,
        "fields": error.fields if isinstance(error, StructuredError) else {},
        "is_stop": isinstance(error, _StoppedError) or isinstance(error.__cause__, _StoppedError),
    }


def _slots_after(error: BaseException, task: _Task) -> dict[str, list[str]] | None:
    """What is in each slot after a failed conversion; None if it was none."""
    found: dict[str, list[str]] = {"converted": [], "original": [], "lost": []}
    if all(hasattr(error, one) for one in found):
        return {one: list(getattr(error, one)) for one in found}
    if task.request["do"] != "transform":
        return None
    params = _made_by(task, "params")  # it was refused, or was verified afterwards
    for name, value in params.items():
        state = "converted" if params.provenance is not None else "original"
        found["lost" if value is None else state].append(name)
    return found
