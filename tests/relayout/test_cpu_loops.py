"""Loops for a CPU into memory of its own: rows and tiles, and every bit of them."""

import math

import inplace_kernels
import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st
from kernels_of import (
    assert_same_bits,
    compile_kernel,
    kernels_of,
    random_elements,
    run_kernel,
    symbol,
    tensors_of,
)
from moving_kernels import (
    COMPUTED,
    LAYOUTS,
    OPERATORS,
    awq_codes_from_groups,
    awq_codes_to_groups,
)
from profiles import examples
from tvm import relax, te, tirx
from tvm.relax import op
from tvm.script import tirx as T
from tvm.target import Target

from relax_inplace.layout import faster_transformer, ggml, tiles
from relax_inplace.relayout.cpu_compute import schedule_cpu_compute

LLVM = Target({"kind": "llvm"})
DTYPES = [
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "uint8",
    "uint32",
    "int64",
    "float64",
    "bool",
    "float8_e4m3fn",
]
N, M = symbol("n"), symbol("m")


def scheduled(function, *tensors):
    (kernel,) = kernels_of(function, *tensors)
    found = schedule_cpu_compute(kernel, LLVM)
    assert found is not None
    assert found.attrs["tirx.is_scheduled"]
    assert [p.ty for p in found.params] == [p.ty for p in kernel.params]
    return found


def nodes(function, kind):
    found = []
    tvm_ffi.structural_walk(function.body, (kind, lambda node: found.append(node)))
    return found


# -- what it makes ---------------------------------------------------------------------------------


def test_rows_are_vectors():
    """A cast of one long row: chunks in parallel, vectors in each."""

    @T.prim_func(private=True, s_tir=True)
    def expected(
        x0: T.Buffer((T.int64(8192), T.int64(64)), "float16"),
        compute: T.Buffer((T.int64(8192), T.int64(64)), "float32"),
    ):
        T.func_attr({"op_pattern": 0, "tirx.is_scheduled": True, "tirx.noalias": True})
        with T.sblock("root"):
            T.reads()
            T.writes()
            x0_float16 = T.decl_buffer((T.int64(524288),), "float16", data=x0.data)
            compute_float32 = T.decl_buffer((T.int64(524288),), data=compute.data)
            for task in T.parallel(T.int64(64)):
                for vector in range(T.int64(512)):
                    for lane in T.vectorized(T.int64(16)):
                        compute_float32[task * T.int64(8192) + vector * T.int64(16) + lane] = (
                            T.Cast(
                                "float32",
                                x0_float16[task * T.int64(8192) + vector * T.int64(16) + lane],
                            )
                        )

    made = scheduled(lambda x: op.astype(x, "float32"), ((8192, 64), "float16"))
    tvm.ir.assert_structural_equal(made, expected)


def test_what_is_read_in_steps_goes_alone():
    """LLVM knows better than a vector of single elements."""
    made = scheduled(
        lambda x: op.strided_slice(op.astype(x, "float32"), [1], [0], [128], strides=[2]),
        ((64, 128), "float16"),
    )
    assert all(loop.kind != tirx.ForKind.VECTORIZED for loop in nodes(made, tirx.For))


@pytest.mark.parametrize(
    ("dtype", "lanes", "squares"), [("int8", 16, 64), ("float16", 8, 24), ("float32", 4, 8)]
)
def test_a_transposition_is_done_in_registers(dtype, lanes, squares):
    """Vectors of 16 bytes, interleaved: log2(n) rounds of n. No element goes alone."""
    made = scheduled(op.permute_dims, ((256, 512), dtype))
    shuffles = nodes(made, tirx.Shuffle)
    assert len(shuffles) == squares
    assert all(len(shuffle.indices) == lanes for shuffle in shuffles)
    in_loops = [
        load
        for loop in nodes(made, tirx.For)
        if loop.kind == tirx.ForKind.VECTORIZED
        for load in nodes(made.with_body(loop), tvm.ir.TensorLoad)
    ]
    loads = nodes(made, tvm.ir.TensorLoad)
    assert all(isinstance(load.indices[0], tirx.Ramp) or load in in_loops for load in loads)
    assert any(loop.kind == tirx.ForKind.PARALLEL for loop in nodes(made, tirx.For))
    assert not nodes(made, (tirx.FloorDiv, tirx.FloorMod))


