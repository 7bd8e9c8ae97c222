"""Kernels that move bits become calls of the runtime."""

import numpy as np
import pytest
import tvm
from inplace_kernels import TARGET, built, kernel_of, random_array, run, te_kernel
from tvm import te, tirx
from tvm.relax import op
from tvm.script import from_source

from relax_inplace import layout
from relax_inplace.relayout.description_blocks import INPLACE
from relax_inplace.relayout.host_move import OF_PAGES, schedule_host_move


def test_before_and_after():
    """A call for each input; symbolic sizes are computed where it is called."""
    kernel = kernel_of(op.permute_dims, (("n", 3), "float16"))
    scheduled = schedule_host_move(kernel, TARGET)
    calls = [line for line in scheduled.script().splitlines() if "call_packed" in line]
    (call,) = calls
    # One piece: bits of an element; where the first is read and written; no pattern, no constant; of
    # 2 digits how often, and how many bits further it writes and reads.
    numbers = "1, 16, 0, 0, 0, 0, 2, 3, n * 16, 16, n, 16, 48"
    assert numbers in call.replace("T.int64(", "").replace(")", "")
    assert list(map(list, scheduled.attrs[INPLACE])) == [[0, 1]]
    assert not scheduled.attrs["tirx.noalias"]
    assert schedule_host_move(kernel, tvm.target.Target("cuda", host="llvm")) is None


def flipped(w):
    return op.flip(w, 0)


MOVES = {
    "transpose": (op.permute_dims, True),
    "a copy": (lambda w: op.reshape(w, (16, 6)), True),
    "backwards": (flipped, True),
    "tiles": (lambda w: layout.tiles.pack(w, 4, 4), True),
    "three axes": (lambda w: op.permute_dims(op.reshape(w, (2, 6, 8)), (1, 0, 2)), True),
    "some rows": (lambda w: op.strided_slice(w, [0], [2], [9]), False),
    "each twice": (lambda w: op.repeat(w, 2, 0), False),
    "with others": (lambda w: op.concat((w, op.permute_dims(w, (0, 1)))), False),
}


@pytest.mark.parametrize("dtype", ["int8", "float16", "bfloat16", "float32", "int64"])
@pytest.mark.parametrize("name", MOVES)
def test_numbers(name, dtype):
    """In other memory; and where it was, if each byte goes to one place."""
    function, is_bijection = MOVES[name]
    kernel = kernel_of(function, ((12, 8), dtype))
    scheduled = schedule_host_move(kernel, TARGET)
    assert "call_packed" in scheduled.script()
    assert (INPLACE in scheduled.attrs) == is_bijection
    array = random_array(np.random.default_rng(0), (12, 8), dtype)
    expected = run(built(kernel), kernel, [array])
    compiled = built(scheduled)
    assert run(compiled, scheduled, [array]) == expected
    if is_bijection:
        assert run(compiled, scheduled, [array], over=(0, 1)) == expected


