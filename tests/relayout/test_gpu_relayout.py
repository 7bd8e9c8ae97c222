"""Relayout kernels on CUDA: emulated on the CPU, bitwise against numpy, and compiled by nvcc."""

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
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from tvm import relax, te, tirx
from tvm.target import Target

from relax_inplace.layout import awq, faster_transformer, ggml, tiles
from relax_inplace.relayout.gpu_relayout import schedule_gpu_relayout

T, op = relax.TensorType, relax.op
n, m = tirx.Var("n", "int64"), tirx.Var("m", "int64")


def scheduled(function):
    result = schedule_gpu_relayout(function, CUDA)
    assert result is not None
    assert result.attrs["tirx.is_scheduled"]
    assert result.params[:] == function.params[:]
    return result


def permuted(shape, axes, dtype, to=None):
    (kernel,) = legalized(lambda w: op.permute_dims(w, axes), T(shape, dtype))
    if to is None:
        return kernel
    shape = [tirx.const(size, "int64") for size in shape]
    place = te.placeholder(shape, dtype, name="given")

    def element(*at):
        return place[tuple(at[axes.index(axis)] for axis in range(len(axes)))].astype(to)

    return te.create_prim_func([place, te.compute([shape[a] for a in axes], element, "made")])


def is_tiled(function):
    return 'scope="shared"' in function.script()


# -- what is chosen ------------------------------------------------------------------------------


def test_a_transpose_reads_and_writes_rows_of_a_tile():
    place = te.placeholder((512, 256), "float32", name="given")
    made = te.compute((256, 512), lambda i, j: place[j, i], "made")
    script = scheduled(te.create_prim_func([place, made])).script()
    for line in (
        'given_shared = T.sblock_alloc_buffer((512, 256), scope="shared")',
        'in T.thread_binding(128, thread="blockIdx.x")',  # tiles of 32 x 32
        'in T.thread_binding(256, thread="threadIdx.x")',
        'T.sblock_attr({"buffer_dim_align": [[0, 0, 2, 1]]})',  # rows of 33
        "given_shared[v0, v1] = given[v0, v1]",
        "made[v_i, v_j] = given_shared[v_j, v_i]",
    ):
        assert line in script


@pytest.mark.parametrize(
    ("build", "types", "tiled"),
    [
        (lambda w: op.permute_dims(w), [T((4096, 4096), "float16")], True),
        (lambda w: op.permute_dims(w, (1, 0, 2)), [T((64, 512, 32), "float32")], False),
        (lambda w: op.permute_dims(w, (1, 0, 2)), [T((512, 512, 2), "float32")], True),
        (lambda w: op.astype(w, "float16"), [T((512, 512), "float32")], False),
        (lambda w: op.strided_slice(w, [0], [3], [40]), [T((64, 512), "int8")], False),
        (lambda w, v: op.concat([w, v], 1), [T((64, 512), "int8"), T((64, 64), "int8")], False),
        (lambda w: tiles.pack(w, 16, 64), [T((512, 512), "float16")], False),
        (lambda w: tiles.unpack(w), [T((128, 128, 4, 4), "float16")], True),
        (lambda w: tiles.pack_vnni(w), [T((512, 512), "int8")], True),
        (lambda w: ggml.interleave(w), [T((512, 2304), "uint8")], False),
        (lambda w: awq.codes_to_groups(w, "int32"), [T((512, 64), "int32")], True),
    ],
    ids=[
        "transpose",
        "rows of 128 bytes",
        "pairs",
        "cast",
        "slice",
        "concat",
        "pack",
        "unpack",
        "vnni",
        "interleave",
        "awq",
    ],
)
def test_tiles_are_for_kernels_that_would_read_parts_of_sectors(build, types, tiled):
    (kernel,) = legalized(build, *types)
    assert is_tiled(scheduled(kernel)) == tiled


@pytest.mark.parametrize(
    ("build", "types"),
    [
        (lambda w: op.sum(w, 1), [T((64, 64), "float32")]),
        (lambda w, i: op.take(w, i, 0), [T((64, 64), "float32"), T((8,), "int32")]),
        (lambda w: op.permute_dims(w), [T((64, 64), "bool")]),
        (lambda w: op.permute_dims(w), [T((0, 64), "float32")]),
        (lambda w: op.cumsum(w, 1), [T((64, 64), "float32")]),
    ],
    ids=["sum", "take", "bool", "empty", "cumsum"],
)
def test_other_kernels_are_left_to_tvm(build, types):
    for kernel in legalized(build, *types):
        assert schedule_gpu_relayout(kernel, CUDA) is None


