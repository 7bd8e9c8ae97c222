"""Kernels that are scheduled for CUDA: run on the CPU, thread by thread, and compiled by nvcc.

Emulated are the scheduled functions, not yet lowered: what all threads of a thread block do in one
nest they do before the next nest, as behind a barrier. Within one the order of threads must not
matter, nor that of thread blocks, so they run in two orders. Behind each tensor lie bytes that must not change.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi
from tvm import ir, relax, tirx
from tvm.target import Target

CUDA = Target({"kind": "cuda", "arch": "sm_90"})
NVCC = shutil.which("nvcc")

_GUARD = 4096  # bytes behind each tensor


def legalized(build: Callable, *types: relax.TensorType) -> list[tirx.PrimFunc]:
    """The kernels of what is built from operands of some types."""
    builder = relax.BlockBuilder()
    operands = [relax.Var(f"operand{i}", ty) for i, ty in enumerate(types)]
    with builder.function("main", operands):
        builder.emit_func_output(builder.emit(build(*operands)))
    mod = relax.transform.LegalizeOps()(builder.get())
    return [f for _, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]


def emulated(
    function: tirx.PrimFunc,
    arrays: Sequence[np.ndarray],
    *,
    aliased: tuple[int, int] | None = None,
    backwards: bool = False,
) -> list[np.ndarray]:
    """What is in the parameters after a call; of two aliased ones the second is the first's memory."""
    text = re.sub(r', scope="(shared|local)"', "", _serial(function, backwards).script())
    plain = tvm.script.from_source(text).with_attr("global_symbol", "main")
    library = tvm.compile(plain, target="llvm")
    tensors, stores = [], []
    for array in arrays:
        guarded = np.full(array.nbytes + _GUARD, 0xA5, "uint8")
        guarded[: array.nbytes] = np.frombuffer(array.tobytes(), "uint8")
        stores.append((tvm.runtime.tensor(guarded), array.nbytes))
        tensors.append(_view(stores[-1][0], array))
    if aliased is not None:
        tensors[aliased[1]] = _view(stores[aliased[0]][0], arrays[aliased[1]])
    library["main"](*tensors)
    for store, size in stores:
        assert (store.numpy()[size:] == 0xA5).all(), "written beyond its end"
    return [tensor.numpy() for tensor in tensors]


def _view(store: tvm.runtime.Tensor, array: np.ndarray) -> tvm.runtime.Tensor:
    return store._create_view(array.shape, str(array.dtype))


def _serial(function: tirx.PrimFunc, backwards: bool) -> tirx.PrimFunc:
    def serial(loop: tirx.For) -> tirx.For:
        if loop.thread_binding is None:
            return loop
        var = tirx.Var(loop.loop_var.name, loop.loop_var.ty.dtype)
        index = var
        if backwards and isinstance(loop.extent, tirx.IntImm):
            # All of it, if it is a power of two. Not extent - 1 - var: of this TVM makes wrong code.
            mask = (int(loop.extent) & -int(loop.extent)) - 1
            index = tirx.bitwise_xor(var, tirx.const(mask, var.ty.dtype)) if mask else var
        replace = (relax.Var, lambda v: index if v.same_as(loop.loop_var) else v)
        body = tvm_ffi.structural_map(loop.body, replace)
        return tirx.For(var, loop.min, loop.extent, tirx.ForKind.SERIAL, body)

    return tvm_ffi.structural_map(function, (tirx.For, serial), order="post")


def random_arrays(function: tirx.PrimFunc, **sizes: int) -> list[np.ndarray]:
    """Numbers from -99 to 99, or 0 to 99, for the parameters; sizes that are symbolic by name."""
    generator = np.random.default_rng(0)
    arrays = []
    for param in function.params[:]:
        shape = [
            int(size) if isinstance(size, tirx.IntImm) else sizes[str(size.name)]
            for size in param.ty.shape[:]
        ]
        dtype = np.dtype(str(param.ty.dtype))
        low = 0 if dtype.kind == "u" else -99
        arrays.append(generator.integers(low, 100, shape).astype(dtype))
    return arrays


def cuda_source(**functions: tirx.PrimFunc) -> str:
    """The kernels of some functions."""
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    library = tvm.compile(ir.IRModule(named), target=CUDA)
    return library.mod.imports[0].inspect_source()


def kernels_in(source: str) -> str:
    """Without what CodeGenCUDA puts before them."""
    return source[source.index('extern "C"') :]


def compiled_by_nvcc(source: str, folder: Path) -> dict[str, dict[str, int]]:
    """For each kernel the bytes of its stack, and of what it spills."""
    path = folder / "kernels.cu"
    path.write_text(source)
    command = ["nvcc", "-cubin", "-O3", "-arch=sm_90", "-Xptxas", "-v", "-o"]
    done = subprocess.run(
        [NVCC, *command[1:], str(folder / "kernels.cubin"), str(path)],
        capture_output=True,
        text=True,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    pattern = (
        r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads"
    )
    return {
        name: {"stack": int(stack), "spilled": int(stores) + int(loads)}
        for name, stack, stores, loads in re.findall(pattern, text)
    }
