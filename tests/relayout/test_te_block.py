"""Which loops around a block compute each element of a buffer once, from others."""

import textwrap

import pytest
from tvm.script import from_source

from relax_inplace.relayout.te_block import te_blocks

KERNEL = """
@T.prim_func(private=True, s_tir=True)
def kernel(A: T.Buffer((8, 6), "int32"), B: T.Buffer(SHAPE, "int32")):
"""


def blocks_of(body, shape="(8, 6)"):
    text = KERNEL.replace("SHAPE", shape) + textwrap.indent(textwrap.dedent(body), "    ")
    return te_blocks(from_source(text, check_well_formed=False))


def nest(*lines, loops="i, j in T.grid(8, 6)", axes='T.axis.remap("SS", [i, j])'):
    inner = ["    v, w = " + axes, *(f"    {line}" for line in lines)]
    return "\n".join([f"for {loops}:", '    with T.sblock("block"):', *(f"    {x}" for x in inner)])


COPY = "B[v, w] = A[v, w]"


def test_a_nest():
    assert len(blocks_of(nest(COPY))) == 1
    assert len(blocks_of(nest("B[w, v] = A[v, w]"), "(6, 8)")) == 1


def test_two_nests():
    assert len(blocks_of(nest(COPY) + "\n" + nest(COPY))) == 2


def test_an_axis_of_one_position():
    body = 'for j in range(6):\n    with T.sblock("block"):\n        w = T.axis.spatial(6, j)\n        B[0, w] = A[0, w]'
    assert len(blocks_of(body, "(1, 6)")) == 1
    assert blocks_of(body) is None


OTHERS = {
    "reads what it writes": (nest("B[v, w] = B[v, w] + A[v, w]"), "(8, 6)"),
    "a reduction": (nest(COPY, axes='T.axis.remap("SR", [i, j])'), "(8, 6)"),
    "an init": (nest("with T.init():", "    B[v, w] = 0", COPY), "(8, 6)"),
    "a part": (nest(COPY, loops="i, j in T.grid(4, 6)"), "(8, 6)"),
    "more than there is": (nest(COPY), "(4, 6)"),
    "a loop that is no index": (nest("B[v, 0] = A[v, w]"), "(8, 1)"),
    "one index twice": (nest("B[v, v] = A[v, w]"), "(8, 8)"),
    "a predicate": (nest("T.where(i * 6 + j < 10)", COPY), "(8, 6)"),
    "an index that is computed": (nest("B[7 - v, w] = A[v, w]"), "(8, 6)"),
    "two stores": (nest(COPY, COPY), "(8, 6)"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others(name):
    assert blocks_of(*OTHERS[name]) is None
