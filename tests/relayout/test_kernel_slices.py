"""Along which axes of its operands a kernel reads for a slice of its result."""

import pytest
from tvm.script import from_source

from relax_inplace.relayout.kernel_slices import operand_axes

KERNEL = """
@T.prim_func(private=True, s_tir=True)
def kernel(a: T.handle, i: T.handle, b: T.handle):
    n = T.int64()
    A = T.match_buffer(a, (ROWS, 8), "int32")
    I = T.match_buffer(i, (8,), "int32")
    B = T.match_buffer(b, (ROWS, 8), "int32")
    C = T.sblock_alloc_buffer((ROWS, 8), "int32")
BODY
"""
BLOCK = """
    for i, j in T.grid(ROWS, 8):
        with T.sblock("block"):
            v, w = T.axis.remap("SS", [i, j])
            OUT[v, w] = VALUE
"""
REDUCED = """
    for i, j, k in T.grid(ROWS, 8, 8):
        with T.sblock("block"):
            v, w, r = T.axis.remap("SSR", [i, j, k])
            with T.init():
                OUT[v, w] = INIT
            OUT[v, w] = VALUE
"""


def axes(*blocks, rows="8"):
    text = KERNEL.replace("BODY", "".join(blocks)).replace("ROWS", rows)
    return operand_axes(from_source(text), 0)


def block(value, out="B"):
    return BLOCK.replace("VALUE", value).replace("OUT", out)


def reduced(value, init="0", out="B"):
    return REDUCED.replace("VALUE", value).replace("INIT", init).replace("OUT", out)


SLICED = {
    "A[v, w]": {0: 0},
    "A[w, v]": {0: 1},
    "A[0, w]": {0: None},
    "A[v, w] + A[v, 7 - w]": {0: 0},
    "A[v, w] + I[v]": {0: 0, 1: 0},
    "A[v, I[w]]": {0: 0, 1: None},
    "A[I[w], v]": {0: 1, 1: None},
    "A[I[v], w]": {0: None, 1: 0},
    "A[I[v], v]": {0: 1, 1: 0},
    "A[I[I[w]], v]": {0: 1, 1: None},
    "T.if_then_else(w < 4, A[v, w + 1], 0)": {0: 0},
    "T.if_then_else(I[w] < 4, A[v, w], 0)": {0: 0, 1: None},
}

WHOLE = [
    "A[v, w] + A[w, v]",
    "A[v, v]",
    "A[7 - v, w]",
    "A[v, w] + v",
    "T.if_then_else(v < w, A[v, w], 0)",
    "A[v // 2, w]",
    "A[v, I[v] + w] + A[0, v]",
    "A[v, w] + I[A[v, w]] + A[0, 0]",
]


@pytest.mark.parametrize("value", SLICED)
def test_sliced(value):
    assert axes(block(value)) == SLICED[value]


@pytest.mark.parametrize("value", WHOLE)
def test_as_a_whole(value):
    assert axes(block(value)) is None


def test_what_is_sliced_along_no_axis_of_its_own_size_is_whole():
    assert axes(block("A[0, v]"), rows="6") is None


# -- reductions ----------------------------------------------------------------------------------


def test_what_each_step_reads():
    assert axes(reduced("B[v, w] + A[v, r]")) == {0: 0}
    assert axes(reduced("B[v, w] + A[r, w]")) == {0: None}
    assert axes(reduced("B[v, w] + A[v, r] * I[r]")) == {0: 0, 1: None}
    assert axes(reduced("B[v, w] + A[v, r] * A[r, w]")) is None


def test_what_a_reduction_starts_from():
    assert axes(reduced("B[v, w] + A[v, r]", "I[v]")) == {0: 0, 1: 0}
    assert axes(reduced("B[v, w] + A[v, r]", "A[w, v]")) is None
    assert axes(reduced("B[v, w] + A[v, r]", "v")) is None


def test_a_step_that_reads_other_results():
    assert axes(reduced("B[7 - v, w] + A[v, r]")) is None
    assert axes(reduced("B[v, w] + A[v, r]", "B[v, w]")) is None


# -- several blocks ------------------------------------------------------------------------------


def test_from_the_last_block_to_the_first():
    assert axes(block("A[w, v]", "C"), block("C[w, v]")) == {0: 0}
    assert axes(block("A[w, v]", "C"), block("C[v, w] + I[v]")) == {0: 1, 1: 0}
    assert axes(block("A[v, w]", "C"), block("C[v, w] + A[v, 0]")) == {0: 0}
    assert axes(block("A[v, w]", "C"), block("C[v, w] + A[w, v]")) is None


def test_what_is_needed_as_a_whole_is_not_computed_in_slices():
    assert axes(block("A[v, w]", "C"), block("C[0, w] + I[v]")) is None


def test_a_block_that_nothing_reads():
    assert axes(block("A[v, w]", "C"), block("A[v, w]")) is None


@pytest.mark.parametrize(
    "body",
    [
        block("A[v, w]") + "            C[v, w] = A[v, w]\n",
        block("A[v, w]") + "    B[0, 0] = 1\n",
        block("A[v, w]").replace("T.grid(ROWS, 8)", "T.grid(ROWS, 4)"),
    ],
    ids=["two stores", "no block", "not all of it"],
)
def test_other_kernels(body):
    assert axes(body) is None


# -- any length ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["A[v, w]", "A[v, I[w]]", "A[v, 7 - w]", "A[0, w] + I[3]"])
def test_any_length(value):
    assert axes(block(value), rows="n") == axes(block(value))


@pytest.mark.parametrize(
    "value",
    ["A[v, w] + T.Cast('int32', n)", "A[n - 1, w]", "A[v, w] + I[n - 1]", "A[n - 1 - v, w]"],
)
def test_what_depends_on_the_length_is_not_the_same_kernel(value):
    assert axes(block(value), rows="n") is None
