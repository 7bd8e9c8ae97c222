"""Kernels without intermediate buffers, where the bits are sure to stay."""

import numpy as np
import pytest
import tvm_ffi
from inplace_kernels import built, kernel_of, random_array, run, te_kernel
from tvm import relax, te
from tvm.relax import op
from tvm.script import from_source

from relax_inplace.relayout.inlining import with_producers_inlined

FUSED = """
@T.prim_func(private=True, s_tir=True)
def fused(a: T.Buffer((16, 32), "float32"), out: T.Buffer((32, 16), "float16")):
    T.func_attr({"tirx.noalias": True})
    turned = T.sblock_alloc_buffer((32, 16))
    half = T.sblock_alloc_buffer((32, 16), "float16")
    for i, j in T.grid(32, 16):
        with T.sblock("turned"):
            vi, vj = T.axis.remap("SS", [i, j])
            T.reads(a[vj, vi])
            T.writes(turned[vi, vj])
            turned[vi, vj] = a[vj, vi]
    for i, j in T.grid(32, 16):
        with T.sblock("half"):
            vi, vj = T.axis.remap("SS", [i, j])
            T.reads(turned[vi, vj])
            T.writes(half[vi, vj])
            half[vi, vj] = T.Cast("float16", turned[vi, vj])
    for i, j in T.grid(32, 16):
        with T.sblock("out"):
            vi, vj = T.axis.remap("SS", [i, j])
            T.reads(half[vi, vj])
            T.writes(out[vi, vj])
            out[vi, vj] = half[vi, vj] * T.float16(2)
"""

INLINED = """
@T.prim_func(private=True, s_tir=True)
def fused(a: T.Buffer((16, 32), "float32"), out: T.Buffer((32, 16), "float16")):
    T.func_attr({"tirx.noalias": True})
    for i, j in T.grid(32, 16):
        with T.sblock("out"):
            vi, vj = T.axis.remap("SS", [i, j])
            T.reads(a[vj, vi])
            T.writes(out[vi, vj])
            out[vi, vj] = T.Cast("float16", a[vj, vi]) * T.float16(2)
"""


def test_one_block():
    inlined = with_producers_inlined(from_source(FUSED))
    assert tvm_ffi.structural_equal(inlined, from_source(INLINED), map_free_vars=True)


def test_a_kernel_of_one_block_stays():
    for function in (op.permute_dims, lambda w: op.sum(w, 1)):
        kernel = kernel_of(function, ((16, 32), "float32"))
        assert with_producers_inlined(kernel).same_as(kernel)


def number(value, dtype="float32"):
    return relax.const(value, dtype)


def chain(*steps):
    """The kernel of computations of one element each, of the result of the one before and ``a``."""

    def make(a):
        value = a
        for number, step in enumerate(steps):
            value = computed(step, value, a, f"step{number}")
        return value

    def computed(step, value, a, name):
        return te.compute((5, 7), lambda i, j: step(value[i, j], a[i, j]), name)

    return te_kernel(make, ((5, 7), "float32"))


def move(value, _):
    return value


LEFT = {
    "a difference that the simplifier takes for 0": chain(move, lambda x, a: x - a),
    "a product that becomes a summand": chain(lambda x, a: x * a, lambda x, a: x + a),
    "also through a block between": chain(lambda x, a: x * a, move, lambda x, a: a - x),
    "also a quotient": chain(lambda x, a: x / 4, lambda x, a: x + a),
    "what a function computes": chain(lambda x, a: te.exp(x), lambda x, a: x + a),
    "a rounding to float8": chain(
        lambda x, a: x.astype("float8_e4m3fn"), lambda x, a: x.astype("float32")
    ),
    "a rounding to bfloat16": chain(
        lambda x, a: x.astype("bfloat16"), lambda x, a: x.astype("float32")
    ),
}


@pytest.mark.parametrize("why", LEFT)
def test_what_could_round_otherwise_is_left(why):
    assert with_producers_inlined(LEFT[why]) is None


SAME = {
    "half": chain(lambda x, a: x.astype("float16"), lambda x, a: x.astype("float32")),
    "products": chain(lambda x, a: x * a, lambda x, a: x * a),
    "sums": chain(lambda x, a: x + a, lambda x, a: x + a, move),
    "a sum, then a product": chain(lambda x, a: x + a, lambda x, a: x * a),
    "a choice": chain(lambda x, a: te.if_then_else(x > 0, x, a), lambda x, a: x * a),
    "a number": chain(lambda x, a: x.astype("int32"), lambda x, a: x & 255),
}


@pytest.mark.parametrize("name", SAME)
def test_the_bits_are_the_same(name):
    kernel = SAME[name]
    inlined = with_producers_inlined(kernel)
    assert "sblock_alloc_buffer" not in inlined.script()
    array = random_array(np.random.default_rng(0), (5, 7), "float32")
    array[0] = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, 3e38]
    array[1] = array[0][::-1]
    if name == "a number":
        array[:2] = 1
    assert run(built(inlined), inlined, [array]) == run(built(kernel), kernel, [array])


