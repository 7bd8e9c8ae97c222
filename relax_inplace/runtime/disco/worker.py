"""The entry point of a worker process: TVM's protocol, the builtins, and what it can be asked.

It is called with the worker's rank, the numbers of workers and of groups, and two file descriptors
(`worker_processes.py`).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import tvm_ffi

from . import tasks  # noqa: F401  registers what a worker can be asked
from .tvm_disco import disco  # noqa: F401  registers what TVM's own sessions ask

__all__ = ["run", "serve"]

_place: list[tuple[int, ...]] = []  # of a node: what TVM's SocketSession tells its workers


def run() -> NoReturn:
    """Be a worker of this machine, and end the process."""
    # Ctrl-C in a terminal reaches every process of it; what becomes of a call the controller says.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(*map(int, sys.argv[1:]))


def serve(
    rank: int, workers: int, groups: int, reading: int, writing: int, *place: int
) -> NoReturn:
    """Do what the controller says until the session ends, and end the process."""
    _place.append(place)
    status = 1
    try:
        function = tvm_ffi.get_global_func("runtime.disco.WorkerProcess")
        function(rank, workers, groups, reading, writing)
        status = 0
    except Exception as error:  # of what the controller's program has called
        print(f"worker {rank}: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a conversion that is still running would be waited for


@tvm_ffi.register_global_func("relax_inplace.disco.join", override=True)
def _join() -> None:
    """Give a node's worker its rank among all, as TVM's SocketSession does."""
    if _place and _place[0]:
        tvm_ffi.get_global_func("runtime.disco.socket_session_init_workers")(*_place[0])
