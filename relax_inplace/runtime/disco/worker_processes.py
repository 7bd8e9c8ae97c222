"""The processes of a session's workers: started, watched, and no trap when they die.

What TVM does (``src/runtime/extra/disco/process_session.cc``, ``src/support/pipe.h``): the
controller writes every message to a pipe of each worker, among them the one that a `DRef` sends
when it is destroyed. Writing to a pipe that nobody reads is an error, and an error in a destructor
ends the program. So the controller holds a reading end of each pipe itself, and when a worker has
ended its writing end becomes one of ``/dev/null``. Reading from a dead worker stays an error.

A worker of another machine is a process here, too: one that passes on what is said (`relay.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from socket import socket

from tvm_ffi import Shape

__all__ = ["WorkerProcesses"]

# A worker finds what this process finds, this package before all; `-m` would look in the current
# folder first.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {package} import worker; worker.run()"
_RELAY = str(Path(__file__).with_name("relay.py"))
_PATIENCE = 5.0  # seconds that a worker has to end when its session does


class WorkerProcesses:
    """The processes of the workers 1, 2, ...; worker 0 is a thread of the controller.

    An instance is what TVM calls a process pool: called with the number of a worker, it starts it
    and returns the two ends of its pipes that are the controller's; called with 0, it closes all.

    Parameters
    ----------
    num_workers, num_groups : int
    remote : sequence of socket
        The connections of the last workers.
    """

    def __init__(self, num_workers: int, num_groups: int, remote: Sequence[socket]):
        self._sizes = [str(num_workers), str(num_groups)]
        self._remote = dict(zip(range(num_workers - len(remote), num_workers), remote, strict=True))
        self._workers: dict[int, _Worker] = {}

    def __call__(self, worker_id: int) -> Shape | None:
        """As TVM calls it."""
        if worker_id == 0:
            self.finish()
            for worker in self._workers.values():
                os.close(worker.reading)
                os.close(worker.writing)
            self._workers.clear()
            return None
        connection = self._remote.get(worker_id)
        if connection is None:
            program = _PROGRAM.format(path=sys.path, package=__package__)
            worker = _Worker([sys.executable, "-c", program, str(worker_id), *self._sizes])
        else:
            with connection:
                given = connection.fileno()
                worker = _Worker([sys.executable, "-IS", _RELAY, str(given)], given)
        self._workers[worker_id] = worker
        return Shape([worker.reading, worker.writing])

    @property
    def pids(self) -> dict[int, int]:
        """The process of each worker, or the one that passes on to it."""
        return {number: worker.process.pid for number, worker in self._workers.items()}

    def how_it_ended(self, worker_id: int) -> str:
        """Such as ``killed by signal 9``."""
        if worker_id in self._remote:
            return "its node does not answer for it"
        try:  # its pipe may be closed a moment before it is gone
            code = self._workers[worker_id].process.wait(1.0)
        except (KeyError, subprocess.TimeoutExpired):
            return "its pipe is closed"
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"

    def finish(self) -> None:
        """Wait until the workers have ended, as they do when they are told to, or kill them."""
        for worker in self._workers.values():
            worker.finish()


class _Worker:
    def __init__(self, command: list[str], *inherited: int):
        self.reading, theirs_to_write = os.pipe()
        self._watched, self.writing = os.pipe()
        ends = (self._watched, theirs_to_write)
        try:
            self.process = subprocess.Popen(
                [*command, *map(str, ends)],
                pass_fds=(*ends, *inherited),
                # The worker needs TVM's runtime, and starts in half the time without its compiler.
                env={"TVM_USE_RUNTIME_LIB": "1", **os.environ},
            )
        finally:
            os.close(theirs_to_write)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        self.process.wait()
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, self.writing, inheritable=False)
        os.close(null)
        while os.read(self._watched, 1 << 16):  # somebody may wait for room in the pipe
            pass  # until the last writing end is gone, of which no more than that one is left
        os.close(self._watched)

    def finish(self) -> None:
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:  # it is in the middle of a long call
            self.process.kill()
        self._watcher.join()
