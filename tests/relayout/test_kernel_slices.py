"""Along which axes of its operands a kernel reads for a slice of its result."""

import pytest
from tvm.script import from_source

from relax_inplace.relayout.kernel_slices import operand_axes

KERNEL = """
@T.prim_func(private=True, s_tir=True)
def kernel(A: T.Buffer((8, 8), "int32"), B: T.Buffer((8, 8), "int32")):
    C = T.sblock_alloc_buffer((8, 8), "int32")
    for i, j in T.grid(8, 8):
        with T.sblock("block"):
            v, w = T.axis.remap("SS", [i, j])
            T.reads(READS)
            T.writes(WRITES)
            B[v, w] = VALUE
"""


def axes(reads, value, writes="B[v, w]"):
    text = KERNEL.replace("READS", reads).replace("WRITES", writes).replace("VALUE", value)
    return operand_axes(from_source(text), 0)


def test_sliced():
    assert axes("A[v, w]", "A[v, w]") == {0: 0}
    assert axes("A[w, v]", "A[w, v]") == {0: 1}
    assert axes("A[0:8, w]", "A[0, w]") == {0: None}


@pytest.mark.parametrize(
    ("reads", "value"),
    [
        ("A[v, w], A[w, v]", "A[v, w] + A[w, v]"),
        ("A[v, v]", "A[v, v]"),
        ("A[7 - v, w]", "A[7 - v, w]"),
        ("A[v : v + 2, w]", "A[v, w]"),
        ("A[0 : v + 1, w]", "A[0, w]"),
        ("A[v, w]", "A[v, w] + v"),
    ],
)
def test_as_a_whole(reads, value):
    assert axes(reads, value) is None


def test_a_block_that_writes_two_buffers():
    assert axes("A[v, w]", "A[v, w]", "B[v, w], C[0:8, w]") is None
