"""Reads weights from their files into tensors: each once, and no second copy of it.

On the host a weight may stay in its file until a kernel moves it to its new place: its tensor is
*unread* (``cpp/read_file.cc``). Nothing else may look at the tensor before it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from ...libinfo import load_library
from ..device import give_up_if_failed, is_host
from ..empty_tensor import empty
from ..forget_locals import forget_locals
from ..shown import shown
from ..slots import leaf_at
from ..tensor_bytes import bytes_of
from .checkpoint import Checkpoint
from .error import refuse
from .files import open_regular, read_into
from .stored_tensor import CheckpointFile, StoredTensor

__all__ = ["CheckpointReader", "UnreadWeights", "prefetch"]

_PART = 1 << 20  # bytes that are decoded, or compared, at once


class CheckpointReader:
    """The weights of a checkpoint, one by one.

    On the host they are read into the memory of their tensor; on the way to another device they
    take the memory of one. A tensor is complete when it is returned, on whichever stream it is
    used. To a CUDA device it is copied on a stream of its own, so that a kernel can run meanwhile.
    A reader is used by one thread at a time: another one waits.

    Parameters
    ----------
    checkpoint : Checkpoint
    device : tvm.runtime.Device
        Where the tensors go.
    checksum : bool
        Compare the md5 of each file with what the manifest says, of the very bytes the tensors are
        made from. It takes host memory for one file: read the weights in the checkpoint's order.

    Raises
    ------
    CheckpointError
        Checksums are asked for, and the checkpoint has none.

    Attributes
    ----------
    unread : set of str
        The names of the weights that it has returned unread.
    """

    def __init__(self, checkpoint: Checkpoint, device: Any, checksum: bool = False):
        self._checkpoint = checkpoint
        self._device = device
        self._checksum = checksum
        self._files = {file.path: file for file in checkpoint.files}
        self._lock = threading.Lock()
        self._open: _OpenFile | None = None
        self._stream: Any = None
        self.unread: set[str] = set()
        without = [file.name for file in checkpoint.files if file.md5 is None]
        if checksum and without:
            refuse(
                shown(checkpoint.path),
                f"no checksum for {shown(without[0])}",
                "an md5sum of each file",
                "load with checksum=False: safetensors have none, TVM's tensor cache may",
            )

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file that is open, and drop what was kept of it."""
        with self._lock:
            self._close()
            if self._stream is not None:
                with contextlib.suppress(Exception):  # of a device that has failed
                    self._device.free_raw_stream(self._stream)
                self._stream = None

    def read(self, name: str, *, later: bool = False) -> Any:
        """A weight, as a tensor that nothing else refers to.

        Parameters
        ----------
        name : str
        later : bool
            Whether the tensor may be unread. It is if it is on the host, and stored as it is.

        Raises
        ------
        CheckpointError
            The file ends too early, has changed, or is not what its checksum says.
        """
        try:
            with self._lock:
                record = self._checkpoint.records[name]
                if record.cut is None:
                    return self._tensor(record, later)
                return record.cut(self._tensor(record.whole or record))
        except BaseException as error:
            forget_locals(error)  # one of them is the tensor
            raise

    def _tensor(self, record: StoredTensor, later: bool = False) -> Any:
        tensor = empty(record.shape, record.dtype, self._device)
        if is_host(self._device):
            if later and record.encoding == "raw" and not self._checksum:
                file = self._file(self._files[record.file])
                if file.read_later(tensor, record.offset, _where(record)):
                    self.unread.add(record.name)
                    return tensor
            self._fill(bytes_of(tensor), record)
            return tensor
        staged = empty(record.shape, record.dtype, tvm.cpu())
        self._fill(bytes_of(staged), record)
        try:
            if not self._copied_on_its_stream(staged, tensor):
                staged.copyto(tensor)
                self._device.sync()  # before the memory it is copied from goes
        except Exception:
            give_up_if_failed(self._device, tvm_ffi.Array([tensor]))
            raise
        return tensor

    def _copied_on_its_stream(self, staged: Any, tensor: Any) -> bool:
        load_library()
        if self._stream is None:
            self._stream = self._device.create_raw_stream()
        copy = tvm_ffi.get_global_func("relax_inplace.CopyToDevice")
        return bool(copy(staged, tensor, self._stream))

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """The bytes of a weight as it is stored, some at a time."""
        record = self._checkpoint.records[name]
        record = record.whole or record
        for start in range(0, record.nbytes or 0, _PART):
            part = np.empty(min(_PART, (record.nbytes or 0) - start), "uint8")
            self._fill(part, record, start)
            yield part

    def _fill(self, memory: np.ndarray, record: StoredTensor, begin: int = 0) -> None:
        """Fill memory with the bytes of a weight from one on."""
        file = self._file(self._files[record.file])
        where = _where(record)
        if record.encoding == "raw":
            file.read(memory, record.offset + begin, where)
            return
        for start in range(0, memory.nbytes, _PART):
            numbers = memory[start : start + _PART].view("uint32")
            half = np.empty(numbers.size, "uint16")
            file.read(half.view("uint8"), record.offset + (begin + start) // 2, where)
            numbers[:] = half
            numbers <<= 16

    def _file(self, file: CheckpointFile) -> _OpenFile:
        if self._open is None or self._open.file is not file:
            self._close()  # first: its content would be a second one
            self._open = _OpenFile(file, self._checksum)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class UnreadWeights:
    """Those slots of a tuple whose tensors are unread.

    Attributes
    ----------
    slots : frozenset of str
    """

    def __init__(self, slots: Iterable[str]):
        self.slots = frozenset(slots)
        self._lock = threading.Lock()  # who waits for it finds them read

    def read(
        self,
        fields: tvm_ffi.Array,
        but: Collection[str] = (),
        check: Callable[[], object] = lambda: None,
    ) -> None:
        """Read them, but for those in some slots.

        Parameters
        ----------
        fields : tvm_ffi.Array
            The tuple.
        but : collection of str
        check : callable
            Called before; it may raise.

        Raises
        ------
        CheckpointError
            A file has changed, or cannot be read. What is not read is still unread.
        """
        load_library()
        read = tvm_ffi.get_global_func("relax_inplace.ReadNow")
        with self._lock:
            check()
            for slot in sorted(self.slots.difference(but)):
                tensor = leaf_at(fields, slot)
                if tensor is None:
                    continue
                try:
                    read(tensor)
                except RuntimeError as error:
                    where, _, given = str(error).partition(": ")
                    given, _, expected = given.partition(", expected ")
                    refuse(where, given, expected.partition(";")[0], because=error)
                self.slots -= {slot}


def prefetch(tensor: Any) -> None:
    """Ask the system for the first bytes of a tensor, if it is unread: it is needed soon."""
    if isinstance(tensor, tvm_ffi.Tensor) and is_host(tensor.device):
        load_library()
        tvm_ffi.get_global_func("relax_inplace.Prefetch")(tensor)


def _where(record: StoredTensor) -> str:
    return f"{shown(record.file)}, {shown(record.name)}"


class _OpenFile:
    def __init__(self, file: CheckpointFile, checksum: bool):
        self.file = file
        self._content: np.ndarray | None = None
        self._descriptor = open_regular(file.path)
        try:
            file.check_unchanged(self._descriptor)
            if checksum:
                self._content = self._checked()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _checked(self) -> np.ndarray:
        content = np.empty(self.file.nbytes, "uint8")
        read_into(self._descriptor, content, 0, shown(self.file.path))
        found = hashlib.md5(content.data, usedforsecurity=False).hexdigest()
        if found != self.file.md5:
            refuse(
                shown(self.file.path), f"md5 {found}", str(self.file.md5), "download the file again"
            )
        return content

    def read(self, memory: np.ndarray, offset: int, where: str) -> None:
        if self._content is None:
            read_into(self._descriptor, memory, offset, where)
            self.file.check_unchanged(self._descriptor)  # nor was it while it was read
        else:
            memory[:] = self._content[offset : offset + memory.nbytes]

    def read_later(self, tensor: Any, offset: int, where: str) -> bool:
        """Leave the bytes of a tensor in the file; False if they have to be read now."""
        load_library()
        leave = tvm_ffi.get_global_func("relax_inplace.ReadLater")
        is_left = bool(leave(tensor, self._descriptor, offset, where))
        self.file.check_unchanged(self._descriptor)  # from now on the library looks
        return is_left

    def close(self) -> None:
        self._content = None
        os.close(self._descriptor)
