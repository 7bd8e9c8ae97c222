"""A worker as a process of the controller: started, watched, and no trap when it dies.

What TVM does (``src/runtime/extra/disco/process_session.cc``, ``src/support/pipe.h``): the
controller writes every message to a pipe of each worker, among them the one that a `DRef` sends
when it is destroyed. Writing to a pipe that nobody reads is an error, and an error in a destructor
ends the program. So the controller holds a reading end of each pipe itself, and when a worker has
ended its writing end becomes one of ``/dev/null``. Reading from a dead worker stays an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable

__all__ = ["WorkerProcess", "worker_command"]

# A worker finds what this process finds, this package before all; `-m` would look in the current
# folder first.
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from {package} import worker; worker.serve(sys.argv[1:])"
)
_PATIENCE = 5.0  # seconds that a worker has to end when its session does


def worker_command(arguments: Iterable[object]) -> list[str]:
    """The command of a worker process: see `worker.serve`."""
    program = _PROGRAM.format(path=sys.path, package=__package__)
    return [sys.executable, "-c", program, *map(str, arguments)]


class WorkerProcess:
    """A process of a worker; its command is given two descriptors, and maybe one that is inherited.

    ``reading`` and ``writing`` are the ends of its pipes that are the controller's.
    """

    def __init__(self, command: list[str], *inherited: int):
        self.reading, theirs_to_write = os.pipe()
        self._watched, self.writing = os.pipe()
        ends = (self._watched, theirs_to_write)
        try:
            self._process = subprocess.Popen(
                [*command, *map(str, ends)],
                pass_fds=(*ends, *inherited),
                # The worker needs TVM's runtime, and starts in half the time without its compiler.
                env={"TVM_USE_RUNTIME_LIB": "1", **os.environ},
            )
        finally:
            os.close(theirs_to_write)
        self.pid = self._process.pid
        self._is_remote = bool(inherited)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        self._process.wait()
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, self.writing, inheritable=False)
        os.close(null)
        while os.read(self._watched, 1 << 16):  # somebody may wait for room in the pipe
            pass  # until the last writing end is gone, of which no more than that one is left
        os.close(self._watched)

    def how_it_ended(self) -> str:
        """Such as ``killed by signal 9``."""
        if self._is_remote:
            return "its node does not answer for it"
        try:  # its pipe may be closed a moment before it is gone
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its pipe is closed"
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"

    def finish(self) -> None:
        """Wait until it has ended, as it does when it is told to, or kill it."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:  # it is in the middle of a long call
            self._process.kill()
        self._watcher.join()

    def close(self) -> None:
        """Finish it, and close the pipes."""
        self.finish()
        os.close(self.reading)
        os.close(self.writing)
