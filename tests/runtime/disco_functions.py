"""Functions that the tests of Disco need on the workers: `session.import_python_module` of this."""

import gc
import hashlib
import os
import signal
import threading
import time

import numpy as np
import tvm
import tvm_ffi

from relax_inplace.runtime.disco.worker import Task

# What a weight may begin with, and what its kernel does then.
FAILS, DIES, WAITS = -1.0, -2.0, -3.0
counting = threading.Lock()


@tvm_ffi.register_global_func("test.disco.transpose", override=True)
def transpose(source, target):
    first = source.numpy().flat[0]
    if first == FAILS:
        raise ValueError("the kernel failed")
    if first == DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    give_up = time.monotonic() + 60
    while first == WAITS and time.monotonic() < give_up:  # until all who are at it are to stop
        if all(one.is_stopped or one.outcome for one in tasks()):
            break
        time.sleep(0.02)
    np.from_dlpack(target)[...] = source.numpy().T


def tasks():
    """Those of all workers that are threads of this process."""
    return [one for one in gc.get_objects() if type(one) is Task]


@tvm_ffi.register_global_func("test.disco.split_rows", override=True)
def split_rows(source, target):
    """The shards are parts of the rows."""
    array, workers = source.numpy(), target.shape[0]
    target.copyfrom(array.reshape(workers, array.shape[0] // workers, *array.shape[1:]))


@tvm_ffi.register_global_func("test.disco.add_one", override=True)
def add_one(source, target):
    target.copyfrom(source.numpy() + 1)


@tvm_ffi.register_global_func("test.disco.digest", override=True)
def digest(value):
    """Of a tensor or a tuple: text, which a node can pass on."""
    tensors = [value] if isinstance(value, tvm_ffi.Tensor) else list(value)
    return digest_of([tensor.numpy() for tensor in tensors])


def digest_of(arrays):
    said = [(str(one.dtype), one.shape, one.tobytes()) for one in arrays]
    return hashlib.sha256(repr(said).encode()).hexdigest()


@tvm_ffi.register_global_func("test.disco.field", override=True)
def field(value, index):
    return value[index]


@tvm_ffi.register_global_func("test.disco.input", override=True)
def input_of(rows, columns):
    """The same numbers on all workers."""
    return tvm.runtime.tensor(np.arange(rows * columns, dtype="float32").reshape(rows, columns))


@tvm_ffi.register_global_func("test.disco.kept", override=True)
def kept(rank):
    """How many tasks a worker keeps, as text."""
    for thread in threading.enumerate():
        if thread.name == f"worker {rank}":
            thread.join()
    with counting:  # another worker that counts holds what it has found
        return str(sum(one.rank == rank for one in tasks()))


@tvm_ffi.register_global_func("test.disco.place", override=True)
def place():
    """A worker's number among all."""
    asked = ("worker_rank", "world_size")
    rank, size = (tvm_ffi.get_global_func(f"runtime.disco.{one}")() for one in asked)
    return f"{rank} of {size}"


@tvm_ffi.register_global_func("test.disco.slow", override=True)
def slow():
    time.sleep(0.05)
