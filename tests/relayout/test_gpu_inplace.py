"""Kernels that write over their input on CUDA: emulated in one memory and in two."""

import re

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
from hypothesis import assume, given
from hypothesis import strategies as st
from inplace_kernels import moves, random_array, te_kernel
from profiles import examples
from tvm import relax, te, tirx
from tvm.target import Target

from relax_inplace.layout import faster_transformer, ggml, tiles
from relax_inplace.relayout.gpu_inplace import schedule_gpu_inplace
from relax_inplace.relayout.gpu_relayout import described, schedule_gpu_relayout

T, op = relax.TensorType, relax.op
n = tirx.Var("n", "int64")

SAME_POSITION = {
    "negative": (lambda w: op.negative(w), [T((99, 63), "float32")]),
    "scale": (lambda w: op.multiply(w, relax.const(0.5, "float16")), [T((99, 64), "float16")]),
    "add": (lambda w, v: op.add(w, v), [T((99, 64), "float32"), T((99, 64), "float32")]),
    "row_scale": (lambda w, v: op.multiply(w, v), [T((99, 64), "float32"), T((99, 1), "float32")]),
    "reshape": (lambda w: op.reshape(w, (64, 99)), [T((99, 64), "float32")]),
    "one_row": (lambda w: op.negative(w), [T((1, 4099), "float16")]),
    "nibbles_of_words": (
        lambda w: faster_transformer.to_mixed_gemm(w, arch=70, bits=4),
        [T((24, 128), "int8")],
    ),
    "pairs": (lambda w: op.flip(w, 1), [T((101, 2), "float32")]),
    "triangle": (lambda w: op.triu(w), [T((99, 64), "float32")]),
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
    "flip_three": (lambda w: op.flip(w, 1), [T((101, 3), "float16")]),  # in no group of 2^n
    "flip_prime": (lambda w: op.flip(w, 1), [T((101, 61), "float16")]),
    "two_blocks": (lambda w: op.permute_dims(w, (0, 2, 1)), [T((2, 61, 31), "uint8")]),
    "one_column": (lambda w: op.flip(w, 1), [T((3, 4099, 1), "uint8")]),
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
    assert ("alloc_shared" in function.script()) == (name in BLOCKS)
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


@pytest.mark.parametrize("rows", [0, 1, 5, 61])
def test_symbolic_rows(rows):
    for ty, build, expected in (
        (T((n, 96), "float32"), lambda w: op.flip(w, 1), lambda w: w[:, ::-1]),
        (
            T((n, 12, 7), "uint8"),
            lambda w: op.permute_dims(w, (0, 2, 1)),
            lambda w: w.swapaxes(1, 2),
        ),
        (T((n, 5), "float16"), op.negative, np.negative),
        (T((n, 40), "float32"), lambda w: op.tril(w, 2), lambda w: np.tril(w, 2)),
    ):
        (kernel,) = legalized(build, ty)
        given, made = random_arrays(kernel, n=rows)
        result = emulated(scheduled(kernel), [given, made], aliased=(0, 1))[1]
        assert (result == expected(given)).all()


@examples(25, fuzz=1000)
@given(moves(may_cast=False), st.booleans())
def test_any_moves(drawn, backwards):
    function = schedule_gpu_inplace(drawn.kernel, CUDA)
    assume(function is not None)
    given = random_array(np.random.default_rng(0), drawn.shape, drawn.dtype)
    made = np.zeros([int(size) for size in drawn.kernel.params[1].ty.shape], drawn.made)
    expected = given.reshape(-1)[drawn.sources].tobytes()
    for aliased in (None, (0, 1)):
        result = emulated(function, [given, made], aliased=aliased, backwards=backwards)[1]
        assert result.tobytes() == expected


def two_outputs(a, b):
    negative = te.compute((64, 96), lambda i, j: tirx.const(0, "float32") - a[i, j], "negative")
    return negative, te.compute((96, 64), lambda i, j: b[j, i], "turned")


def test_words_of_several_sizes_do_not_go_through_shared_memory():
    """Of each row three bytes are turned around, and nibbles change places with neighbours."""
    place = te.placeholder((12, 24), "uint8", name="given")

    def element(i, j):
        four, low, high = (tirx.const(n, "uint8") for n in (4, 15, 240))
        even = (place[i, j] & low) | ((place[i, j + 1] & low) << four)
        pairs = te.if_then_else(j % 2 < 1, even, (place[i, j - 1] >> four) | (place[i, j] & high))
        return te.if_then_else(j < 3, place[i, 2 - j], te.if_then_else(j < 4, place[i, j], pairs))

    kernel = te.create_prim_func([place, te.compute((12, 24), element, "made")])
    ((_, parts),) = described(kernel, CUDA)
    assert {read.bits for part in parts for read in part.reads} == {8, 16}
    assert schedule_gpu_inplace(kernel, CUDA) is None
    arrays = random_arrays(kernel)
    expected = emulated(kernel, arrays)[1]
    assert (emulated(schedule_gpu_relayout(kernel, CUDA), arrays)[1] == expected).all()


def test_another_output_is_other_memory():
    kernel = te_kernel(two_outputs, ((64, 96), "float32"), ((64, 96), "float32"))
    function = scheduled(kernel)
    assert pairs_of(function) == [(0, 2)]
    arrays = random_arrays(kernel)
    result = emulated(function, arrays, aliased=(0, 2))
    assert (result[2] == -arrays[0]).all() and (result[3] == arrays[1].T).all()


def test_an_input_of_two_outputs_is_not_written_over():
    kernel = te_kernel(lambda a: two_outputs(a, a), ((64, 96), "float32"))
    assert schedule_gpu_inplace(kernel, CUDA) is None


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
    (kernel,) = legalized(build, *types)
    assert schedule_gpu_inplace(kernel, Target("llvm")) is None
    scheduled(kernel)


def test_all_is_read_before_the_barrier():
    build, types = BLOCKS["flip_prime"]
    source = kernels_in(cuda_source(kernel=scheduled(legalized(build, *types)[0])))
    body = source[source.rindex("{\n  __shared__") :]
    before, after = body.split("__syncthreads();")
    assert "found_ptr[0] = ((ushort*)base)" in before and "base" not in after
    (output,) = re.findall(r"ushort\* (\w+) = .*base \+ away1", before)
    assert f"{output}[" in after and f"{output}[" not in before


@pytest.mark.parametrize("name", [*SAME_POSITION, *BLOCKS])
def test_no_two_pointers_are_the_same_memory(name):
    """TVM says of each pointer that nothing else reaches its memory, whatever it is told."""
    build, types = {**SAME_POSITION, **BLOCKS}[name]
    (kernel,) = legalized(build, *types)
    source = kernels_in(cuda_source(kernel=scheduled(kernel)))
    for signature in re.findall(r"__global__[^{;]*\{", source):
        assert signature.count("*") == signature.count("__restrict__") == 1


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")
def test_nvcc_compiles_all_and_keeps_all_in_registers(tmp_path):
    functions = {
        name: scheduled(legalized(build, *types)[0])
        for name, (build, types) in {**SAME_POSITION, **BLOCKS}.items()
    }
    compiled = compiled_by_nvcc(cuda_source(**functions), tmp_path)
    assert len(compiled) == len(functions)
    assert all(used == {"stack": 0, "spilled": 0} for used in compiled.values()), compiled
