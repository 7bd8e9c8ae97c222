"""The ways to convert a workload's weights, and what one of them costs in this process.

Definition: a way is a function ``way(workload, library)`` that makes the weights, touched, and all
that can be ready before they are converted. It returns a function that converts them once. Only
the weights are handed over: nothing else keeps them.

===================  ===============================================================================
warm copy            the same bytes, from touched memory into touched memory of TVM's, by one
                     thread: what the others are compared with. Twice; the faster one counts
warm copy, 2 cores   the same by a thread on each
TVM out of place     ``LiftTransformParams``
TVM consume_params   the same, where each slot is emptied as it is read
numpy, torch         a loop that drops each weight once its new one is made
jax                  ``jax.jit`` of all of it, its argument donated
in place             ``InplaceTransformParams``
===================  ===============================================================================

The ways of TVM, and ours, are compiled by ``tvm.compile(mod, "llvm")``. The weights of *in place*
lie where `load_params` puts them. Every way has the threads that it takes by default, of two cores.
Time is that of the conversion alone. Extra memory is the highest resident memory (VmHWM, reset
before by /proc/self/clear_refs) above what was resident before.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from operations import OPERATIONS
from workloads import Weight, Workload

__all__ = [
    "COMPILED",
    "CORES",
    "FLOOR",
    "WAYS",
    "compile_way",
    "makes_views",
    "measure",
    "verify",
    "weights_of",
    "why_missing",
]

CORES = 2

_IN_PLACE = "inplace_transform_params"
_Convert = Callable[[], list[Any]]

# -- TVM, and ours ---------------------------------------------------------------------------------


def _model(workload: Workload) -> Any:
    """A model that returns its weights converted: every way of TVM's starts from it."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1,), "float32"))
    weights = [
        relax.Var(f"w{i}", relax.TensorType(weight.shape, weight.dtype))
        for i, weight in enumerate(workload.weights)
    ]
    with builder.function("main", [x, *weights], attrs={"num_input": 1}):
        with builder.dataflow():
            left = iter(weights)
            new = []
            for step in workload.steps:
                spent = [next(left) for _ in step.weights]
                made = builder.emit(OPERATIONS[step.operation].relax(*spent))
                if isinstance(made.ty, relax.TupleType):
                    fields = range(len(made.ty.fields))
                    new += [builder.emit(relax.TupleGetItem(made, i)) for i in fields]
                else:
                    new.append(made)
            out = builder.emit_output(relax.Tuple([x, *new]))
        builder.emit_func_output(out)
    return builder.get()


def _lifted(workload: Workload, consumes: bool = False) -> Any:
    """``transform_params(weights)``, without the model."""
    import tvm
    from tvm import relax

    with tvm.transform.PassContext(config={"relax.lift_transform_params.consume_params": consumes}):
        mod = relax.transform.LiftTransformParams(shared_transform=True)(_model(workload))
    del mod["main"]
    return mod


def _in_place(workload: Workload) -> Any:
    from relax_inplace.transform import InplaceTransformParams

    return InplaceTransformParams()(_lifted(workload))


COMPILED: dict[str, Callable[[Workload], Any]] = {
    "TVM out of place": _lifted,
    "TVM consume_params": functools.partial(_lifted, consumes=True),
    "in place": _in_place,
}


def host_cpu() -> str:
    """The name that LLVM has for this machine's processor."""
    from tvm.target.codegen import llvm_get_system_cpu

    return llvm_get_system_cpu()


def compile_way(way: str, workload: Workload, library: str) -> None:
    """Compile a way into a shared library."""
    import tvm

    tvm.compile(COMPILED[way](workload), "llvm").export_library(library)


def _compiled(name: str, workload: Workload, library: str | None) -> _Convert:
    import tvm
    import tvm_ffi
    from tvm import relax

    import relax_inplace

    relax_inplace.libinfo.load_library()
    convert = relax.VirtualMachine(tvm.runtime.load_module(library), tvm.cpu())[name]
    holder = [tvm_ffi.Array(weights_of(workload, is_ours=name == _IN_PLACE))]
    return lambda: convert(holder.pop())


