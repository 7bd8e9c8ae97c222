"""Relayout kernels on CUDA: emulated on the CPU, bitwise against numpy, and compiled by nvcc."""

import functools
import re

import numpy as np
import pytest
from emulated_gpu import (
    CUDA,
    NVCC,
    compiled_by_nvcc,
    cuda_source,
    emulated,
    fused,
    kernels_in,
    legalized,
    random_arrays,
    traffic,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from inplace_kernels import moves, random_array
from moving_kernels import awq_codes_from_groups, awq_codes_to_groups
from profiles import examples
from tvm import relax, te, tirx
from tvm.target import Target

from relax_inplace.layout import faster_transformer, ggml, tiles
from relax_inplace.relayout.gpu_nest import Memory, flat_nest
from relax_inplace.relayout.gpu_relayout import described, schedule_gpu_relayout

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
    return "alloc_shared" in function.script()


# -- what is chosen ------------------------------------------------------------------------------


def test_a_transpose_reads_and_writes_rows_of_a_tile():
    place = te.placeholder((512, 256), "float32", name="given")
    made = te.compute((256, 512), lambda i, j: place[j, i], "made")
    script = scheduled(te.create_prim_func([place, made])).script()
    for line in (
        'in T.thread_binding(128, thread="blockIdx.x")',  # tiles of 32 x 32
        'in T.thread_binding(256, thread="threadIdx.x")',
        'shared = T.alloc_shared((1055,), "uint32")',  # rows of 33, but for the last
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
        (awq_codes_to_groups, [T((512, 64), "int32")], True),
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
    ("left", "taken", "types"),
    [
        (lambda w: op.sum(w, 1), lambda w: op.strided_slice(w, [1], [0], [1]), [(64, 64)]),
        (lambda w: op.nn.softmax(w, 1), op.exp, [(64, 64)]),
        (lambda w: op.take(w, relax.const([3, 1]), 0), lambda w: op.flip(w, 0), [(64, 64)]),
        (lambda w: op.permute_dims(w), lambda w: op.expand_dims(w, 0), [(0, 64), (1, 64)]),
    ],
    ids=["sum", "softmax", "take", "empty"],
)
def test_other_kernels_are_left_to_tvm(left, taken, types):
    """And what is like them is not, so that it is they that are refused."""
    (kernel,) = legalized(left, T(types[0], "float32"))
    assert schedule_gpu_relayout(kernel, CUDA) is None
    (kernel,) = legalized(taken, T(types[-1], "float32"))
    scheduled(kernel)


@pytest.mark.parametrize("outputs", [1, 2])
def test_bits_beside_what_tvm_may_compute_as_float32_are_left_to_it(outputs):
    given = te.placeholder((64, 64), "float32", name="given")
    moved = te.placeholder((64, 64), "bfloat16", name="moved")

    def both(i, j):
        return te.if_then_else(j < 64, given[i, j].astype("bfloat16"), moved[i, j - 64])

    turned = te.compute((64, 64), lambda i, j: given[j, i], "turned")
    made = [turned, te.compute((64, 128), both, "made")][-outputs:]
    assert schedule_gpu_relayout(te.create_prim_func([given, moved, *made]), CUDA) is None
    scheduled(te.create_prim_func([given, turned]))


def test_other_targets_are_left_to_tvm():
    kernel = permuted((64, 64), (1, 0), "float32")
    assert schedule_gpu_relayout(kernel, Target("llvm")) is None
    scheduled(kernel)


# -- that it is right ----------------------------------------------------------------------------

DTYPES = ["bool", "uint8", "int8", "float16", "float32", "int64"]
SIZES = st.sampled_from([1, 2, 3, 4, 5, 8, 24, 31, 32, 33, 64, 100, 129])


@examples(20)
@given(data=st.data())
def test_any_permutation(data):
    shape = data.draw(st.lists(SIZES, min_size=2, max_size=4).filter(lambda s: np.prod(s) < 200000))
    axes = data.draw(st.permutations(range(len(shape))))
    dtype = data.draw(st.sampled_from(DTYPES))
    to = data.draw(st.sampled_from([None, "float32", "int8", "float16"]))
    to = None if dtype == "bool" else to
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
    "awq": (awq_codes_to_groups, [T((128, 40), "int32")]),
    "awq_back": (awq_codes_from_groups, [T((320, 16), "uint32")]),
    "scale": (lambda w: op.multiply(w, relax.const(0.5, "float16")), [T((99, 64), "float16")]),
    "scale_odd": (lambda w: op.multiply(w, relax.const(0.5, "float16")), [T((9, 63), "float16")]),
    "one_number": (lambda w: op.expand_dims(w, 0), [T((), "float16")]),
    "every_second": (lambda w: op.strided_slice(w, [1], [1], [99], [2]), [T((64, 99), "float16")]),
    "split": (lambda w: op.split(w, 2, 1), [T((64, 96), "float16")]),
    "concat": (lambda w, v: op.concat([w, v], 1), [T((64, 99), "int8"), T((64, 13), "int8")]),
    "concat_even": (lambda w, v: op.concat([w, v], 1), [T((9, 96), "int8"), T((9, 16), "int8")]),
    "flip": (lambda w: op.flip(w, 1), [T((64, 96), "float16")]),
    "broadcast": (lambda w: op.broadcast_to(w, (5, 64, 96)), [T((64, 96), "float16")]),
    "mixed_gemm_nibbles": (
        lambda w: faster_transformer.to_mixed_gemm(w, arch=80, bits=4),
        [T((128, 128), "int8")],
    ),
    "mixed_gemm_back": (
        lambda w: faster_transformer.from_mixed_gemm(w, arch=80, bits=4),
        [T((128, 128), "int8")],
    ),
    "mixed_gemm_words": (
        lambda w: faster_transformer.to_mixed_gemm(w, arch=70, bits=4),
        [T((24, 128), "int8")],
    ),
    "unpack_rim": (lambda w: tiles.unpack(w, (50, 100)), [T((4, 2, 16, 64), "float16")]),
    "pad": (lambda w: op.nn.pad(w, (1, 2, 0, 3), pad_value=1.0), [T((12, 10), "float16")]),
    "wider": (lambda w: op.astype(w, "int32"), [T((64, 99), "uint8")]),
    "low_nibbles": (
        lambda w: op.bitwise_and(w, relax.const(15, "uint8")),
        [T((12, 10), "uint8")],
    ),
    "two_nibbles": (
        lambda w, v: op.bitwise_or(
            op.bitwise_and(w, relax.const(15, "uint8")), op.left_shift(v, relax.const(4, "uint8"))
        ),
        [T((12, 10), "uint8"), T((12, 10), "uint8")],
    ),
    "tril": (lambda w: op.tril(w, 5), [T((3, 99, 63), "float16")]),
    "triu_and_transpose": (
        lambda w: op.permute_dims(op.triu(w, -2), (1, 0)),
        [T((99, 64), "int8")],
    ),
    "scale_and_transpose": (
        lambda w: op.permute_dims(op.multiply(w, relax.const(0.5, "float16"))),
        [T((99, 64), "float16")],
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_as_unscheduled(name):
    build, types = KERNELS[name]
    for kernel in fused(build, *types):
        arrays = random_arrays(kernel)
        want = emulated(kernel, arrays)
        for result, expected in zip(emulated(scheduled(kernel), arrays), want, strict=True):
            assert (result == expected).all()


ODD = [(1, 1), (1, 4099), (4099, 1), (127, 131), (2, 1031), (1031, 2), (3, 1, 61), (61, 5, 1)]


@pytest.mark.parametrize("dtype", ["uint8", "float16", "int64"])
@pytest.mark.parametrize("shape", ODD, ids=str)
def test_odd_shapes(shape, dtype):
    """One row, one column, primes: moved, and computed."""
    axes = tuple(reversed(range(len(shape))))
    for to in (None, "float32"):
        kernel = permuted(shape, axes, dtype, to)
        given, made = random_arrays(kernel)
        for backwards in (False, True):
            result = emulated(scheduled(kernel), [given, made], backwards=backwards)[1]
            assert (result == given.transpose(axes).astype(made.dtype)).all()


@examples(25, fuzz=1000)
@given(moves(), st.booleans())
def test_any_moves(drawn, backwards):
    given = random_array(np.random.default_rng(0), drawn.shape, drawn.dtype)
    if drawn.made != drawn.dtype:
        given = (np.arange(given.size).reshape(drawn.shape) % 100).astype(drawn.dtype)
    expected = given.reshape(-1)[drawn.sources].astype(drawn.made)
    made = np.zeros([int(size) for size in drawn.kernel.params[1].ty.shape], drawn.made)
    kernel = schedule_gpu_relayout(drawn.kernel, CUDA)
    assume(kernel is not None)
    result = emulated(kernel, [given, made], backwards=backwards)[1]
    assert result.tobytes() == expected.tobytes()


@st.composite
def bit_moves(draw):
    """Fields of a few bits, permuted as digits are: the kernel, and where each field is from."""
    width = draw(st.sampled_from([1, 2, 4]))
    given, made = (draw(st.sampled_from([8, 16, 32])) for _ in range(2))
    sizes = draw(st.lists(st.sampled_from([2, 3, 4, 8, 16]), min_size=2, max_size=4))
    sizes[0] *= 32 // width  # whole elements
    sizes[-1] *= draw(st.sampled_from([1, 32 // width]))
    order = draw(st.permutations(range(len(sizes))))
    source = np.arange(np.prod(sizes)).reshape(sizes).transpose(order).reshape(-1)
    count = len(source)
    place = te.placeholder((count * width // given,), f"uint{given}", name="given")

    def field(number):
        at = {}
        for digit in reversed(order):
            at[digit] = number % sizes[digit]
            number = number // sizes[digit]
        found = 0
        for digit, size in enumerate(sizes):
            found = found * size + at[digit]
        bit = found * width
        shifted = place[bit // given] >> (bit % given).astype(f"uint{given}")
        return (shifted & tirx.const((1 << width) - 1, f"uint{given}")).astype(f"uint{made}")

    def element(i):
        fields = [
            field(i * (made // width) + k) << tirx.const(k * width, f"uint{made}")
            for k in range(made // width)
        ]
        return functools.reduce(lambda one, two: one | two, fields)

    kernel = te.create_prim_func([place, te.compute((count * width // made,), element, "made")])
    return kernel, source, width


@examples(15, fuzz=1000)
@given(bit_moves(), st.booleans())
def test_any_moves_of_bits(drawn, backwards):
    kernel, source, width = drawn
    function = schedule_gpu_relayout(kernel, CUDA)
    assume(function is not None)
    shapes = [int(param.ty.shape[0]) for param in kernel.params]
    dtypes = [str(param.ty.dtype) for param in kernel.params]
    given = np.random.default_rng(0).integers(0, 256, len(source) * width // 8, "uint8")
    bits = np.unpackbits(given, bitorder="little").reshape(-1, width)
    expected = np.packbits(bits[source].reshape(-1), bitorder="little")
    made = np.zeros(shapes[1], dtypes[1])
    result = emulated(function, [given.view(dtypes[0]), made], backwards=backwards)[1]
    assert result.tobytes() == expected.tobytes()


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


ANY_SIZE = {
    "transpose": (lambda w: op.permute_dims(w), [T((n, m), "float32")]),
    "cast": (lambda w: op.astype(w, "float16"), [T((n, m), "float32")]),
    "flip": (lambda w: op.flip(w, 1), [T((n, m), "uint8")]),
    "concat": (lambda w, v: op.concat([w, v], 1), [T((n, m), "int8"), T((n, 5), "int8")]),
    "pad": (lambda w: op.nn.pad(w, (1, 2, 0, 3)), [T((n, m), "float16")]),
    "interleave": (lambda w: ggml.interleave(w), [T((n * 4, m * 18), "uint8")]),
    "awq": (awq_codes_to_groups, [T((n * 8, m), "int32")]),
    "awq_back": (awq_codes_from_groups, [T((n * 8, m), "uint32")]),
    "heads": (lambda w: op.permute_dims(w, (0, 2, 1)), [T((n, 7, m), "float16")]),
}


@pytest.mark.parametrize("rows, columns", [(1, 1), (65, 33), (16, 96), (0, 64), (64, 0)])
@pytest.mark.parametrize("name", ANY_SIZE)
def test_symbolic_sizes(name, rows, columns):
    build, types = ANY_SIZE[name]
    (kernel,) = fused(build, *types)
    arrays = random_arrays(kernel, n=rows, m=columns)
    want, found = emulated(kernel, arrays)[-1], emulated(scheduled(kernel), arrays)[-1]
    assert (want == found).all()


# -- what it moves -------------------------------------------------------------------------------

MOVED = {
    "uint8": permuted((4096, 4096), (1, 0), "uint8"),
    "float16": permuted((4096, 4096), (1, 0), "float16"),
    "float32": permuted((4096, 4096), (1, 0), "float32"),
    "int64": permuted((4096, 4096), (1, 0), "int64"),
    "cast": permuted((1024, 1024), (1, 0), "float32", "float16"),
    "pairs": permuted((512, 512, 2), (1, 0, 2), "float32"),
    "four axes": permuted((64, 64, 64, 64), (3, 2, 1, 0), "float16"),
    "primes": permuted((1021, 509), (1, 0), "float16"),
    "copy": permuted((512, 512), (0, 1), "float16"),
}
MOVED_LAYOUTS = {
    "slice": (lambda w: op.strided_slice(w, [1], [3], [1023]), T((64, 1024), "float16")),
    "tall_slice": (
        lambda w: op.permute_dims(op.strided_slice(w, [1], [1], [256])),
        T((512, 256), "uint8"),
    ),
    "pack": (lambda w: tiles.pack(w, 16, 64), T((512, 512), "float16")),
    "unpack": (lambda w: tiles.unpack(w), T((128, 128, 4, 4), "float16")),
    "vnni": (lambda w: tiles.pack_vnni(w), T((512, 512), "int8")),
    "unvnni": (lambda w: tiles.unpack_vnni(w), T((128, 512, 4), "int8")),
    "interleave": (lambda w: ggml.interleave(w), T((512, 2304), "uint8")),
    "awq": (awq_codes_to_groups, T((4096, 512), "int32")),
    "awq_back": (awq_codes_from_groups, T((4096, 512), "uint32")),
    "int8": (
        lambda w: faster_transformer.to_mixed_gemm(w, arch=80, bits=8),
        T((1024, 1024), "int8"),
    ),
    "int4": (
        lambda w: faster_transformer.to_mixed_gemm(w, arch=80, bits=4),
        T((1024, 1024), "int8"),
    ),
    "int4_back": (
        lambda w: faster_transformer.from_mixed_gemm(w, arch=80, bits=4),
        T((1024, 1024), "int8"),
    ),
}


@pytest.mark.parametrize("name", [*MOVED, *MOVED_LAYOUTS])
def test_whole_sectors_are_moved(name):
    """And shared memory is read and written without a queue before its banks, or a short one."""
    (kernel,) = [MOVED[name]] if name in MOVED else fused(*MOVED_LAYOUTS[name])
    function = scheduled(kernel)
    for block in (0, 37):
        moved = traffic(function, block)
        assert moved.needed >= 4096
        assert moved.most <= 1.25
        assert moved.conflicts <= 2
    traffic(function, 2**31)  # the last one: its vectors are aligned, and end where buffers do


@pytest.mark.parametrize("count", [2, 3])
def test_tiles_have_room_in_shared_memory(count):
    """The tile of a transpose of bytes takes 16,511; there are 49,152."""
    given = [te.placeholder((512, 512), "uint8", name=f"given{i}") for i in range(count)]

    def total(i, j):
        return functools.reduce(lambda one, two: one ^ two, (place[j, i] for place in given))

    made = te.compute((512, 512), total, "made")
    script = scheduled(te.create_prim_func([*given, made])).script()
    sizes = [int(size) for size in re.findall(r"alloc_shared\(\((\d+),\)", script)]
    assert sizes == ([16511] * 2 if count == 2 else [])


def test_what_is_moved_is_measured():
    """A transpose without tiles reads a sector for each element."""
    kernel = permuted((4096, 4096), (1, 0), "float32")
    ((relayout, parts),) = described(kernel, CUDA)
    memory = Memory(kernel, dict(relayout.bits), False)
    flat = memory.kernel([1], [flat_nest(memory, 1, parts, 4096 * 4096, 4, 1024)])
    assert traffic(flat).most == 8


# -- what becomes of it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "written", "read"),
    [
        (permuted((256, 256), (1, 0), "uint8"), "uint4", "uint"),
        (permuted((256, 256), (1, 0), "float16"), "uint4", "ushort2"),
        (permuted((64, 64), (0, 1), "bool"), "ulonglong2", "ulonglong2"),
        (permuted((64, 64), (0, 1), "int8", "float32"), "uint4", "uint"),
        (permuted((64, 64), (0, 1), "float32", "float16"), "ushort4", "uint4"),
        (permuted((64, 64), (0, 1), "float32", "bfloat16"), "nv_bfloat164", "uint4"),
    ],
    ids=["uint8", "float16", "flat", "to float32", "to float16", "to bfloat16"],
)
def test_vectors_are_read_and_written(kernel, written, read):
    source = kernels_in(cuda_source(kernel=scheduled(kernel)))
    given, made = (param.name for param in kernel.params)
    assert re.search(rf"\*\({written}\*\)\(+(\w+\*\))?{made}_ptr", source)
    assert re.search(rf"= \*\({read}\*\)\(+(\w+\*\))?{given}_ptr", source)


def test_no_vector_is_stored_to_a_padded_row():
    # codegen_c.cc stores a vector wherever it is told to: a row of 129 bytes is not aligned.
    source = kernels_in(cuda_source(kernel=scheduled(permuted((256, 256), (1, 0), "uint8"))))
    assert "uchar shared_ptr[16511]" in source
    assert not re.search(r"\*\(\w+\*\)\(shared_ptr", source)


@pytest.mark.parametrize(("rows", "is_wide"), [(2**15, False), (2**17, True)])
def test_what_lies_beyond_31_bits_has_an_index_of_64(rows, is_wide):
    for axes, dtype in (((1, 0), "uint8"), ((0, 1), "int64")):
        kernel = scheduled(permuted((rows, 2**15), axes, dtype))
        source = kernels_in(cuda_source(kernel=kernel))
        assert ("(int64_t)((int)blockIdx.x)" in source) == is_wide


@pytest.mark.parametrize("rows", [2**24, n])
def test_thread_blocks_are_in_x_alone(rows):
    """Of 65,536 tiles and more along an axis: y and z have at most 65,535."""
    for kernel in (
        *legalized(lambda w: op.permute_dims(w), T((rows, 64), "float32")),
        *legalized(lambda w: op.permute_dims(w), T((64, rows), "float32")),
        *legalized(lambda w: op.permute_dims(w, (0, 2, 1)), T((rows, 3, 5), "float16")),
    ):
        source = kernels_in(cuda_source(kernel=scheduled(kernel)))
        assert "blockIdx.x" in source
        assert not re.search(r"(blockIdx|threadIdx)\.[yz]", source)


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