def test_symbolic_sizes_have_the_same_tiles():
    """And loops for what is smaller than a tile."""
    made = scheduled(op.permute_dims, ((N, M), "float16"))
    (choice,) = nodes(made, tirx.IfThenElse)
    assert nodes(made.with_body(choice.then_case), tirx.Shuffle)
    assert not nodes(made.with_body(choice.else_case), tirx.Shuffle)


def test_a_concatenation_is_two_copies():
    made = scheduled(lambda x, y: op.concat([x, y], 1), ((9, 64), "int8"), ((9, M), "int8"))
    assert not nodes(made, (tirx.Select, tirx.IfThenElse))
    assert len(nodes(made, tirx.DeclBuffer)) == 3


def test_divisions_become_loops():
    made = scheduled(lambda x: ggml.interleave(x), ((64, 18 * 4), "uint8"))
    assert not nodes(made, (tirx.FloorDiv, tirx.FloorMod, tirx.Select))


@pytest.mark.parametrize("name", {**OPERATORS, **COMPUTED, **LAYOUTS})
def test_no_index_is_divided(name):
    """Sizes are, and numbers of tasks: towards 0. So TVM has nothing below 0 to round wrong."""
    function, tensors = {**OPERATORS, **COMPUTED, **LAYOUTS}[name]
    for kernel in inplace_kernels.kernels_of(function, *tensors):
        made = schedule_cpu_compute(kernel, LLVM)
        assert made is not None
        loops = {loop.loop_var for loop in nodes(made, tirx.For)}
        loops |= {bind.var for bind in nodes(made, tirx.Bind)}
        for divided in nodes(made, (tirx.FloorDiv, tirx.FloorMod)):
            assert not loops & set(tirx.analysis.undefined_vars(divided))


def test_one_element():
    for shape in ((1,), (1, 1)):
        made = scheduled(lambda x: op.astype(x, "float16"), (shape, "float32"))
        x = np.full(shape, 1.5, "float32")
        (result,) = run_kernel(made, [x], [(shape, "float16")])
        assert_same_bits(result, x.astype("float16"))


def test_a_number_may_be_another_one_in_each_lane():
    """By how much to shift: eight values of a word are one vector."""
    target = Target({"kind": "llvm", "mcpu": "haswell"})
    (kernel,) = kernels_of(*DEQUANTIZED["rows"])
    made = schedule_cpu_compute(kernel, target)
    (lanes,) = {
        int(each.extent) for each in nodes(made, tirx.For) if each.kind == tirx.ForKind.VECTORIZED
    }
    assert lanes == 8
    # x86 without F16C would take it apart again.
    made = schedule_cpu_compute(kernel, LLVM)
    assert all(each.kind != tirx.ForKind.VECTORIZED for each in nodes(made, tirx.For))


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", ["host", "plain"])
def test_transposed_elements_of_any_dtype(dtype, target):
    """A rim on both sides; and whatever the bits are."""
    x = random_elements(np.random.default_rng(0), (131, 77), dtype)
    made = scheduled(op.permute_dims, (x.shape, dtype))
    (result,) = run_kernel(made, [x], [((77, 131), dtype)], target)
    assert_same_bits(result, x.T)


def test_symbolic_sizes():
    call = compile_kernel(scheduled(op.permute_dims, ((N, M), "float16")))
    generator = np.random.default_rng(0)
    for n in (0, 1, 31, 32, 300):
        for m in (1, 33, 640):
            x = random_elements(generator, (n, m), "float16")
            (result,) = call([x], [((m, n), "float16")])
            assert_same_bits(result, x.T)