OTHERS = {
    "what is computed": lambda w: op.add(op.permute_dims(w), op.permute_dims(w)),
    "a cast": lambda w: op.astype(w, "float64"),
    "zeros beside each": lambda w: op.astype(op.astype(w, "uint8"), "uint32"),
    "a sum": lambda w: op.sum(w, 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_for_it(name):
    kernel = kernel_of(OTHERS[name], ((12, 8), "float32"))
    assert schedule_host_move(kernel, TARGET) is None


READS_WHAT_IT_WRITES = """
@T.prim_func(private=True, s_tir=True)
def exchanged(a: T.Buffer((4,), "int8"), b: T.Buffer((4,), "int8"), c: T.Buffer((4,), "int8")):
    for i in range(4):
        with T.sblock("c"):
            v = T.axis.remap("S", [i])
            c[v] = a[v]
    for i in range(4):
        with T.sblock("a"):
            v = T.axis.remap("S", [i])
            a[v] = b[3 - v]
"""


def test_what_is_read_and_written():
    """It has no description: the calls would be in the order of the parameters."""
    assert schedule_host_move(from_source(READS_WHAT_IT_WRITES), TARGET) is None


def turned_twice(a):
    transposed = te.compute((6, 4), lambda i, j: a[j, i], "transposed")
    return transposed, te.compute((4, 6), lambda i, j: a[3 - i, j], "backwards")


SEVERAL = {
    "parts": kernel_of(lambda w: op.split(w, 3, 1), ((4, 6), "float32")),
    "all of it, twice": te_kernel(turned_twice, ((4, 6), "float32")),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_results(name):
    """Of one input: none of them lies in its memory."""
    kernel = SEVERAL[name]
    scheduled = schedule_host_move(kernel, TARGET)
    assert scheduled.script().count("call_packed") == len(kernel.params) - 1
    assert INPLACE not in scheduled.attrs
    array = random_array(np.random.default_rng(0), (4, 6), "float32")
    assert run(built(scheduled), scheduled, [array]) == run(built(kernel), kernel, [array])


def halves_exchanged(w):
    one, other = (op.strided_slice(w, [0], [start], [start + 3]) for start in (0, 3))
    return op.concat((other, one), 0)


BITS = {
    "turned over": te_kernel(
        lambda a: te.compute((64, 48), lambda i, j: a[j, i] ^ tirx.const(0x88, "uint8"), "flipped"),
        ((48, 64), "uint8"),
    ),
    "nibbles": kernel_of(
        lambda w: layout.faster_transformer.to_mixed_gemm(w, arch=80, bits=4), ((192, 64), "int8")
    ),
    "scales and codes": kernel_of(
        lambda w: layout.ggml.interleave(w, rows=8, bytes=8), ((24, 90), "uint8")
    ),
    "scales and codes, back": kernel_of(
        lambda w: layout.ggml.deinterleave(w, rows=8, bytes=8), ((3, 5, 144), "uint8")
    ),
    "two halves": kernel_of(halves_exchanged, ((6, 100), "float16")),
}


@pytest.mark.parametrize("name", BITS)
def test_bits_and_several_pieces(name):
    """A bijection of an input is in place, whatever it is made of."""
    kernel = BITS[name]
    scheduled = schedule_host_move(kernel, TARGET)
    assert scheduled.script().count("call_packed") == 1
    assert list(map(list, scheduled.attrs[INPLACE])) == [[0, 1]]
    buffer = kernel.params[0].ty
    shape = [int(size) for size in buffer.shape]
    array = random_array(np.random.default_rng(0), shape, str(buffer.dtype))
    expected = run(built(kernel), kernel, [array])
    compiled = built(scheduled)
    assert run(compiled, scheduled, [array]) == expected
    assert run(compiled, scheduled, [array], over=(0, 1)) == expected


def test_constants_and_two_inputs():
    """A call for each input, and constants with one of them: nothing lies where they do."""
    kernel = kernel_of(
        lambda x, y: op.nn.pad(op.concat([x, y], 1), (1, 2, 0, 40)),
        ((4, 30), "float16"),
        ((4, 20), "float16"),
    )
    scheduled = schedule_host_move(kernel, TARGET)
    assert scheduled.script().count("call_packed") == 2
    assert INPLACE not in scheduled.attrs
    arrays = [random_array(np.random.default_rng(n), (4, n), "float16") for n in (30, 20)]
    assert run(built(scheduled), scheduled, arrays) == run(built(kernel), kernel, arrays)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
def test_symbolic_sizes(n):
    function = lambda w: layout.tiles.pack(w, 4, 4)  # noqa: E731
    for make, shape in ((op.permute_dims, (n, 5)), (function, (n * 4, 8))):
        kernel = kernel_of(make, (("n", 5) if make is op.permute_dims else ("n * 4", 8), "int8"))
        scheduled = schedule_host_move(kernel, TARGET)
        array = random_array(np.random.default_rng(0), shape, "int8")
        args = [array], {"n": n}
        expected = run(built(kernel), kernel, *args)
        assert run(built(scheduled), scheduled, *args) == expected
        assert run(built(scheduled), scheduled, *args, over=(0, 1)) == expected


OF_PAGES_CASES = {
    "rows of several": (lambda a, b: op.concat((a, b)), [0, 1]),
    "stacked": (lambda a, b: op.stack((a, b)), [0, 1]),
    "columns": (lambda a, b: op.concat((a, b), 1), []),
    "one of them turned": (lambda a, b: op.concat((a, op.permute_dims(b))), [1]),
    "one of them with its bits turned": (lambda a, b: op.concat((op.bitwise_not(a), b)), [1]),
    "parts": (lambda a, _: op.split(a, 2), [0]),
    "the same part twice": (
        lambda a, _: op.concat((op.strided_slice(a, [0], [0], [8]), a)),
        [],
    ),
    "some rows": (lambda a, _: op.strided_slice(a, [0], [2], [9]), [0]),
    "a copy, which may lie in it": (lambda a, _: op.reshape(a, (2, -1)), []),
}


@pytest.mark.parametrize("columns", [16, "n"])
@pytest.mark.parametrize("name", OF_PAGES_CASES)
def test_inputs_of_pages(name, columns):
    """Each byte is read once at most, in runs: what has been moved is not read again."""
    function, expected = OF_PAGES_CASES[name]
    shape = (16, columns)
    if columns == "n" and name in ("one of them turned", "a copy, which may lie in it"):
        return
    scheduled = schedule_host_move(kernel_of(function, (shape, "int8"), (shape, "int8")), TARGET)
    assert [int(one) for one in scheduled.attrs.get(OF_PAGES, ())] == expected
