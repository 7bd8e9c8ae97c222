"""Weights for a streamed transform: one is read ahead while the one before is converted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import tvm_ffi

from ..device import give_up_if_failed
from .reading import CheckpointReader, prefetch

__all__ = ["Prefetcher"]


class Prefetcher:
    """What a streamed transform takes: called with an index, it returns that weight.

    At most one weight is ahead. One that is asked for out of order is read at once; the one ahead
    stays. A context manager: at its end the thread has ended.

    Parameters
    ----------
    reader : CheckpointReader
    names : sequence of str
        In the checkpoint, of the weights by index.
    order : iterable of int, optional
        In which they will be asked for; by default 0, 1, 2...
    later : collection of int
        Those whose tensors may be unread: of these the first bytes are read ahead.

    Raises
    ------
    CheckpointError
        When a weight is asked for that cannot be read.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        names: Sequence[str],
        order: Iterable[int] | None = None,
        later: Collection[int] = (),
    ):
        self._reader = reader
        self._names = list(names)
        self._later = later
        self._order = deque(range(len(self._names)) if order is None else order)
        self._changed = threading.Condition()
        self._ahead: int | None = None  # the index that is being read, or has been
        self._read: list[Any] = []  # its tensor, or the error instead
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="relax_inplace prefetches")
        self._thread.daemon = True  # an interpreter that ends does not wait for it
        with self._changed:
            self._begin_next()
        self._thread.start()

    def __call__(self, index: int) -> Any:
        """A weight. No reference to it is kept."""
        index = int(index)
        with self._changed:
            if self._closed:
                raise RuntimeError("this Prefetcher is closed; make another one")
            if index == self._ahead:
                self._changed.wait_for(lambda: self._read)
                found = self._read.pop()
                self._begin_next()
                if isinstance(found, BaseException):
                    raise found
                return found
            if index in self._order:
                self._order.remove(index)
        return self._read_one(index)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the weight ahead, and wait until the thread has ended."""
        try:
            self._end()
        finally:  # also if Ctrl-C came while it waited: the thread ends after the weight it reads
            self._end()

    def _end(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for found in self._read:
            if isinstance(found, tvm_ffi.Tensor):
                give_up_if_failed(found.device, tvm_ffi.Array([found]))
        self._read.clear()

    def _begin_next(self) -> None:
        self._ahead = self._order.popleft() if self._order else None
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or (self._ahead is not None and not self._read)
                )
                if self._closed:
                    return
                index = self._ahead
            found = self._try(index)  # type: ignore[arg-type]
            with self._changed:
                self._read.append(found)
                del found  # before the lock goes: who takes it is its only owner
                self._changed.notify_all()

    def _read_one(self, index: int) -> Any:
        tensor = self._reader.read(self._names[index], later=index in self._later)
        prefetch(tensor)
        return tensor

    def _try(self, index: int) -> Any:
        try:
            return self._read_one(index)
        except BaseException as error:
            return error
