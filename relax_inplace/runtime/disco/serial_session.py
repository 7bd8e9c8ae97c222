"""One thread at a time: what is asked of a session, and what is destroyed of it.

TVM's session is for one thread: the numbers of registers that are free
(``src/runtime/extra/disco/bcast_session.cc``) and the buffer in which a message is written
(``threaded_session.cc``) have no lock. But the destructor of a `DRef` sends a message, too, and
Python runs it wherever the last reference goes: of one that is in a cycle, with the traceback of a
caught error, say, in whatever thread the garbage collector runs, which may be a worker's. Two
messages at once are one that no worker understands, or two values in one register.

So each session has a lock, every message is sent under it, and a reference that goes while another
thread has it is destroyed by that thread.

A process that is forked inherits the pipes of the workers, and none of the threads: what it said
would come in between what its parent says, and no answer would be its own. So there it is an error
to use a session, and nothing of it is ever destroyed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from .tvm_disco import disco

__all__ = ["DModule", "DPackedFunc", "DRef", "SerialSession", "SessionLock"]

_Result = TypeVar("_Result")


class SessionLock:
    """Held by the thread that uses a session. The same thread may take it again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._postponed: deque[Callable[[], object]] = deque()
        self._is_catching_up = False
        self._process = os.getpid()

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked from the one whose session it is."""
        return os.getpid() != self._process

    def run(self, use: Callable[[], _Result]) -> _Result:
        """Wait for the lock, and use the session."""
        if self.is_inherited:  # so may the lock be, from a thread that is not here
            raise RuntimeError(
                f"process {os.getpid()} was forked from {self._process}, whose Disco session this "
                "is; use it there, or make a new one here"
            )
        try:
            with self._lock:
                return use()
        finally:
            self._catch_up()

    def run_without_wait(self, use: Callable[[], object]) -> None:
        """Use the session now, or have the thread do it that has the lock.

        For a destructor, which may run in any thread, and must not wait in it: the lock's owner may
        be waiting for that very thread.
        """
        self._postponed.append(use)
        self._catch_up()

    def _catch_up(self) -> None:
        # Who finds the lock taken leaves the rest to its owner, who looks after releasing it.
        while self._postponed and self._lock.acquire(blocking=False):
            try:
                if self._is_catching_up:  # this thread is, further up its stack
                    return
                self._is_catching_up = True
                try:
                    while self._postponed:
                        self._postponed.popleft()()
                finally:
                    self._is_catching_up = False
            finally:
                self._lock.release()


class SerialSession:
    """What a session of TVM's sends, under its lock. A base beside one of TVM's sessions.

    Attributes
    ----------
    lock : SessionLock
    is_shut_down : bool
    """

    __slots__ = ()
    lock: SessionLock
    is_shut_down: bool

    def send(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of TVM's that sends a message, when it is this thread's turn."""

        def call() -> Any:
            if self.is_shut_down:  # nobody would answer
                kind = type(self).__name__
                raise RuntimeError(f"{kind}: the session has been shut down; make a new one")
            return method(*args)

        return self.lock.run(call)

    def shutdown(self) -> None:
        """End the workers, and other nodes; nothing can be asked of them any more."""
        if not self.lock.is_inherited:
            self.lock.run(lambda: None if self.is_shut_down else self._end())

    def _end(self) -> None:
        raise NotImplementedError

    def __del__(self) -> None:
        if self.lock.is_inherited:
            _keep_forever(self)
            return
        # In a thread of its own, since this one may be a worker's, which has to end.
        if int(self.__chandle__()) and not self.is_shut_down:  # type: ignore[attr-defined]
            with contextlib.suppress(RuntimeError):  # the interpreter ends, and starts none
                threading.Thread(target=self.shutdown, name="shuts down a session").start()

    # TVM's own methods: what is not here sends by one of these.

    def call_packed(self, func: Any, *args: Any) -> Any:
        """A function of all workers, called."""
        return DRef(self.send(disco.Session.call_packed, self, func, *args), self)

    def get_global_func(self, name: str) -> Any:
        """A function of all workers, by its name."""
        return DPackedFunc(self.send(disco.Session.get_global_func, self, name), self)

    def load_vm_module(self, path: str, device: Any = None) -> Any:
        """A module on each worker."""
        return DModule(self.send(disco.Session.load_vm_module, self, path, device), self)

    def copy_from_worker_0(self, host_array: Any, remote_array: Any) -> None:
        """Copy a tensor of worker 0 to the controller."""
        self.send(disco.Session.copy_from_worker_0, self, host_array, remote_array)

    def copy_to_worker_0(self, host_array: Any, remote_array: Any = None) -> Any:
        """Copy a tensor of the controller to worker 0."""
        return self.send(disco.Session.copy_to_worker_0, self, host_array, remote_array)

    def init_ccl(self, ccl: str, *device_ids: int) -> None:
        """Initialize the communication library, and give each worker its device."""
        self.send(disco.Session.init_ccl, self, ccl, *device_ids)

    def _sync_worker(self, worker_id: int) -> None:
        self.send(disco.Session._sync_worker, self, worker_id)


def _keep_forever(value: Any) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


class _SerialRef:
    """What a reference of TVM's sends, under the lock of its session."""

    __slots__ = ()
    session: SerialSession

    def __del__(self) -> None:
        if not hasattr(self, "session"):
            return  # it never referred to anything
        last = [disco.DRef.__new__(disco.DRef)]
        last[0].__move_handle_from__(self)
        if self.session.lock.is_inherited:
            _keep_forever(last[0])
            return
        self.session.lock.run_without_wait(last.clear)

    def debug_get_from_remote(self, worker_id: int) -> Any:
        """Get the value on a worker."""
        return self.session.send(disco.DRef.debug_get_from_remote, self, worker_id)

    def debug_copy_from(self, worker_id: int, value: Any) -> None:
        """Copy a tensor to a worker."""
        self.session.send(disco.DRef.debug_copy_from, self, worker_id, value)


class DRef(_SerialRef, disco.DRef):
    """What is in a register of each worker."""

    __slots__ = ("session",)

    def __init__(self, dref: Any, session: Any):
        self.__move_handle_from__(dref)
        self.session = session


class DPackedFunc(_SerialRef, disco.DPackedFunc):
    """A function of all workers."""

    __slots__ = ()


class DModule(_SerialRef, disco.DModule):
    """A module on each worker."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        return DPackedFunc(super().__getitem__(name), self.session)