def weights_of(workload: Workload, is_ours: bool = False) -> list[Any]:
    """The weights as TVM's tensors, or as `load_params` makes them."""
    import tvm

    from relax_inplace.runtime.empty_tensor import empty

    weights = []
    for i, weight in enumerate(workload.weights):
        made = empty if is_ours else tvm.runtime.empty
        weights.append(made(weight.shape, weight.dtype, tvm.cpu()))
        _fill(_bytes_at(weights[-1].data_ptr(), weight.nbytes), weight, i)
    return weights


# -- libraries of arrays ---------------------------------------------------------------------------


def _loop(
    workload: Workload, xp: Any, arrays: list[Any], contiguous: Callable[[Any], Any]
) -> _Convert:
    def convert() -> list[Any]:
        arrays.reverse()  # the next weight is the last
        new = []
        for step in workload.steps:
            spent = [arrays.pop() for _ in step.weights]
            made = OPERATIONS[step.operation].arrays(xp, *spent)
            new += map(contiguous, made if isinstance(made, tuple) else (made,))
            del spent, made
        return new

    return convert


def _numpy(workload: Workload, library: str | None = None) -> _Convert:
    return _loop(workload, np, _arrays(workload), np.ascontiguousarray)


def _torch(workload: Workload, library: str | None = None) -> _Convert:
    import torch

    weights = []
    for i, weight in enumerate(workload.weights):
        weights.append(torch.empty(weight.shape, dtype=getattr(torch, weight.dtype)))
        _fill(_bytes_at(weights[-1].data_ptr(), weight.nbytes), weight, i)
    torch.ones(1024, 1024).t().contiguous().mul_(2)  # starts the threads
    return _loop(workload, torch, weights, torch.Tensor.contiguous)


def _jax(workload: Workload, library: str | None = None) -> _Convert:
    import warnings

    import jax
    import jax.numpy as jnp

    def convert(weights: list[Any]) -> list[Any]:
        return _loop(workload, jnp, list(weights), lambda new: new)()

    types = [jax.ShapeDtypeStruct(weight.shape, weight.dtype) for weight in workload.weights]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        compiled = jax.jit(convert, donate_argnums=0).lower(types).compile()
    holder = [[jnp.array(array, copy=True) for array in _arrays(workload)]]
    jax.block_until_ready(holder)
    return lambda: jax.block_until_ready(compiled(holder.pop()))


# -- the floor -------------------------------------------------------------------------------------


def _copy_seconds(workload: Workload, threads: int) -> float:
    # Of TVM's memory, as the weights are: numpy's comes in huge pages, which are quicker to copy.
    tensors = [weights_of(workload) for _ in range(2)]
    sources, targets = (
        [_bytes_at(t.data_ptr(), w.nbytes) for t, w in zip(each, workload.weights, strict=True)]
        for each in tensors
    )

    def copy(part: int, parts: int) -> None:
        for source, target in zip(sources, targets, strict=True):
            begin, end = (len(source) * at // parts for at in (part, part + 1))
            np.copyto(target[begin:end], source[begin:end])

    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(time.sleep, [0.001] * threads))
        for _ in range(2):
            start = time.perf_counter()
            list(pool.map(copy, range(threads), [threads] * threads))
            seconds.append(time.perf_counter() - start)
    return min(seconds)


# -- weights ---------------------------------------------------------------------------------------

_PERIOD = 1_000_003  # elements, a prime: rows and tiles of a weight differ


def _arrays(workload: Workload) -> list[np.ndarray]:
    arrays = []
    for i, weight in enumerate(workload.weights):
        arrays.append(np.empty(weight.shape, weight.dtype))
        _fill(arrays[-1].reshape(-1).view("uint8"), weight, i)
    return arrays


def _fill(memory: np.ndarray, weight: Weight, seed: int) -> None:
    """Write numbers as a model has them; the same ones, whatever they lie in."""
    numbers = _numbers(weight.dtype).view("uint8")
    first = seed * 4099 * np.dtype(weight.dtype).itemsize % len(numbers)
    memory[: len(numbers) - first] = numbers[first:][: len(memory)]
    for begin in range(len(numbers) - first, len(memory), len(numbers)):
        memory[begin : begin + len(numbers)] = numbers[: len(memory) - begin]


@functools.cache
def _numbers(dtype: str) -> np.ndarray:
    """Kept, and made without a large temporary: glibc's threshold would rise as that is freed."""
    generator = np.random.default_rng(0)
    numbers = np.empty(_PERIOD, dtype)
    for begin in range(0, _PERIOD, 8192):
        part = numbers[begin : begin + 8192]
        if dtype.startswith("float"):
            part[:] = generator.standard_normal(len(part)) / 64
        else:
            part[:] = generator.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, len(part))
    return numbers


