"""In which blocks an output may be computed over an input."""

import numpy as np
import pytest
from described import apply, number
from hypothesis import given
from inplace_kernels import kernels_of, moves, te_kernel
from moving_kernels import LAYOUTS, OPERATORS, SIZES
from profiles import examples
from tvm import relax, te

from relax_inplace.relayout.description import Digit, Piece, Relayout
from relax_inplace.relayout.description_blocks import Blocks, find_blocks, in_blocks
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.inplace_kernel import MOST_SCRATCH, find_inplace_pairs
from relax_inplace.relayout.read_description import read_relayouts

op = relax.op
MATRIX = ((64, 48), "float32")


def relayouts(function, *tensors):
    return [
        relayout
        for kernel in kernels_of(function, *tensors)
        for relayout in read_relayouts(with_producers_inlined(kernel))
    ]


def in_place(relayout, blocks, data, sizes):
    """The output over its input: block after block, each from a copy of the one there."""
    memory = np.frombuffer(data, "uint8").copy()
    count = number(relayout.bits_of(relayout.output), sizes) // 8
    for at in range(-(-count // blocks.written)):
        here = memory.copy()
        if at * blocks.read > 0:
            here[: at * blocks.read] = 0xAA  # nothing before, and nothing behind is read
        here[(at + 1) * blocks.read :] = 0x55
        made = np.frombuffer(apply(relayout, {blocks.input: here.tobytes()}, {}, sizes), "uint8")
        part = slice(at * blocks.written, (at + 1) * blocks.written)
        memory[: len(made)][part] = made[part]
    return memory[:count].tobytes()


# Where these are in place, and today's analysis of the kernel does not see it.
FOUND_HERE_ONLY = {
    "layout_transform",
    "unpack, a rim",
    "any size: flatten",
    "any size: reshape, axes merged",
    "any size: reshape, other axes merged",
    "any size: reshape, an axis in two",
}


@pytest.mark.parametrize("name", {**OPERATORS, **LAYOUTS})
def test_as_the_kernel_says(name):
    """And carried out so, the output is what it is elsewhere."""
    function, tensors = {**OPERATORS, **LAYOUTS}[name]
    for kernel in kernels_of(function, *tensors):
        kernel = with_producers_inlined(kernel)
        found = read_relayouts(kernel)
        blocks = {(one.input, one.output): one for one in find_blocks(found, MOST_SCRATCH)}
        pairs = find_inplace_pairs(kernel)
        pairs = {} if isinstance(pairs, str) else {(p.input, p.output): p for p in pairs}
        if name not in FOUND_HERE_ONLY:
            assert blocks.keys() == pairs.keys()
        for key, pair in pairs.items():
            one = blocks[key]
            assert one.read * pair.bytes_written == one.written * pair.bytes_read
            assert one.read <= pair.bytes_read
        for relayout in found:
            for one in blocks.values():
                if one.output == relayout.output and relayout.inputs == (one.input,):
                    sizes = {"n": 50, "k": 100} if "rim" in name else SIZES
                    count = number(relayout.bits_of(one.input), sizes) // 8
                    data = np.random.default_rng(0).bytes(count)
                    expected = apply(relayout, {one.input: data}, {}, sizes)
                    assert in_place(relayout, one, data, sizes) == expected


@examples(100)
@given(moves(may_cast=False))
def test_any_moves(drawn):
    found = read_relayouts(drawn.kernel)
    pairs = find_inplace_pairs(drawn.kernel)
    for blocks in find_blocks(found, MOST_SCRATCH):
        data = np.random.default_rng(0).bytes(number(found[0].bits_of(0), {}) // 8)
        assert in_place(found[0], blocks, data, {}) == apply(found[0], {0: data}, {}, {})
    if not isinstance(pairs, str):
        assert find_blocks(found, MOST_SCRATCH)


def blocks_of(function, *tensors, most=MOST_SCRATCH):
    (relayout,) = relayouts(function, *tensors)
    return in_blocks(relayout, 0, most)


def test_narrower_elements_have_smaller_blocks():
    assert blocks_of(lambda w: op.astype(w, "float16"), MATRIX) == Blocks(0, 1, 4, 2)


def test_rows():
    assert blocks_of(lambda w: op.flip(w, 1), (("n", 64), "float32")) == Blocks(0, 1, 256, 256)
    first = lambda w: op.strided_slice(w, [1], [0], [32])  # noqa: E731
    assert blocks_of(first, MATRIX) == Blocks(0, 1, 192, 128)


def test_a_block_is_not_the_whole():
    found = blocks_of(lambda w: op.flip(w, 1), ((1, 64), "float32"))
    assert found == "has no blocks of up to 262144 bytes that are computed from those there"


def test_blocks_are_at_most_what_scratch_holds():
    assert blocks_of(lambda w: op.flip(w, 1), MATRIX, most=192) == Blocks(0, 1, 192, 192)
    assert isinstance(blocks_of(lambda w: op.flip(w, 1), MATRIX, most=191), str)


def test_larger():
    larger = "makes larger elements, or more of them"
    assert blocks_of(lambda w: op.astype(w, "float32"), ((64, 48), "float16")) == larger
    assert blocks_of(lambda w: op.repeat(w, 2, 0), MATRIX) == larger


def test_two_outputs_of_one_input():
    assert find_blocks(relayouts(lambda w: op.split(w, 2, 0), MATRIX), MOST_SCRATCH) == []


def test_another_input_is_read_anywhere():
    (relayout,) = relayouts(lambda w, v: op.add(w, op.flip(v, 0)), MATRIX, MATRIX)
    assert find_blocks([relayout], MOST_SCRATCH) == [Blocks(1, 2, 4, 4)]  # FuseOps turns them round


def test_what_is_read_stays_in_a_block():
    def rows(step):
        digits = Digit(6, 24, (32,)), Digit(3, 8, (step,)), Digit(8, 1, (1,))
        return Relayout(1, (Piece(digits, 0, ((0, 0),)),), ((0, 6 * 4 * 8), (1, 6 * 3 * 8)))

    assert in_blocks(rows(8), 0, MOST_SCRATCH) == Blocks(0, 1, 4, 3)
    assert isinstance(in_blocks(rows(16), 0, MOST_SCRATCH), str)  # goes on in the next one


def test_a_neighbour_is_outside():
    def shifted(a):
        return te.compute((15,), lambda i: a[i + 1])

    (relayout,) = read_relayouts(te_kernel(shifted, ((16,), "int8")))
    assert isinstance(in_blocks(relayout, 0, MOST_SCRATCH), str)
