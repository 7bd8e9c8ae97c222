"""Kernels that are scheduled for CUDA: run on the CPU, measured, and compiled by nvcc.

Emulated are the scheduled functions, not yet lowered: what all threads of a thread block do in one
loop over threads they do before the next, as behind a barrier. Within one the order of threads must
not matter, nor that of thread blocks, so they run in two orders. Behind each tensor lie bytes that
must not change. What a thread block moves is counted from the addresses of its threads.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi
from tvm import ir, relax, tirx
from tvm.s_tir import SBlockRealize
from tvm.target import Target

CUDA = Target({"kind": "cuda", "arch": "sm_90"})
NVCC = shutil.which("nvcc")

_GUARD = 4 << 20  # bytes behind each tensor: more than a tile that goes beyond writes


def legalized(build: Callable, *types: relax.TensorType) -> list[tirx.PrimFunc]:
    """The kernels of what is built from operands of some types."""
    builder = relax.BlockBuilder()
    operands = [relax.Var(f"operand{i}", ty) for i, ty in enumerate(types)]
    with builder.function("main", operands):
        builder.emit_func_output(builder.emit(build(*operands)))
    mod = relax.transform.LegalizeOps()(builder.get())
    return [f for _, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]


def fused(build: Callable, *types: relax.TensorType) -> list[tirx.PrimFunc]:
    """The same, fused to one for each output."""
    builder = relax.BlockBuilder()
    operands = [relax.Var(f"operand{i}", ty) for i, ty in enumerate(types)]
    with builder.function("main", operands):
        with builder.dataflow():
            made = builder.emit_output(builder.emit(build(*operands)))
        builder.emit_func_output(made)
    passes = ["LegalizeOps", "AnnotateTIROpPattern", "FuseOps", "FuseTIR"]
    passes = [getattr(relax.transform, name)() for name in passes]
    mod = tvm.transform.Sequential(passes)(builder.get())
    return [f for _, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]


def emulated(
    function: tirx.PrimFunc,
    arrays: Sequence[np.ndarray],
    *,
    aliased: tuple[int, int] | None = None,
    backwards: bool = False,
) -> list[np.ndarray]:
    """What is in the parameters after a call; of two aliased ones the second is the first's memory."""
    plain = _in_one_memory(_serial(function, backwards)).with_attr("global_symbol", "main")
    library = tvm.compile(plain, target="llvm")
    tensors, stores = [], {}
    for number, array in enumerate(arrays):
        if isinstance(array, int):
            tensors.append(array)
            continue
        guarded = np.full(array.nbytes + _GUARD, 0xA5, "uint8")
        guarded[: array.nbytes] = np.frombuffer(array.tobytes(), "uint8")
        stores[number] = tvm.runtime.tensor(guarded)
        tensors.append(_view(stores[number], array))
    if aliased is not None:
        tensors[aliased[1]] = _view(stores[aliased[0]], arrays[aliased[1]])
    library["main"](*tensors)
    for number, store in stores.items():
        assert (store.numpy()[arrays[number].nbytes :] == 0xA5).all(), "written beyond its end"
    return [tensor if isinstance(tensor, int) else tensor.numpy() for tensor in tensors]


def _in_one_memory(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """What is shared, and what is in registers, as plain memory."""
    plain = {}

    def visit(alloc: tirx.AllocBuffer) -> None:
        ty = alloc.buffer.ty
        plain[alloc.buffer] = tirx.decl_buffer(ty.shape, ty.dtype, alloc.buffer.name)

    tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, visit))
    return tvm_ffi.structural_map(
        function, (relax.Var, lambda var: plain.get(var, var)), order="post"
    )


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


# -- what is moved ---------------------------------------------------------------------------------

_SECTOR, _WARP, _BANKS = 32, 32, 32  # bytes, threads, words of 4 bytes


@dataclasses.dataclass
class Traffic:
    """What one thread block does.

    Attributes
    ----------
    moved, needed : int
        Bytes of the sectors that it reads and writes, and bytes that it uses of them.
    most : float
        Moved over needed, of the buffer of which most is moved in vain.
    conflicts : int
        How often a warp goes to shared memory for one access, at most.
    """

    moved: int
    needed: int
    most: float
    conflicts: int


