"""Kernels that write over their input on CUDA: emulated in one memory and in two."""

import numpy as np
import pytest
from emulated_gpu import (
    CUDA,
    NVCC,
    compiled_by_nvcc,
    cuda_source,
    emulated,
    kernels_in,
    legalized,
    random_arrays,
)
from tvm import relax, tirx
from tvm.target import Target

from relax_inplace.layout import ggml, tiles
from relax_inplace.relayout.gpu_inplace import schedule_gpu_inplace

T, op = relax.TensorType, relax.op
n = tirx.Var("n", "int64")

SAME_POSITION = {
    "negative": (lambda w: op.negative(w), [T((99, 63), "float32")]),
    "scale": (lambda w: op.multiply(w, relax.const(0.5, "float16")), [T((99, 64), "float16")]),
    "add": (lambda w, v: op.add(w, v), [T((99, 64), "float32"), T((99, 64), "float32")]),
    "row_scale": (lambda w, v: op.multiply(w, v), [T((99, 64), "float32"), T((99, 1), "float32")]),
    "reshape": (lambda w: op.reshape(w, (64, 99)), [T((99, 64), "float32")]),
}
BLOCKS = {
    "interleave": (lambda w: ggml.interleave(w), [T((64, 288), "uint8")]),
    "interleave_odd": (lambda w: ggml.interleave(w), [T((28, 54), "uint8")]),
    # 23 blocks for a thread block, 1,242 groups for its threads
    "interleave_rest": (lambda w: ggml.interleave(w), [T((184, 54), "uint8")]),
    "deinterleave": (lambda w: ggml.deinterleave(w), [T((13, 5, 72), "uint8")]),
    "pack": (lambda w: tiles.pack(w, 16, 32), [T((96, 128), "float16")]),
    "unpack": (lambda w: tiles.unpack(w), [T((16, 4, 16, 64), "float16")]),
    "heads": (lambda w: op.permute_dims(w, (0, 2, 1)), [T((15, 64, 48), "float16")]),
    "heads_bytes": (lambda w: op.permute_dims(w, (0, 2, 1)), [T((7, 33, 48), "uint8")]),
    "flip": (lambda w: op.flip(w, 1), [T((100, 70), "float32")]),
}


def scheduled(function):
    result = schedule_gpu_inplace(function, CUDA)
    assert result is not None
    assert result.attrs["tirx.is_scheduled"]
    assert not result.attrs["tirx.noalias"]
    assert result.params[:] == function.params[:]
    return result


def pairs_of(function):
    return [tuple(map(int, pair)) for pair in function.attrs["relax_inplace.inplace"]]


@pytest.mark.parametrize("name", [*SAME_POSITION, *BLOCKS])
def test_one_memory_or_two(name):
    build, types = {**SAME_POSITION, **BLOCKS}[name]
    (kernel,) = legalized(build, *types)
    function = scheduled(kernel)
    assert ('scope="shared"' in function.script()) == (name in BLOCKS)
    arrays = random_arrays(kernel)
    expected = emulated(kernel, arrays)[-1]
    assert (emulated(function, arrays)[-1] == expected).all()
    assert pairs_of(function)
    for aliased in pairs_of(function):
        for backwards in (False, True):
            result = emulated(function, arrays, aliased=aliased, backwards=backwards)
            assert (result[aliased[1]] == expected).all()


def test_either_of_two_operands():
    build, types = SAME_POSITION["add"]
    assert pairs_of(scheduled(legalized(build, *types)[0])) == [(0, 2), (1, 2)]


@pytest.mark.parametrize("rows", [1, 5])
def test_symbolic_rows(rows):
    (kernel,) = legalized(lambda w: op.flip(w, 1), T((n, 96), "float32"))
    function = scheduled(kernel)
    given = np.arange(rows * 96, dtype="float32").reshape(rows, 96)
    result = emulated(function, [given, given * 0], aliased=(0, 1))[1]
    assert (result == given[:, ::-1]).all()


@pytest.mark.parametrize(
    ("build", "ty"),
    [
        (lambda w: op.astype(w, "float16"), T((64, 64), "float32")),  # thread blocks have no order
        (lambda w: op.astype(w, "float32"), T((64, 64), "float16")),
        (lambda w: op.permute_dims(w), T((512, 512), "float32")),
        (lambda w: op.flip(w, 1), T((8, 16 * 1024), "float32")),  # 64 KB do not fit
        (lambda w: op.sum(w, 1), T((64, 64), "float32")),
    ],
    ids=["narrower", "wider", "transpose", "too large", "sum"],
)
def test_what_is_not_in_place(build, ty):
    (kernel,) = legalized(build, ty)
    assert schedule_gpu_inplace(kernel, CUDA) is None


def test_other_targets():
    build, types = SAME_POSITION["negative"]
    assert schedule_gpu_inplace(legalized(build, *types)[0], Target("llvm")) is None


def test_all_is_read_before_the_barrier():
    build, types = BLOCKS["flip"]
    source = kernels_in(cuda_source(kernel=scheduled(legalized(build, *types)[0])))
    body = source[source.rindex("{\n  __shared__") :]
    before, after = body.split("__syncthreads();")
    source_name = "p0_ptr" if "p0_ptr" in body else "operand0_ptr"
    assert source_name in before and source_name not in after
    assert "T_reverse_sequence_ptr" in after and "T_reverse_sequence_ptr" not in before


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")
def test_nvcc_compiles_all_and_keeps_all_in_registers(tmp_path):
    functions = {
        name: scheduled(legalized(build, *types)[0])
        for name, (build, types) in {**SAME_POSITION, **BLOCKS}.items()
    }
    compiled = compiled_by_nvcc(cuda_source(**functions), tmp_path)
    assert len(compiled) == len(functions)
    assert all(used == {"stack": 0, "spilled": 0} for used in compiled.values()), compiled
