"""The entry point of a worker process: TVM's protocol, the builtins, and what it can be asked.

It is called with the worker's rank, the numbers of workers and of groups, and two file descriptors;
`worker_processes.py` does.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import tvm_ffi

from ...libinfo import load_library
from . import tasks  # noqa: F401  registers what a worker can be asked
from .tvm_disco import disco  # noqa: F401  registers what TVM's own sessions ask


def main() -> None:
    """Do what the controller says, until its end of the pipe is closed."""
    rank, workers, groups, reading, writing = map(int, sys.argv[1:])
    load_library()
    # Ctrl-C in a terminal reaches every process of it; what becomes of a call the controller says.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tvm_ffi.get_global_func("runtime.disco.WorkerProcess")(rank, workers, groups, reading, writing)


def run() -> NoReturn:
    """Be a worker, and end the process."""
    status = 1
    try:
        main()
        status = 0
    except Exception as error:  # of what the controller's program has called
        print(f"worker {sys.argv[1]}: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a conversion that is still running would be waited for