def traffic(function: tirx.PrimFunc, block: int = 0) -> Traffic:
    """Of a kernel of one nest and known sizes; a thread block by its number."""
    run = _Run(block)
    run.statement(function.body, {}, np.array([True]))
    kinds = [(np.unique(np.concatenate(found)), 1) for found in run.touched.values()]
    moved = [len(np.unique(places // _SECTOR)) * _SECTOR for places, _ in kinds]
    needed = [len(places) for places, _ in kinds]
    most = max(one / two for one, two in zip(moved, needed, strict=True))
    return Traffic(sum(moved), sum(needed), most, run.conflicts)


class _Run:
    """The addresses of all threads of a thread block, a number for each, in order."""

    def __init__(self, block):
        self.block, self.touched, self.conflicts = block, {}, 1

    def statement(self, stmt, at, there):
        if isinstance(stmt, tirx.SeqStmt):
            for part in stmt.seq:
                self.statement(part, at, there)
        elif isinstance(stmt, SBlockRealize):
            self.statement(stmt.block.body, at, there)
        elif isinstance(stmt, tirx.For):
            tag = stmt.thread_binding.thread_tag if stmt.thread_binding is not None else ""
            extent = int(stmt.extent)
            if tag == "blockIdx.x":
                self.statement(stmt.body, {**at, stmt.loop_var: min(self.block, extent - 1)}, there)
            elif tag == "threadIdx.x":
                self.statement(
                    stmt.body, {**at, stmt.loop_var: np.arange(extent)}, np.full(extent, True)
                )
            elif stmt.kind == tirx.ForKind.VECTORIZED:
                self.statement(stmt.body, {**at, stmt.loop_var: 0, "lanes": extent}, there)
            else:
                for number in range(extent):
                    self.statement(stmt.body, {**at, stmt.loop_var: number}, there)
        elif isinstance(stmt, tirx.IfThenElse):
            holds = there & self.value(stmt.condition, at)
            self.statement(stmt.then_case, at, holds)
            if stmt.else_case is not None:
                self.statement(stmt.else_case, at, there & ~holds)
        elif isinstance(stmt, tirx.BufferStore):
            self.access(stmt.buffer, stmt.indices, at, there)
            loads = []
            tvm_ffi.structural_walk(stmt.value, (ir.TensorLoad, loads.append))
            for load in loads:
                self.access(load.source, load.indices, at, there)
        else:
            assert isinstance(stmt, (tirx.AllocBuffer, tirx.DeclBuffer, tirx.Bind, tirx.Evaluate))

    def access(self, buffer, indices, at, there):
        scope, size = buffer.ty.storage_scope, tvm_ffi.dtype(str(buffer.ty.dtype)).bits // 8
        if scope == "local" or not there.any():
            return
        first = np.broadcast_to(self.value(indices[0], at), there.shape)
        lanes = at.get("lanes", 1)
        assert not (first[there] % lanes).any(), "a vector that is not aligned"
        places = (first[:, None] * size + np.arange(size * lanes))[there]
        assert places.min() >= 0 and places.max() < int(buffer.ty.shape[0]) * size, "beyond its end"
        if scope == "shared":
            warps = np.split(places, range(_WARP, len(places), _WARP))
            self.conflicts = max(self.conflicts, *map(_conflicts, warps))
            return
        name = re.sub(r"_u?\w*int\d+$|_bfloat16$", "", buffer.name)
        self.touched.setdefault(name, []).append(places.ravel())

    def value(self, expr, at):
        if isinstance(expr, tirx.IntImm):
            return int(expr)
        if isinstance(expr, relax.Var):
            return at[expr]
        if isinstance(expr, tirx.Cast):
            return self.value(expr.value, at)
        return _BINARY[type(expr)](self.value(expr.a, at), self.value(expr.b, at))


def _conflicts(places):
    """How many words of one bank a warp wants, for each word that a thread takes."""
    words = np.unique(places // 4)
    return np.bincount(words % _BANKS).max() / max(1, places.shape[1] // 4)


_BINARY = {
    tirx.Add: np.add,
    tirx.Sub: np.subtract,
    tirx.Mul: np.multiply,
    tirx.FloorDiv: np.floor_divide,
    tirx.FloorMod: np.mod,
    tirx.Div: np.floor_divide,
    tirx.Mod: np.mod,
    tirx.Max: np.maximum,
    tirx.LT: np.less,
    tirx.GE: np.greater_equal,
    tirx.EQ: np.equal,
    tirx.And: np.logical_and,
}


# -- arrays, source --------------------------------------------------------------------------------


def random_arrays(function: tirx.PrimFunc, **sizes: int) -> list[np.ndarray]:
    """Small numbers for the parameters; sizes that are symbolic by name."""
    generator = np.random.default_rng(0)
    arrays = []
    analyzer = tvm.sym.Analyzer()

    def known(var: relax.Var) -> ir.Expr:
        return tirx.const(sizes[str(var.name)], "int64")

    for param in function.params[:]:
        if not isinstance(param.ty, tirx.BufferType):
            arrays.append(sizes[str(param.name)])
            continue
        shape = [
            int(analyzer.simplify(tvm_ffi.structural_map(size, (relax.Var, known), order="post")))
            for size in param.ty.shape[:]
        ]
        dtype = np.dtype(str(param.ty.dtype))
        low, high = {"u": (0, 100), "b": (0, 2)}.get(dtype.kind, (-99, 100))
        arrays.append(generator.integers(low, high, shape).astype(dtype))
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
