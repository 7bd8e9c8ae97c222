"""The bytes that are live while a compiled function runs, to the byte.

Storage that the virtual machine allocates is recorded as it does; whether it is alive is read from
its reference count. A weight lies in a numpy array, which a weak reference watches. Resident memory
(memory.py) shows large tensors only.
"""

import contextlib
import ctypes
import weakref

import numpy as np
import tvm  # noqa: F401  whose runtime registers the allocation that is recorded
import tvm_ffi

_ALLOC = "vm.builtin.alloc_storage"
_ALIGNMENT = 64  # of what kernels take


def watched(array):
    """A tensor with the contents of an array, which nothing else refers to, and a watch on it."""
    memory = np.empty(array.nbytes + _ALIGNMENT, "uint8")
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return tvm_ffi.from_dlpack(copy), (weakref.ref(memory), array.nbytes)


def _references(value):
    # TVMFFIObject (tvm/ffi/c_api.h) begins with its counts: strong ones in the lower 32 bits.
    return ctypes.c_uint32.from_address(value.__chandle__()).value


class _Recorder:
    def __init__(self, weights):
        self.weights = weights
        self.storage = []
        self.peak = self.now()

    def now(self):
        weights = sum(size for memory, size in self.weights if memory() is not None)
        # Each storage is held once by this recorder.
        return weights + sum(size for s, size in self.storage if _references(s) > 1)

    def allocated(self, storage, size):
        self.peak = max(self.peak, self.now() + size)
        self.storage = [entry for entry in self.storage if _references(entry[0]) > 1]
        self.storage.append((storage, size))


_recorder = None
_stock = tvm_ffi.get_global_func(_ALLOC, allow_missing=True)


def _alloc_storage(context, shape, *others):
    storage = _stock(context, shape, *others)
    if _recorder is not None:
        _recorder.allocated(storage, shape[0])
    return storage


@contextlib.contextmanager
def recorded_allocations():
    """Virtual machines that are made and run inside report what they allocate."""
    tvm_ffi.register_global_func(_ALLOC, _alloc_storage, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(_ALLOC, _stock, override=True)


def loaded(watch):
    """A weight has been made while the function runs that asked for it."""
    _recorder.weights.append(watch)
    _recorder.peak = max(_recorder.peak, _recorder.now())


def peak_of(call, watches):
    """(the most bytes that were live during a call, what it returned).

    The function was loaded with recording. ``watches`` are those of its weights; if it is streamed,
    those that are ``loaded`` while it runs are added.
    """
    global _recorder
    _recorder = _Recorder(watches)
    try:
        result = call()
        return _recorder.peak, result
    finally:
        _recorder = None