def test_other_targets_are_left_to_tvm():
    kernel = permuted((64, 64), (1, 0), "float32")
    assert schedule_gpu_relayout(kernel, Target("llvm")) is None


# -- that it is right ----------------------------------------------------------------------------

DTYPES = ["uint8", "int8", "float16", "float32", "int64"]
SIZES = st.sampled_from([1, 2, 3, 4, 5, 8, 24, 31, 32, 33, 64, 100, 129])


@examples(20)
@given(data=st.data())
def test_any_permutation(data):
    shape = data.draw(st.lists(SIZES, min_size=2, max_size=4).filter(lambda s: np.prod(s) < 200000))
    axes = data.draw(st.permutations(range(len(shape))))
    dtype = data.draw(st.sampled_from(DTYPES))
    to = data.draw(st.sampled_from([None, "float32", "int8", "float16"]))
    kernel = permuted(tuple(shape), tuple(axes), dtype, to)
    given, made = random_arrays(kernel)
    backwards = data.draw(st.booleans())
    result = emulated(scheduled(kernel), [given, made], backwards=backwards)[1]
    assert (result == given.transpose(axes).astype(made.dtype)).all()


KERNELS = {
    "interleave": (lambda w: ggml.interleave(w), [T((64, 288), "uint8")]),
    "deinterleave": (lambda w: ggml.deinterleave(w), [T((12, 16, 72), "uint8")]),
    "mixed_gemm": (lambda w: faster_transformer.to_mixed_gemm(w), [T((256, 128), "int8")]),
    "pack": (lambda w: tiles.pack(w, 16, 64), [T((100, 200), "float16")]),
    "pack_small": (lambda w: tiles.pack(w, 5, 6), [T((99, 61), "float16")]),
    "unpack": (lambda w: tiles.unpack(w), [T((32, 8, 4, 6), "float16")]),
    "vnni": (lambda w: tiles.pack_vnni(w), [T((70, 96), "int8")]),
    "unvnni": (lambda w: tiles.unpack_vnni(w), [T((24, 70, 4), "int8")]),
    "awq": (lambda w: awq.codes_to_groups(w, "int32"), [T((128, 40), "int32")]),
    "awq_back": (lambda w: awq.codes_from_groups(w, "int32"), [T((320, 16), "uint32")]),
    "scale": (lambda w: op.multiply(w, relax.const(0.5, "float16")), [T((99, 64), "float16")]),
    "scale_odd": (lambda w: op.multiply(w, relax.const(0.5, "float16")), [T((9, 63), "float16")]),
    "one_number": (lambda w: op.expand_dims(w, 0), [T((), "float16")]),
    "every_second": (lambda w: op.strided_slice(w, [1], [1], [99], [2]), [T((64, 99), "float16")]),
    "split": (lambda w: op.split(w, 2, 1), [T((64, 96), "float16")]),
    "concat": (lambda w, v: op.concat([w, v], 1), [T((64, 99), "int8"), T((64, 13), "int8")]),
    "concat_even": (lambda w, v: op.concat([w, v], 1), [T((9, 96), "int8"), T((9, 16), "int8")]),
    "flip": (lambda w: op.flip(w, 1), [T((64, 96), "float16")]),
    "broadcast": (lambda w: op.broadcast_to(w, (5, 64, 96)), [T((64, 96), "float16")]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_as_unscheduled(name):
    build, types = KERNELS[name]
    for kernel in legalized(build, *types):
        arrays = random_arrays(kernel)
        want = emulated(kernel, arrays)
        for result, expected in zip(emulated(scheduled(kernel), arrays), want, strict=True):
            assert (result == expected).all()


def flipped_bits(shape, axes):
    """A permutation of what is computed element by element, as by no vector instruction."""
    place = te.placeholder(shape, "uint8", name="given")

    def element(*at):
        found = place[tuple(at[axes.index(axis)] for axis in range(len(axes)))]
        return te.if_then_else(at[-1] % 3 < 1, found, found ^ tirx.const(136, "uint8"))

    return te.create_prim_func([place, te.compute([shape[a] for a in axes], element, "made")])


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((256, 256), (1, 0)),
        ((256, 252), (1, 0)),
        ((200, 36), (1, 0)),
        ((44, 12, 256), (2, 0, 1)),  # 16.5 times as many groups in a tile as threads
    ],
)
def test_edges_of_what_is_computed_in_registers(shape, axes):
    # A block that cache_write makes is not guarded as the one that computes is.
    kernel = flipped_bits(shape, axes)
    given, made = random_arrays(kernel)
    keep = np.arange(made.shape[-1]) % 3 < 1
    expected = np.where(keep, given.transpose(axes), given.transpose(axes) ^ 136)
    for backwards in (False, True):
        result = emulated(scheduled(kernel), [given, made], backwards=backwards)[1]
        assert (result == expected).all()