def test_a_size_that_is_0_where_a_tile_does_not_fit():
    """Where ``n < 16``, TVM makes ``n // 16`` a 0, and nothing can be divided by it."""
    call = compile_kernel(
        scheduled(lambda x: op.permute_dims(x, [1, 0, 3, 2]), ((N // 16, 3, N, 64), "float32"))
    )
    for n in (0, 7, 16, 50):
        x = random_elements(np.random.default_rng(0), (n // 16, 3, n, 64), "float32")
        (result,) = call([x], [((3, n // 16, 64, n), "float32")])
        assert_same_bits(result, x.transpose(1, 0, 3, 2))


def te_of(function):
    return lambda *x: relax.BlockBuilder.current().call_te(function, *x)


def _value(words, word, by, scale):
    code = words[word] >> (by * 4).astype("uint32") & tirx.const(15, "uint32")
    return (code.astype("float16") - tirx.const(7, "float16")) * scale


@te_of
def by_rows(w, s):
    n, k = w.shape
    return te.compute(
        (n, k * 8), lambda i, j: _value(w, (i, j // 8), j % 8, s[i, j // 32]), "dequantized"
    )


@te_of
def by_columns(w, s):
    n, k = w.shape
    return te.compute(
        (k * 8, n), lambda j, i: _value(w, (i, j // 8), j % 8, s[i, j // 32]), "dequantized"
    )


@te_of
def from_columns_of_words(w, s):
    k, n = w.shape
    return te.compute(
        (k * 8, n), lambda j, i: _value(w, (j // 8, i), j % 8, s[j // 32, i]), "dequantized"
    )


# 4 bits each, 32 of one scale: q4f16_1 of MLC-LLM.
DEQUANTIZED = {
    "rows": (by_rows, ((50, 24), "uint32"), ((50, 6), "float16")),
    "columns": (by_columns, ((50, 24), "uint32"), ((50, 6), "float16")),
    "words in columns": (from_columns_of_words, ((24, 50), "uint32"), ((6, 50), "float16")),
    "rows of any number": (by_rows, ((N, 24), "uint32"), ((N, 6), "float16")),
    "columns, any number": (by_columns, ((N, 24), "uint32"), ((N, 6), "float16")),
}


@te_of
def clamped(x):
    return te.compute(x.shape, lambda i, j: x[tirx.min(tirx.max(i - 2, 0), 60), j] * 2, "clamped")


@te_of
def with_columns(x):
    return te.compute(x.shape[::-1], lambda j, i: x[i, j] + j.astype("float32"), "added")


MOVES = {
    "no tile, or nothing": (
        lambda x: op.permute_dims(x, [3, 1, 2, 0]),
        [((1, 16, N, 2), "float32")],
    ),
    "heads": (lambda x: op.permute_dims(x, [0, 2, 1, 3]), [((2, 33, 5, 24), "float16")]),
    "short runs": (lambda x: op.permute_dims(x, [1, 0, 2]), [((37, 51, 12), "int8")]),
    "experts": (lambda x: op.permute_dims(x, [0, 2, 1]), [((3, 65, 130), "int8")]),
    "interleaved": (lambda x: op.permute_dims(x, [0, 2, 1]), [((5, 4, 99), "uint8")]),
    "deinterleaved": (lambda x: op.permute_dims(x, [0, 2, 1]), [((5, 99, 2), "float16")]),
    "columns": (lambda x: op.permute_dims(x), [((300, 3), "int8")]),
    "slice": (
        lambda x: op.strided_slice(x, axes=[0, 1], begin=[3, 8], end=[97, 71]),
        [((100, 80), "float32")],
    ),
    "every third": (
        lambda x: op.strided_slice(x, axes=[1], begin=[1], end=[200], strides=[3]),
        [((20, 200), "float16")],
    ),
    "concat": (
        lambda x, y: op.concat([x, y], 1),
        [((33, 70), "bfloat16"), ((33, M), "bfloat16")],
    ),
    "concat, transposed": (
        lambda x, y: op.permute_dims(op.concat([x, y], 0)),
        [((70, 64), "int8"), ((64, 64), "int8")],
    ),
    "split": (lambda x: op.split(x, 2, 1), [((33, 128), "float32")]),
    "reshaped and transposed": (
        lambda x: op.permute_dims(op.reshape(x, (N, 4, 40)), [2, 0, 1]),
        [((N, 160), "float32")],
    ),
    "cast": (lambda x: op.astype(x, "float16"), [((N, 77), "float32")]),
    "cast, transposed": (
        lambda x: op.permute_dims(op.astype(x, "float16")),
        [((77, 80), "float32")],
    ),
    "transposed, cast": (
        lambda x: op.astype(op.permute_dims(x), "float16"),
        [((77, 80), "int8")],
    ),
    "bool, cast": (lambda x: op.astype(op.permute_dims(x), "float32"), [((40, 67), "bool")]),
    "transposed and added": (
        lambda x, y: op.add(op.permute_dims(x), y),
        [((40, 67), "float32"), ((67, 40), "float32")],
    ),
    "both transposed": (
        lambda x, y: op.multiply(op.permute_dims(x), op.astype(op.permute_dims(y), "float32")),
        [((40, 67), "float32"), ((40, 67), "int8")],
    ),
    "tiles": (lambda x: tiles.pack(x, 4, 16), [((16, 48), "float16")]),
    "tiles with a rim": (lambda x: tiles.pack(x, 4, 16), [((19, 50), "float16")]),
    "tiles, undone": (lambda x: tiles.unpack(x, (18, 40)), [((5, 3, 4, 16), "float16")]),
    "tiles of a transposed one": (
        lambda x: tiles.pack(op.permute_dims(x), 8, 16),
        [((160, 96), "int8")],
    ),
    "neighbours": (tiles.pack_vnni, [((70, 64), "int8")]),
    "neighbours, undone": (tiles.unpack_vnni, [((32, 70, 2), "bfloat16")]),
    "cast, heads": (
        lambda x: op.permute_dims(op.astype(x, "float32"), [0, 2, 1, 3]),
        [((2, 33, 5, 24), "float16")],
    ),
    "cast, short runs": (
        lambda x: op.permute_dims(op.astype(x, "float32"), [1, 0, 2]),
        [((37, 51, 12), "int8")],
    ),
    "cast, a few columns": (
        lambda x: op.permute_dims(op.astype(x, "float32")),
        [((300, 3), "int8")],
    ),
    "padded": (lambda x: op.nn.pad(op.negative(x), (1, 2, 0, 3)), [((20, 40), "float32")]),
    "words, wider": (lambda x: op.astype(x, "int32"), [((33, 70), "uint8")]),
    "a clamped row": (clamped, [((64, 96), "float32")]),
    "its column added": (with_columns, [((64, 96), "float32")]),
    **{f"dequantized, {name}": (f, list(x)) for name, (f, *x) in DEQUANTIZED.items()},
    "ggml": (lambda x: ggml.interleave(x, rows=8, bytes=8), [((16, 180), "uint8")]),
    "ggml, undone": (lambda x: ggml.deinterleave(x), [((4, N, 72), "uint8")]),
}


@pytest.mark.parametrize("name", MOVES)
def test_as_tvm_does_without_a_schedule(name):
    function, tensors = MOVES[name]
    generator = np.random.default_rng(0)
    for kernel in kernels_of(function, *tensors):
        made = schedule_cpu_compute(kernel, LLVM)
        assert made is not None
        known = tensors_of(kernel, {"n": 19, "m": 45})
        inputs = [random_elements(generator, *tensor) for tensor in known[: len(tensors)]]
        outputs = known[len(tensors) :]
        results = run_kernel(made, inputs, outputs)
        for result, plain in zip(results, run_kernel(kernel, inputs, outputs), strict=True):
            assert_same_bits(result, plain)


@given(st.data())
@examples(40)
def test_any_permutation(data):
    """Of any shape, with or without symbolic sizes, reshaped before or not."""
    rank = data.draw(st.integers(1, 5))
    shape = data.draw(st.lists(st.integers(1, 40), min_size=rank, max_size=rank))
    while np.prod(shape) > 60_000:
        shape[int(np.argmax(shape))] //= 2
    axes = data.draw(st.permutations(range(rank)))
    dtype = data.draw(st.sampled_from(DTYPES))
    symbolic = data.draw(st.lists(st.booleans(), min_size=rank, max_size=rank))
    sizes = zip(shape, symbolic, strict=True)
    types = [symbol(f"s{i}") if s else size for i, (size, s) in enumerate(sizes)]
    x = random_elements(np.random.default_rng(0), shape, dtype)
    made = scheduled(lambda x: op.permute_dims(x, axes), (types, dtype))
    (result,) = run_kernel(made, [x], [([shape[axis] for axis in axes], dtype)])
    assert_same_bits(result, x.transpose(axes))


def _divisors(number):
    return [d for d in range(1, number + 1) if number % d == 0]


def _draw_step(data, value, shape, dtype):
    """One more operator on an expression; and what its result is."""
    kind = data.draw(st.sampled_from(["permute", "split", "merge", "slice", "concat", "cast"]))
    axis = data.draw(st.integers(0, len(shape) - 1))
    size = shape[axis]
    if kind == "permute":
        axes = data.draw(st.permutations(range(len(shape))))
        return op.permute_dims(value, axes), [shape[a] for a in axes], dtype
    if kind == "split" and len(shape) < 5:
        inner = data.draw(st.sampled_from(_divisors(size)))
        shape = [*shape[:axis], size // inner, inner, *shape[axis + 1 :]]
        return op.reshape(value, shape), shape, dtype
    if kind == "merge" and axis + 1 < len(shape):
        shape = [*shape[:axis], size * shape[axis + 1], *shape[axis + 2 :]]
        return op.reshape(value, shape), shape, dtype
    if kind == "slice":
        begin, step = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, 3))
        end = data.draw(st.integers(begin + 1, size))
        value = op.strided_slice(value, axes=[axis], begin=[begin], end=[end], strides=[step])
        return value, [*shape[:axis], -(-(end - begin) // step), *shape[axis + 1 :]], dtype
    if kind == "concat":
        shape = [*shape[:axis], 2 * size, *shape[axis + 1 :]]
        return op.concat([value, value], axis), shape, dtype
    if kind == "cast" and dtype == "int8":
        return op.astype(value, "float16"), shape, "float16"
    return value, shape, dtype


@given(st.data())
@examples(40)
def test_any_chain(data):
    """Operators that FuseTIR makes one kernel of, or several."""
    shape = data.draw(st.lists(st.integers(1, 24), min_size=1, max_size=3))
    dtype = data.draw(st.sampled_from(["int8", "float16", "float32"]))
    x = random_elements(np.random.default_rng(0), shape, dtype)

    def chain(value):
        known = (value, list(shape), dtype)
        for _ in range(data.draw(st.integers(1, 4))):
            known = _draw_step(data, *known)
            builder = relax.BlockBuilder.current()
            known = (builder.emit(known[0]), *known[1:])
        return known[0]

    for kernel in kernels_of(chain, (shape, dtype)):
        made = schedule_cpu_compute(kernel, LLVM)
        assert made is not None
        (given_, *outputs) = tensors_of(kernel, {})
        x = random_elements(np.random.default_rng(0), *given_)
        results = run_kernel(made, [x], outputs)
        for result, plain in zip(results, run_kernel(kernel, [x], outputs), strict=True):
            assert_same_bits(result, plain)


@given(st.data())
@examples(25)
def test_any_blocks(data):
    """What index arithmetic there is in layouts: sizes and blocks that do not divide each other."""
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    rows, columns = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    dtype = data.draw(st.sampled_from(["int8", "float16", "float32"]))
    x = random_elements(np.random.default_rng(0), (height, width), dtype)
    transposed = data.draw(st.booleans())
    padded = np.zeros((-(-height // rows) * rows, -(-width // columns) * columns), x.dtype)
    padded[:height, :width] = x
    blocks = padded.reshape(len(padded) // rows, rows, -1, columns)
    order = [2, 0, 3, 1] if transposed else [0, 2, 1, 3]
    expected = blocks.transpose(order)

    def block(x):
        def element(*at):
            back = [at[order.index(axis)] for axis in range(4)]
            row, column = back[0] * rows + back[1], back[2] * columns + back[3]
            inside = tirx.all(row < height, column < width)
            return te.if_then_else(inside, x[row, column], tirx.const(0, x.dtype))

        return te.compute(expected.shape, element, "blocks")

    def undo(y):
        def element(row, column):
            back = [row // rows, row % rows, column // columns, column % columns]
            return y[tuple(back[axis] for axis in order)]

        return te.compute((height, width), element, "matrix")

    there = _as_relax(block, (height, width), dtype)
    (result,) = run_kernel(there, [x], [(expected.shape, dtype)])
    assert_same_bits(result, expected)
    back = _as_relax(undo, expected.shape, dtype)
    (result,) = run_kernel(back, [expected], [(x.shape, dtype)])
    assert_same_bits(result, x)


def _as_relax(kernel, shape, dtype):
    def call(x):
        builder = relax.BlockBuilder.current()
        return builder.call_te(kernel, x)

    return scheduled(call, (shape, dtype))


# -- bits ------------------------------------------------------------------------------------------


def to_columns(bits):
    return lambda x: faster_transformer.to_mixed_gemm(x, bits=bits)


def from_columns(bits):
    return lambda x: faster_transformer.from_mixed_gemm(x, bits=bits)


def spread(x):
    """(n, m) bytes to (m, 2n): each in two, and transposed."""

    def kernel(x):
        height, width = x.shape
        return te.compute(
            (width, height * 2),
            lambda j, i: (x[i // 2, j] >> (i % 2 * 4).astype("uint8")) & tirx.const(15, "uint8"),
            "spread",
        )

    return relax.BlockBuilder.current().call_te(kernel, x)


BITS = {
    **{
        f"{way.__name__}, int{bits}, {height} x {width}": (
            way(bits),
            ((height, width * bits // 8), "int8"),
        )
        for way in (to_columns, from_columns)
        for bits in (4, 8)
        for height, width in ((64, 64), (192, 448), (320, 128))
    },
    "words to groups": (awq_codes_to_groups, ((40, 13), "int32")),
    "words from groups": (awq_codes_from_groups, ((264, 131), "uint32")),
    "words to groups, any size": (
        awq_codes_to_groups,
        ((328, N), "int32"),
    ),
    "words from groups, any size": (
        awq_codes_from_groups,
        ((136, N), "uint32"),
    ),
    "spread": (spread, ((37, 200), "uint8")),
    "spread, any size": (spread, ((N, M), "uint8")),
    "spread, one row": (spread, ((1, 200), "uint8")),
}


@pytest.mark.parametrize("name", BITS)
def test_bits_as_tvm_does_without_a_schedule(name):
    function, tensor = BITS[name]
    (kernel,) = kernels_of(function, tensor)
    made = scheduled(function, tensor)
    run, plain = compile_kernel(made), compile_kernel(kernel)
    for sizes in ({"n": 19, "m": 45}, {"n": 3, "m": 1}):
        operand, *results = tensors_of(kernel, sizes)
        x = random_elements(np.random.default_rng(0), *operand)
        assert_same_bits(run([x], results)[0], plain([x], results)[0])


@pytest.mark.parametrize("way", [to_columns, from_columns])
@pytest.mark.parametrize("shape", [(N * 64, 96), (192, N * 64)])
def test_blocks_of_any_number(way, shape):
    """Such a size is a parameter of the kernel. What cannot be cut is right, too."""
    (kernel,) = kernels_of(way(4), (shape, "int8"))
    made = scheduled(way(4), (shape, "int8"))
    known = [int(size) if isinstance(size, int) else 3 * 64 for size in shape]
    x = random_elements(np.random.default_rng(0), known, "int8")
    results = []
    for function in (kernel, made):
        result = tvm.runtime.tensor(np.zeros(known, "int8"))
        tensors = iter([tvm.runtime.tensor(x), result])
        args = [next(tensors) if hasattr(p.ty, "shape") else 3 for p in function.params]
        mod = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        tvm.compile(mod, LLVM)["main"](*args)
        results.append(result.numpy())
    assert_same_bits(*results)
    assert results[0].any()


@given(st.data())
@examples(40)
def test_any_order_of_the_bits(data):
    """Of two elements, parts of some bits each, in any order of parts and of blocks of any size."""
    extents = data.draw(
        st.lists(st.sampled_from([1, 2, 2, 3, 4, 8, 16, 70]), min_size=2, max_size=5)
    )
    while math.prod(extents) > 30_000:
        extents[int(np.argmax(extents))] //= 2
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "uint32"]))
    bits = np.dtype(dtype).itemsize * 8
    parts = data.draw(st.sampled_from([1, 2, 4]))
    order = data.draw(st.permutations(range(len(extents) + 1)))
    rank = data.draw(st.integers(0, len(order)))
    size = bits // (2 * parts)
    mask = (1 << size) - 1
    x = random_elements(np.random.default_rng(0), (2, *extents), dtype)

    shifts = (np.arange(parts) * 2 * size).astype(dtype)
    low, high = ((x[i][..., None] >> shifts) & dtype_of(dtype, mask) for i in (0, 1))
    result = (low | high << dtype_of(dtype, size)).transpose(order)
    shape = [math.prod(result.shape[:rank]), math.prod(result.shape[rank:])]
    all_extents = [*extents, parts]

    def kernel(x):
        def element(i, j):
            place, left = i * shape[1] + j, math.prod(shape)
            digits = {}
            for axis in order:
                left //= all_extents[axis]
                digits[axis] = place // left % all_extents[axis]
            *at, part = (digits[axis] for axis in range(len(order)))
            by = (part * (2 * size)).astype(dtype)
            both = [(x[(half, *at)] >> by) & tirx.const(mask, dtype) for half in (0, 1)]
            return both[0] | both[1] << tirx.const(size, dtype)

        return te.compute(shape, element, "moved")

    made = scheduled(
        lambda x: relax.BlockBuilder.current().call_te(kernel, x), ((2, *extents), dtype)
    )
    (found,) = run_kernel(made, [x], [(shape, dtype)])
    assert_same_bits(found, result.reshape(shape))


def dtype_of(dtype, number):
    return np.dtype(dtype).type(number)
