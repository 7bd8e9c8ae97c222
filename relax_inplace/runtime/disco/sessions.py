"""TVM's sessions, with workers that have the builtins, and whose death the controller survives.

The controller asks each worker every few milliseconds how far its task is: the worker's own thread
is free to answer, as the task runs in another one (`worker.py`). So TVM's own messages are all that
is needed, for threads, processes and nodes; progress adds up here; and a worker that has gone is
noticed at the next question, whose answer is the end of a file.

A session lasts until it is shut down, or the program ends: TVM's destructor waits for the workers
that are threads of this program, and keeps them from running Python meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import secrets
import sys
import time
import weakref
from collections.abc import Sequence
from socket import socket
from typing import Any

import tvm_ffi

from ..progress import Progress, ProgressBar, ProgressOption, progress_bar
from . import nodes
from .processes import WorkerProcess, worker_command
from .tvm_disco import disco
from .worker import PREFIX, one_line

__all__ = [
    "ProcessSession",
    "Session",
    "SocketSession",
    "ThreadedSession",
    "WorkerError",
    "WorkersInterrupted",
]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05  # seconds between two questions
_PATIENCE = 5.0  # seconds that workers have to stop, once one has failed

_running: list[Session] = []
_all: weakref.WeakSet[Session] = weakref.WeakSet()  # also those that are shut down, and referred to

# Of a worker after a call has failed. What has ended comes first: others may have failed because of
# it. Who is running was told to stop, and has not yet.
_STATUS = ("ended", "failed", "stopped", "running", "done", "not asked")
_Outcomes = dict[int, dict[str, Any]]  # by rank: how workers have ended their task


class _Failure:
    """What a failed call left.

    Attributes
    ----------
    rank : int or None
        The worker that failed; None if it was the caller's ``progress``, or Ctrl-C.
    workers : list of dict
        By rank: its ``status`` (`_STATUS`), the ``kind`` of its error and the ``message``; and of a
        conversion the names of weights that are ``converted``, ``original`` and ``lost``.
    """

    rank: int | None
    workers: list[dict[str, Any]]


class WorkerError(RuntimeError, _Failure):
    """A call has failed on a worker."""


class WorkersInterrupted(KeyboardInterrupt, _Failure):
    """A call was interrupted by Ctrl-C, and the workers have been stopped."""


class Session(disco.Session):
    """What all have: tasks of the workers, and an end that comes once."""

    __slots__ = ("__dict__", "__weakref__")
    is_shut_down = False

    def _begin(self, processes: dict[int, WorkerProcess]) -> None:
        self.processes = processes  # of the workers that are no threads of this one, by rank
        self._ended: _Outcomes = {}
        _running.append(self)
        _all.add(self)

    def shutdown(self) -> None:
        """Shut the session down, and wait for its workers."""
        if self.is_shut_down:
            return
        with contextlib.suppress(Exception):  # a worker may have gone
            for rank in set(range(self.num_workers)) - self.processes.keys():
                self._sync_worker(rank)
        self.is_shut_down = True
        super().shutdown()
        _running.remove(self)
        for one in self.processes.values():
            one.finish()

    def _run(
        self,
        do: str,
        *given: Any,
        progress: ProgressOption = None,
        **request: Any,
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Have each worker do something (`worker.py`): the task, and what each says of it.

        What is given Disco can pass on, and the rest JSON; a task stands for what it has made.
        """
        if self.is_shut_down:  # TVM would wait for an answer for ever
            raise RuntimeError(f"{do}: the session has been shut down; make a new one")
        text = json.dumps(request, default=os.fspath)
        outcomes = dict(self._ended)
        task = None
        # While workers run Python in threads of this process, these collect no garbage: a `DRef` in
        # it would send a message when it is destroyed, beside another one.
        collects = gc.isenabled()
        gc.disable()
        try:
            try:
                if not outcomes:
                    task = self._ask("begin", do, text, *given)
                    self._wait(task, do, outcomes, progress)
            except BaseException as error:  # Ctrl-C, or the caller's progress
                raise self._failure(do, task, outcomes, error) from error
            if any(one["status"] != "done" for one in outcomes.values()):
                raise self._failure(do, task, outcomes)
        finally:
            if collects:
                gc.enable()
        return task, [outcomes[rank] for rank in range(self.num_workers)]

    def _ask(self, name: str, *args: Any) -> Any:
        return self.call_packed(self._get_cached_method(PREFIX + name), *args)

    def _answers(self, task: Any, outcomes: _Outcomes) -> dict[int, Progress]:
        """How far those workers are that have not ended their task."""
        asked = self._ask("state", task)
        progress = {}
        for rank in set(range(self.num_workers)) - outcomes.keys():
            try:
                answer = json.loads(str(asked.debug_get_from_remote(rank)))
            except Exception:  # TVM reads an end of a file
                how = self.processes[rank].how_it_ended()
                outcomes[rank] = self._ended[rank] = {"status": "ended", "message": how}
                continue
            if answer["progress"] is not None:
                progress[rank] = Progress(**answer["progress"])
            if answer["outcome"] is not None:
                outcomes[rank] = answer["outcome"]
        return progress

    def _wait(self, task: Any, doing: str, outcomes: _Outcomes, progress: ProgressOption) -> None:
        """Until all have ended their task, or one has failed."""
        count, pause = self.num_workers, _FIRST_PAUSE
        latest: dict[int, Progress] = {}
        told = dict.fromkeys(range(count), 0)
        bar: ProgressBar | None = None
        with contextlib.ExitStack() as stack:
            while True:
                latest |= self._answers(task, outcomes)
                # How much it is in all is known when each has done its first weight.
                if bar is None and latest and len(latest.keys() | outcomes.keys()) == count:
                    total = sum(one.total for one in latest.values())
                    bar = stack.enter_context(progress_bar(progress, total, doing))
                for rank, one in latest.items():
                    if bar is not None and one.done > told[rank]:
                        bar.update(one.done - told[rank], f"{one.name}, worker {rank}")
                        told[rank] = one.done
                ends = [one["status"] for one in outcomes.values()]
                if len(ends) == count or set(ends) - {"done"}:
                    return
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _failure(
        self, do: str, task: Any, outcomes: _Outcomes, cause: BaseException | None = None
    ) -> WorkerError | WorkersInterrupted:
        """Stop those that are still at it, at their next weight, and say how all have ended."""
        give_up = time.monotonic() + _PATIENCE
        if task is not None:
            self._ask("stop", task)
            while len(outcomes) < self.num_workers and time.monotonic() < give_up:
                self._answers(task, outcomes)
                time.sleep(_FIRST_PAUSE)
        unknown = {"status": "running" if task is not None else "not asked"}
        workers = [outcomes.get(rank, unknown) for rank in range(self.num_workers)]
        order = sorted(enumerate(workers), key=lambda one: _STATUS.index(one[1]["status"]))
        rank = order[0][0] if cause is None else None
        said = [one_line(cause)] if cause is not None else []
        for number, one in order:
            if "message" not in one and one["status"] != "running":
                continue
            remedy = "; make a new session, and load again" if one["status"] == "ended" else ""
            parts = [f"worker {number} {one['status']}", one.get("kind"), one.get("message")]
            said.append(": ".join(filter(None, parts)) + remedy)
        message = f"{do}: {'; '.join(said)}"
        is_interrupt = isinstance(cause, KeyboardInterrupt)
        error = WorkersInterrupted(message) if is_interrupt else WorkerError(message)
        error.rank, error.workers = rank, workers
        return error