MOVED_OUT = """
@T.prim_func(private=True, s_tir=True)
def moved_out(a: T.Buffer((4, 4)), b: T.Buffer((4, 4)), out: T.Buffer((4, 4))):
    kept = T.sblock_alloc_buffer((4, 4))
    for i, j in T.grid(4, 4):
        with T.sblock("kept"):
            vi, vj = T.axis.remap("SS", [i, j])
            kept[vi, vj] = a[vi, vj]
    for i, j in T.grid(4, 4):
        with T.sblock("cleared"):
            vi, vj = T.axis.remap("SS", [i, j])
            a[vi, vj] = b[vi, vj]
    for i, j in T.grid(4, 4):
        with T.sblock("out"):
            vi, vj = T.axis.remap("SS", [i, j])
            out[vi, vj] = kept[vj, vi]
"""


def test_what_is_read_before_it_is_overwritten():
    """Inlined, it would be read afterwards."""
    assert with_producers_inlined(from_source(MOVED_OUT)) is None


def test_an_axis_of_one_element():
    """TVM writes it at 0, which is no index."""

    def turned_flat(w):
        laid_out = op.layout_transform(w, lambda i, j: (j // 2, i, j % 2))
        return op.flatten(laid_out)

    kernel = kernel_of(turned_flat, ((1, 2), "float16"))
    inlined = with_producers_inlined(kernel)
    assert "sblock_alloc_buffer" not in inlined.script()
    array = random_array(np.random.default_rng(0), (1, 2), "float16")
    assert run(built(inlined), inlined, [array]) == run(built(kernel), kernel, [array])


def test_a_sum_of_several_is_left():
    kernel = kernel_of(lambda w: op.nn.softmax(w), ((16, 32), "float32"))
    assert with_producers_inlined(kernel) is None


def test_a_sum_that_is_undone_is_left():
    """The simplifier takes ``a + b - b`` for a; other sums and differences stay."""

    def make(a):
        total = te.compute((5, 7), lambda i, j: a[i, j] + a[i, 6 - j], "total")
        return te.compute(
            (5, 7), lambda i, j: total[i, j] - a[i, 6 - j] + (a[4 - i, j] - a[i, j]), "out"
        )

    assert with_producers_inlined(te_kernel(make, ((5, 7), "float32"))) is None


def test_a_large_expression_is_left():
    """Each block reads the one before it twice."""

    def make(a):
        value = a
        for number in range(13):
            value = doubled(value, f"step{number}")
        return value

    def doubled(value, name):
        return te.compute((5, 7), lambda i, j: value[i, j] + value[4 - i, j], name)

    assert with_producers_inlined(te_kernel(make, ((5, 7), "float32"))) is None


WRITTEN_TWICE = """
@T.prim_func(private=True, s_tir=True)
def twice(a: T.Buffer((8,), "int32"), b: T.Buffer((8,), "int32"), out: T.Buffer((8,), "int32")):
    for i in range(8):
        with T.sblock("first"):
            vi = T.axis.spatial(8, i)
            out[vi] = a[vi]
    for i in range(8):
        with T.sblock("second"):
            vi = T.axis.spatial(8, i)
            out[vi] = b[vi]
"""

NAMED = """
@T.prim_func(private=True, s_tir=True)
def named(a: T.Buffer((8,), "int32"), out: T.Buffer((8,), "int32")):
    x = T.int32()
    moved = T.sblock_alloc_buffer((8,), "int32")
    for i in range(8):
        with T.sblock("moved"):
            vi = T.axis.spatial(8, i)
            moved[vi] = a[7 - vi]
    for i in range(8):
        with T.sblock("out"):
            vi = T.axis.spatial(8, i)
            out[vi] = T.Let(x * x, where={x: moved[vi]})
"""


def test_a_buffer_that_two_blocks_write_is_left():
    assert with_producers_inlined(from_source(WRITTEN_TWICE)) is None


def test_a_name_in_an_expression_is_left():
    assert with_producers_inlined(from_source(NAMED)) is None


def test_an_output_that_is_read_is_computed_again():
    def make(a):
        first = te.compute((5, 7), lambda i, j: a[i, 6 - j], "first")
        return first, te.compute((5, 7), lambda i, j: first[i, j] * 2, "second")

    kernel = te_kernel(make, ((5, 7), "int32"))
    inlined = with_producers_inlined(kernel)
    array = random_array(np.random.default_rng(0), (5, 7), "int32")
    assert run(built(inlined), inlined, [array]) == run(built(kernel), kernel, [array])
    assert inlined.script().count("T.reads(a0") == 2


def test_a_choice_that_is_always_the_same_is_made():
    def make(a):
        padded = te.compute((5, 9), lambda i, j: te.if_then_else(j < 7, a[i, j], 0), "padded")
        return te.compute((5, 7), lambda i, j: padded[i, j], "cut")

    inlined = with_producers_inlined(te_kernel(make, ((5, 7), "int32")))
    assert "if_then_else" not in inlined.script()