@pytest.mark.parametrize("rows, columns", [(1, 1), (65, 33), (128, 96)])
def test_symbolic_sizes(rows, columns):
    (transpose,) = legalized(lambda w: op.permute_dims(w), T((n, m), "float32"))
    (cast,) = legalized(lambda w: op.astype(w, "float16"), T((n, m), "float32"))
    for kernel, expected in ((transpose, np.transpose), (cast, lambda w: w.astype("float16"))):
        given = random_arrays(kernel, n=rows, m=columns)[0]
        made = np.zeros_like(expected(given))
        assert (emulated(scheduled(kernel), [given, made])[1] == expected(given)).all()


# -- what becomes of it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "accesses"),
    [
        (permuted((256, 256), (1, 0), "uint8"), ["*(uint*)(T_transpose_ptr", "= *(uint*)("]),
        (permuted((256, 256), (1, 0), "float16"), ["*(half2*)(T_transpose_ptr", "= *(half2*)("]),
        (permuted((64, 64, 4), (1, 0, 2), "uint8"), ["*(uint*)(T_transpose_ptr", "= *(uint*)("]),
        (permuted((64, 64), (0, 1), "int8", "float32"), ["*(float4*)(made_ptr", "= *(int*)("]),
        (permuted((64, 64), (0, 1), "float32", "float16"), ["*(half4*)(made_ptr", "= *(float4*)("]),
    ],
    ids=["uint8", "float16", "groups", "to float32", "to float16"],
)
def test_vectors_are_read_and_written(kernel, accesses):
    source = kernels_in(cuda_source(kernel=scheduled(kernel)))
    for access in accesses:
        assert access in source


def test_no_vector_is_stored_to_a_padded_row():
    # codegen_c.cc stores a vector wherever it is told to: a row of 129 bytes is not aligned.
    source = kernels_in(cuda_source(kernel=scheduled(permuted((256, 256), (1, 0), "uint8"))))
    assert re.search(r"uchar \w+_shared_ptr\[16512\]", source)
    assert not re.search(r"\*\(uint\*\)\(\w+_shared_ptr", source)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")
def test_nvcc_compiles_all_and_keeps_all_in_registers(tmp_path):
    functions = {f"T_{t}": permuted((256, 256), (1, 0), t) for t in [*DTYPES, "bfloat16"]}
    functions["T_ragged"] = permuted((131, 101), (1, 0), "uint8")
    for before, after in (
        ("float32", "float16"),
        ("float16", "float32"),
        ("int8", "float16"),
        ("uint8", "float32"),
        ("float32", "int8"),
        ("int32", "uint16"),
        ("bfloat16", "float32"),
        ("float16", "bfloat16"),
        ("float16", "float8_e4m3fn"),
    ):
        functions[f"{before}_{after}"] = permuted((64, 64), (0, 1), before, after)
    (functions["symbolic"],) = legalized(lambda w: op.permute_dims(w), T((n, m), "float16"))
    for name, (build, types) in KERNELS.items():
        functions[name] = legalized(build, *types)[0]
    source = cuda_source(**{name: scheduled(kernel) for name, kernel in functions.items()})
    compiled = compiled_by_nvcc(source, tmp_path)
    assert len(compiled) >= len(functions)
    assert all(used == {"stack": 0, "spilled": 0} for used in compiled.values()), compiled