class ThreadedSession(Session, disco.ThreadedSession):
    """TVM's: each worker is a thread of this process."""

    def __init__(self, num_workers: int, num_groups: int = 1):
        disco.ThreadedSession.__init__(self, num_workers, num_groups)
        self._begin({})


class ProcessSession(Session, disco.ProcessSession):
    """TVM's, with processes of this package; worker 0 is a thread of this one."""

    def __init__(self, num_workers: int, num_groups: int = 1):
        self._start(num_workers, num_groups, ())

    def _start(self, num_workers: int, num_groups: int, remote: Sequence[socket]) -> None:
        """The connections are those of the last workers, which are on other machines."""
        processes: dict[int, WorkerProcess] = {}

        def pool(rank: int) -> tvm_ffi.Shape | None:
            """As TVM calls it: start a worker, and return its pipes; of 0, end all."""
            if rank == 0:
                for one in processes.values():
                    one.close()
                processes.clear()
                return None
            if (number := rank - num_workers + len(remote)) < 0:
                made = WorkerProcess(worker_command([rank, num_workers, num_groups]))
            else:
                with remote[number] as connection:
                    given = connection.fileno()
                    made = WorkerProcess([sys.executable, "-IS", nodes.__file__, str(given)], given)
            processes[rank] = made
            return tvm_ffi.Shape([made.reading, made.writing])

        name = f"{PREFIX}create_process_pool.{secrets.token_hex(8)}"
        tvm_ffi.register_global_func(name, lambda *_: tvm_ffi.convert(pool))
        try:
            self.__init_handle_by_constructor__(
                tvm_ffi.get_global_func("runtime.disco.SessionProcess"),
                *(num_workers, num_groups, name, ""),
            )
        finally:
            tvm_ffi.remove_global_func(name)
        self._begin(processes)
        self._configure_structlog()


class SocketSession(ProcessSession):
    """The same, with the workers of other machines; this one is node 0.

    The others run `relax_inplace.runtime.disco.node`. The call returns when all have connected. Who
    does not say at once that it is a node is dropped, and logged.
    """

    def __init__(
        self, num_nodes: int, num_workers_per_node: int, num_groups: int, host: str, port: int
    ):
        sizes = (num_nodes, num_workers_per_node, num_groups)
        remote = nodes.accept_workers(*sizes, host, port)
        self._start(num_nodes * num_workers_per_node, num_groups, remote)
        self._ask("join")


@atexit.register
def _shut_down() -> None:
    for session in list(_all):
        # For ever: the destructor of TVM's session calls Python, and may run when that is gone.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        with contextlib.suppress(Exception):
            session.shutdown()
