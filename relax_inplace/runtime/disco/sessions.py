"""Sessions whose workers have the builtins, and whose controller survives them.

They are TVM's own, and differ in who starts the processes and holds the connections
(`worker_processes.py`, `node_connections.py`), in that several threads may use them
(`serial_session.py`), and in how they end. A worker that is a thread of this program ends it by a
signal, if it runs Python when the interpreter goes; and the destructor of TVM's session waits for
such threads, and keeps them from running Python meanwhile. So a session is shut down before: when
the program ends, or when nothing refers to it any more.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import tvm_ffi

from .node_connections import NodeConnections
from .serial_session import SerialSession, SessionLock
from .tvm_disco import disco
from .worker_processes import WorkerProcesses

__all__ = ["ProcessSession", "SocketSession", "ThreadedSession", "processes_for_local_workers"]

# TVM finds them by their names: there is one of each at a time.
_POOL = "relax_inplace.disco.create_process_pool"
_LOCAL_WORKERS = "runtime.disco.create_socket_session_local_workers"
_naming = threading.RLock()

_sessions: weakref.WeakSet[Any] = weakref.WeakSet()
# Those that are a part of another session, which alone ends them.
_local_sessions: set[Any] = set()


class ThreadedSession(SerialSession, disco.ThreadedSession):
    """TVM's: each worker is a thread of this process.

    Parameters
    ----------
    num_workers, num_groups : int
        Of workers, and of groups of them.

    Attributes
    ----------
    is_shut_down : bool
    """

    __slots__ = ("__weakref__", "is_shut_down", "lock")

    def __init__(self, num_workers: int, num_groups: int = 1):
        self.lock = SessionLock()
        self.is_shut_down = False
        super().__init__(num_workers, num_groups)
        _sessions.add(self)

    def _end(self) -> None:
        _wait_for_threads(self, self.num_workers)
        self.is_shut_down = True
        disco.Session.shutdown(self)


class ProcessSession(SerialSession, disco.ProcessSession):
    """TVM's, with processes that have the builtins; worker 0 is a thread of this one.

    Parameters
    ----------
    num_workers, num_groups : int
        Of workers, and of groups of them.

    Attributes
    ----------
    processes : WorkerProcesses
    is_shut_down : bool
    """

    __slots__ = ("__weakref__", "is_shut_down", "lock", "processes")

    def __init__(self, num_workers: int, num_groups: int = 1):
        self.lock = SessionLock()
        self.is_shut_down = False
        processes = self.processes = WorkerProcesses(num_workers, num_groups)
        with _named(_POOL, lambda *_: tvm_ffi.convert(processes.__call__)):
            self.__init_handle_by_constructor__(
                tvm_ffi.get_global_func("runtime.disco.SessionProcess"),
                *(num_workers, num_groups, _POOL, ""),
            )
        _sessions.add(self)
        self._configure_structlog()

    def _end(self) -> None:
        _wait_for_threads(self, 1)
        self._finish()

    def _finish(self) -> None:
        self.is_shut_down = True
        disco.Session.shutdown(self)
        self.processes.finish()
        _local_sessions.discard(self)


class SocketSession(SerialSession, disco.SocketSession):
    """TVM's: this machine is node 0, the others run `relax_inplace.runtime.disco.node`.

    Parameters
    ----------
    num_nodes, num_workers_per_node, num_groups : int
    host, port
        Where the other nodes connect; the call returns when all have.

    Attributes
    ----------
    num_workers_per_node : int
    is_shut_down : bool
    """

    __slots__ = (
        *("__weakref__", "_local", "_nodes", "is_shut_down", "lock", "num_workers_per_node"),
    )

    def __init__(
        self, num_nodes: int, num_workers_per_node: int, num_groups: int, host: str, port: int
    ):
        self.lock = SessionLock()
        self.is_shut_down = False
        self.num_workers_per_node = num_workers_per_node
        self._nodes = NodeConnections(host, port, num_nodes)
        local: list[ProcessSession] = []
        try:
            with processes_for_local_workers() as local:
                # A constructor would keep the interpreter while it waits for the connections.
                make = tvm_ffi.get_global_func("runtime.disco.SocketSession")
                sizes = (num_nodes, num_workers_per_node, num_groups)
                made = make(*sizes, "127.0.0.1", self._nodes.inner_port)
                self.__move_handle_from__(made)
        except BaseException:
            self._nodes.close()
            for one in local:
                one.shutdown()
            raise
        (self._local,) = local
        _sessions.add(self)

    @property
    def processes(self) -> WorkerProcesses:
        """The worker processes of this node."""
        return self._local.processes

    def _end(self) -> None:
        _wait_for_threads(self, 1)
        self.is_shut_down = True
        disco.Session.shutdown(self)
        self._local._finish()  # TVM does not, until the session is destroyed


def _wait_for_threads(session: Any, count: int) -> None:
    """Waits for the first workers, threads of this process: they may still have Python to run.

    If the interpreter ends before, it ends the process with a signal.
    """
    with contextlib.suppress(Exception):
        for rank in range(count):
            session._sync_worker(rank)


@atexit.register
def _shut_down() -> None:
    for session in list(_sessions):
        # For ever: the destructor of TVM's session calls Python, and may run when that is gone.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        with contextlib.suppress(Exception):
            session.shutdown()


@contextlib.contextmanager
def processes_for_local_workers() -> Iterator[list[ProcessSession]]:
    """While the block runs, TVM makes the workers of a node as a `ProcessSession` of ours.

    Yields
    ------
    list of ProcessSession
        Those that were made.
    """
    made: list[ProcessSession] = []

    def create(num_workers: int) -> Any:
        session = ProcessSession(num_workers)
        _sessions.discard(session)
        _local_sessions.add(session)
        made.append(session)
        return session

    with _named(_LOCAL_WORKERS, create):
        yield made


@contextlib.contextmanager
def _named(name: str, function: Any) -> Iterator[None]:
    """While the block runs, the function has this name."""
    with _naming:
        before = tvm_ffi.get_global_func(name, allow_missing=True)
        tvm_ffi.register_global_func(name, function, override=True)
        try:
            yield
        finally:
            if before is None:
                tvm_ffi.remove_global_func(name)
            else:
                tvm_ffi.register_global_func(name, before, override=True)