def _bytes_at(address: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), "uint8")


# -- what a way costs ------------------------------------------------------------------------------

FLOOR = "warm copy"
WAYS: dict[str, Callable[[Workload, str | None], _Convert] | None] = {
    FLOOR: None,
    "warm copy, 2 cores": None,
    "TVM out of place": functools.partial(_compiled, "transform_params"),
    "TVM consume_params": functools.partial(_compiled, "transform_params"),
    "numpy": _numpy,
    "torch": _torch,
    "jax": _jax,
    "in place": functools.partial(_compiled, _IN_PLACE),
}

_OPTIONAL = ("torch", "jax")
_OF_VIEWS = ("numpy", "torch")  # jax has none


def why_missing(way: str) -> str | None:
    """Why a way cannot be measured here; None if it can."""
    if way in _OPTIONAL and importlib.util.find_spec(way) is None:
        return "not installed"
    return None


def makes_views(way: str, workload: Workload) -> bool:
    """Whether all that a way returns is still the memory of the weights."""
    return way in _OF_VIEWS and all(OPERATIONS[step.operation].is_view for step in workload.steps)


def measure(way: str, workload: Workload, library: str | None) -> dict[str, float | None]:
    """Seconds of a conversion in this process, and its extra memory in bytes."""
    if WAYS[way] is None:
        return {"seconds": _copy_seconds(workload, 1 if way == FLOOR else CORES), "extra": None}
    convert = WAYS[way](workload, library)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free already shall not hide what is allocated
    can_reset = os.access("/proc/self/clear_refs", os.W_OK)
    if can_reset:
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")  # resets VmHWM
    before = _resident("VmRSS") if can_reset else 0
    start = time.perf_counter()
    converted = convert()
    seconds = time.perf_counter() - start
    extra = max(0, _resident("VmHWM") - before) if can_reset else None
    del converted
    return {"seconds": seconds, "extra": extra}


def _resident(key: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) * 1024


def verify(way: str, workload: Workload, library: str | None) -> dict[str, Any]:
    """A digest of the new weights, the bytes of the largest, and how many were allocated.

    Allocations are those by TVM, of at least half of the smallest weight; None of other libraries.
    """
    if WAYS[way] is None:
        return {"digest": None, "largest": 0, "allocations": None}
    least = min(weight.nbytes for weight in workload.weights) / 2
    sizes: list[int] = []
    with _recorded_allocations(sizes) if way in COMPILED else contextlib.nullcontext():
        convert = WAYS[way](workload, library)
        sizes.clear()
        converted = _observed(convert, sizes) if way == "in place" else convert()
    digest, largest = hashlib.sha256(), 0
    for new in converted:
        array = np.from_dlpack(new) if way in COMPILED else np.asarray(new)
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(memoryview(array).cast("B"))
        largest = max(largest, array.nbytes)
    allocations = sum(size >= least for size in sizes) if way in COMPILED else None
    return {"digest": digest.hexdigest(), "largest": largest, "allocations": allocations}


def _observed(convert: _Convert, sizes: list[int]) -> list[Any]:
    """What a conversion in place makes; the bytes of each tensor that took no storage."""
    import tvm_ffi

    converted = []

    def told(_slot: str | None, nbytes: int, _out: int, why: Any) -> None:
        if isinstance(why, str) and why:
            sizes.append(nbytes)

    observe = tvm_ffi.get_global_func("relax_inplace.ObserveUpdates")
    observe(told, lambda _: converted.append(convert()), tvm_ffi.Array([0]))
    return converted.pop()


@contextlib.contextmanager
def _recorded_allocations(sizes: list[int]) -> Iterator[None]:
    """The bytes of what TVM's virtual machine allocates."""
    import tvm_ffi

    name = "vm.builtin.alloc_storage"
    stock = tvm_ffi.get_global_func(name)

    def allocate(context: Any, shape: Any, *others: Any) -> Any:
        sizes.append(shape[0])
        return stock(context, shape, *others)  # no name for it: nothing may refer to it but TVM

    tvm_ffi.register_global_func(name, allocate, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(name, stock, override=True)
