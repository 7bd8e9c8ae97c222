"""The worker processes of a session: started, watched, and no trap when they die.

What TVM does (``src/runtime/extra/disco/process_session.cc``, ``src/support/pipe.h``): the
controller writes every message to a pipe of each worker, among them the one that a `DRef` sends
when it is destroyed. Writing to a pipe that nobody reads is an error, and an error in a destructor
ends the program: one dead worker takes the controller along. So here the controller holds a reading
end of each pipe itself, and when a worker has ended its writing end becomes one of ``/dev/null``.
Reading from a dead worker stays the error that it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from tvm_ffi import Shape

__all__ = ["WorkerProcesses"]

# A worker finds what this process finds, this package before all; `-m` would look in the current
# folder first.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {package} import worker; worker.run()"
_PATIENCE = 5.0  # seconds that a worker has to end when its session does


class WorkerProcesses:
    """The processes of the workers 1, 2, ... of a node; worker 0 is a thread of the node itself.

    An instance is what TVM calls a process pool: called with the number of a worker, it starts it
    and returns the two ends of its pipes that are the controller's; called with 0, it ends all.
    """

    def __init__(self, num_workers: int, num_groups: int):
        self._arguments = [str(num_workers), str(num_groups)]
        self._workers: dict[int, _Worker] = {}

    def __call__(self, worker_id: int) -> Shape | None:
        """As TVM calls it."""
        if worker_id == 0:
            self._close()
            return None
        worker = _Worker(worker_id, self._arguments)
        self._workers[worker_id] = worker
        return Shape([worker.reading, worker.writing])

    @property
    def pids(self) -> dict[int, int]:
        """The process of each worker."""
        return {number: worker.process.pid for number, worker in self._workers.items()}

    def how_it_ended(self, worker_id: int) -> str | None:
        """Such as ``killed by signal 9``; None if it has not, or is none of these."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return None
        try:  # its pipe may be closed a moment before it is gone
            code = worker.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return None
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"

    def finish(self) -> None:
        """Wait until the workers have ended, as they do when they are told to, or kill them."""
        for worker in self._workers.values():
            worker.finish()

    def _close(self) -> None:
        """Close the controller's ends of the pipes: TVM's session is gone."""
        self.finish()
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            os.close(worker.reading)
            os.close(worker.writing)


class _Worker:
    def __init__(self, number: int, arguments: list[str]):
        self.reading, theirs_to_write = os.pipe()
        self._watched, self.writing = os.pipe()
        # The worker needs TVM's runtime, and starts in half the time without its compiler.
        environment = {"TVM_USE_RUNTIME_LIB": "1", **os.environ}
        program = _PROGRAM.format(path=sys.path, package=__package__)
        try:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", program, str(number), *arguments),
                    *(str(self._watched), str(theirs_to_write)),
                ],
                pass_fds=(self._watched, theirs_to_write),
                env=environment,
            )
        finally:
            os.close(theirs_to_write)
        self._watcher = threading.Thread(
            target=self._watch, name=f"watches worker {number}", daemon=True
        )
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
