"""TVM's sessions, with workers that have the builtins, and whose death the controller survives.

A session lasts until it is shut down, or the program ends: TVM's destructor waits for the workers
that are threads of this program, and keeps them from running Python meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import secrets
import weakref
from collections.abc import Sequence
from socket import socket
from typing import Any

import tvm_ffi

from .nodes import accept_workers
from .tvm_disco import disco
from .worker_processes import WorkerProcesses

__all__ = ["ProcessSession", "SocketSession", "ThreadedSession"]

_running: list[Any] = []
_all: weakref.WeakSet[Any] = weakref.WeakSet()  # also those that are shut down, and referred to


class _EndsOnce:
    """What all have: an end that comes once, at the latest when the program ends."""

    is_shut_down = False

    def _begin(self) -> None:
        _running.append(self)
        _all.add(self)

    def shutdown(self) -> None:
        """Shut the session down, and wait for its workers."""
        if self.is_shut_down:
            return
        with contextlib.suppress(Exception):  # a worker may have gone
            for rank in self._threads():
                self._sync_worker(rank)  # type: ignore[attr-defined]
        self.is_shut_down = True
        disco.Session.shutdown(self)
        _running.remove(self)
        if isinstance(self, ProcessSession):
            self.processes.finish()

    def _threads(self) -> range:
        """The workers that are threads of this program."""
        return range(1)


class ThreadedSession(_EndsOnce, disco.ThreadedSession):
    """TVM's: each worker is a thread of this process.

    Parameters
    ----------
    num_workers, num_groups : int

    Attributes
    ----------
    is_shut_down : bool
    """

    def __init__(self, num_workers: int, num_groups: int = 1):
        super().__init__(num_workers, num_groups)
        self._begin()

    def _threads(self) -> range:
        return range(self.num_workers)


class ProcessSession(_EndsOnce, disco.ProcessSession):
    """TVM's, with processes of this package; worker 0 is a thread of this one.

    Parameters
    ----------
    num_workers, num_groups : int

    Attributes
    ----------
    processes : WorkerProcesses
    is_shut_down : bool
    """

    def __init__(self, num_workers: int, num_groups: int = 1):
        self._start(num_workers, num_groups, ())

    def _start(self, num_workers: int, num_groups: int, remote: Sequence[socket]) -> None:
        self.processes = WorkerProcesses(num_workers, num_groups, remote)
        pool = f"relax_inplace.disco.create_process_pool.{secrets.token_hex(8)}"
        tvm_ffi.register_global_func(pool, lambda *_: tvm_ffi.convert(self.processes.__call__))
        try:
            self.__init_handle_by_constructor__(
                tvm_ffi.get_global_func("runtime.disco.SessionProcess"),
                *(num_workers, num_groups, pool, ""),
            )
        finally:
            tvm_ffi.remove_global_func(pool)
        self._begin()
        self._configure_structlog()


class SocketSession(ProcessSession):
    """The same, with the workers of other machines.

    This machine is node 0; the others run `relax_inplace.runtime.disco.node`.

    Parameters
    ----------
    num_nodes, num_workers_per_node, num_groups : int
    host, port
        Where the other nodes connect; the call returns when all have. Who does not say at once
        that it is a node is dropped, and logged.
    """

    def __init__(
        self, num_nodes: int, num_workers_per_node: int, num_groups: int, host: str, port: int
    ):
        sizes = (num_nodes, num_workers_per_node, num_groups)
        remote = accept_workers(*sizes, host, port)
        self._start(num_nodes * num_workers_per_node, num_groups, remote)
        self.import_python_module(f"{__package__}.worker")
        self.get_global_func("relax_inplace.disco.join")()


@atexit.register
def _shut_down() -> None:
    for session in list(_all):
        # For ever: the destructor of TVM's session calls Python, and may run when that is gone.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        with contextlib.suppress(Exception):
            session.shutdown()
