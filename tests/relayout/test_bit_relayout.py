"""The schedule rule for relayouts on a CPU, where bits move within elements, and elements, too."""

import math

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
from profiles import examples
from tvm import relax, te, tirx
from tvm.target import Target

from relax_inplace.layout import awq, faster_transformer
from relax_inplace.relayout.cpu_relayout import schedule_cpu_relayout

LLVM = Target({"kind": "llvm"})
N, M = symbol("n"), symbol("m")


def scheduled(function, *tensors):
    (kernel,) = kernels_of(function, *tensors)
    found = schedule_cpu_relayout(kernel, LLVM)
    assert found is not None
    return kernel, found


def nodes(function, kind):
    found = []
    tvm_ffi.structural_walk(function.body, (kind, lambda node: found.append(node)))
    return found


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


# -- what it makes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("way", [to_columns, from_columns])
def test_bytes_are_computed_in_vectors_and_transposed(way, bits):
    """No division and no gathered vector is left, and squares of 16 x 16 bytes are transposed.

    The blocks of memory of the mixed GEMM lie across the rows that its result is said to have.
    """
    _, made = scheduled(way(bits), ((192, 448), "int8"))
    assert not nodes(made, (tirx.FloorDiv, tirx.FloorMod))
    assert {str(shuffle.ty.dtype) for shuffle in nodes(made, tirx.Shuffle)} == {"int8x16"}


def test_a_word_is_read_once_for_all_that_is_made_of_it():
    """Eight rows of words of AWQ make eight rows of words: eight tiles from one."""
    _, made = scheduled(lambda x: awq.codes_to_groups(x, "int32"), ((512, 64), "int32"))
    (lines,) = nodes(made, tirx.AllocBuffer)
    assert [int(size) for size in lines.buffer.ty.shape] == [8 * 16 * 16]


# -- numbers ---------------------------------------------------------------------------------------

MOVES = {
    **{
        f"{way.__name__}, int{bits}, {height} x {width}": (
            way(bits),
            ((height, width * bits // 8), "int8"),
        )
        for way in (to_columns, from_columns)
        for bits in (4, 8)
        for height, width in ((64, 64), (192, 448), (320, 128))
    },
    "words to groups": (lambda x: awq.codes_to_groups(x, "int32"), ((40, 13), "int32")),
    "words from groups": (lambda x: awq.codes_from_groups(x, "int32"), ((264, 131), "uint32")),
    "words to groups, any size": (
        lambda x: awq.codes_to_groups(x, "int32"),
        ((328, N), "int32"),
    ),
    "words from groups, any size": (
        lambda x: awq.codes_from_groups(x, "uint32"),
        ((136, N), "uint32"),
    ),
    "spread": (spread, ((37, 200), "uint8")),
    "spread, any size": (spread, ((N, M), "uint8")),
    "spread, one row": (spread, ((1, 200), "uint8")),
}


@pytest.mark.parametrize("name", MOVES)
def test_as_tvm_does_without_a_schedule(name):
    function, tensor = MOVES[name]
    kernel, made = scheduled(function, tensor)
    run, plain = compile_kernel(made), compile_kernel(kernel)
    for sizes in ({"n": 19, "m": 45}, {"n": 3, "m": 1}):
        operand, *results = tensors_of(kernel, sizes)
        x = random_elements(np.random.default_rng(0), *operand)
        assert_same_bits(run([x], results)[0], plain([x], results)[0])


@pytest.mark.parametrize("way", [to_columns, from_columns])
@pytest.mark.parametrize("shape", [(N * 64, 96), (192, N * 64)])
def test_blocks_of_any_number(way, shape):
    """Such a size is a parameter of the kernel. What cannot be cut is right, too."""
    kernel, made = scheduled(way(4), (shape, "int8"))
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

    _, made = scheduled(
        lambda x: relax.BlockBuilder.current().call_te(kernel, x), ((2, *extents), dtype)
    )
    (found,) = run_kernel(made, [x], [(shape, dtype)])
    assert_same_bits(found, result.reshape(shape))


def dtype_of(dtype, number):
    return np.dtype(dtype).type(number)
