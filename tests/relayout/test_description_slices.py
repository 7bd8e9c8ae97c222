"""Along which axes an output is made slice by slice."""

import numpy as np
import pytest
from described import number, places
from hypothesis import given
from inplace_kernels import kernels_of, moves
from moving_kernels import COMPUTED, LAYOUTS, OPERATORS
from profiles import examples
from tvm import relax, tirx

from relax_inplace.relayout.description import Digit, Piece, Relayout
from relax_inplace.relayout.description_slices import sliced_axes
from relax_inplace.relayout.index import Restart, Sizes
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.read_description import read_relayouts
from relax_inplace.relayout.size import Polynomial, Unknown
from relax_inplace.relayout.tir_forms import IndexReader

op = relax.op
STATIC = {n: v for n, v in {**OPERATORS, **LAYOUTS, **COMPUTED}.items() if "any size" not in n}


def shapes_of(kernel):
    sizes = Sizes()
    while True:
        try:
            return {
                at: [IndexReader(sizes, {}).size(size) for size in param.ty.shape]
                for at, param in enumerate(kernel.params)
                if isinstance(param.ty, tirx.BufferType)
            }
        except Restart:
            continue


def positions(flat, shape, axis, bits):
    """Of bits of a tensor, along one of its axes."""
    inner = bits // int(np.prod(shape[: axis + 1]))
    return flat // inner % shape[axis]


def assert_sliced(relayout, shapes, axis, axes):
    """What is made at a position is read there."""
    size = dict(relayout.bits)
    for piece in relayout.pieces:
        extents = [digit.extent for digit in piece.digits]
        into = places(piece.into, [digit.into for digit in piece.digits], extents)
        here = positions(into, shapes[relayout.output], axis, size[relayout.output])
        for at, (param, base) in enumerate(piece.inputs):
            if axes[param] is not None:
                read = places(base, [digit.read[at] for digit in piece.digits], extents)
                there = positions(read, shapes[param], axes[param], size[param])
                assert (here == there).all()


@pytest.mark.parametrize("name", STATIC)
def test_what_is_sliced_is_read_there(name):
    function, tensors = STATIC[name]
    for kernel in kernels_of(function, *tensors):
        kernel = with_producers_inlined(kernel)
        shapes = shapes_of(kernel)
        for relayout in read_relayouts(kernel):
            for axis in range(len(shapes[relayout.output])):
                axes = sliced_axes(relayout, shapes, axis)
                if axes is not None:
                    assert axes.keys() == set(relayout.inputs)
                    assert_sliced(relayout, shapes, axis, axes)


@examples(100)
@given(moves())
def test_any_moves(drawn):
    (relayout,) = read_relayouts(drawn.kernel)
    shapes = shapes_of(drawn.kernel)
    for axis in range(len(shapes[1])):
        axes = sliced_axes(relayout, shapes, axis)
        if axes is not None:
            assert_sliced(relayout, shapes, axis, axes)
        elif shapes[1][axis] > 1:
            assert not could_be_sliced(relayout, shapes, axis)


def could_be_sliced(relayout, shapes, axis):
    """Whether each position is made of the one there, along some axis of the one input."""
    for other, size in enumerate(shapes[0]):
        try:
            assert size == shapes[1][axis]
            assert_sliced(relayout, shapes, axis, {0: other})
            return True
        except AssertionError:
            pass
    return False


def axes_of(function, *tensors):
    (kernel,) = kernels_of(function, *tensors)
    (relayout,) = read_relayouts(kernel)
    shapes = shapes_of(kernel)
    return [sliced_axes(relayout, shapes, axis) for axis in range(len(shapes[relayout.output]))]


MATRIX = ((12, 10), "float16")

SLICED = {
    "transpose": (op.permute_dims, [MATRIX], [{0: 1}, {0: 0}]),
    "any size": (op.permute_dims, [(("n", "k"), "float16")], [{0: 1}, {0: 0}]),
    "flip": (lambda x: op.flip(x, 1), [MATRIX], [{0: 0}, None]),
    "cast": (lambda x: op.astype(x, "float32"), [MATRIX], [{0: 0}, {0: 1}]),
    "all of an input": (op.add, [MATRIX, ((1, 10), "float16")], [{0: 0, 1: None}, {0: 1, 1: 1}]),
    "concat": (lambda x, y: op.concat([x, y], 1), [MATRIX, MATRIX], [{0: 0, 1: 0}, None]),
    "pad": (lambda x: op.nn.pad(x, (0, 0, 1, 2)), [MATRIX], [{0: 0}, None]),
    "some rows": (lambda x: op.strided_slice(x, [0], [0], [5]), [MATRIX], [None, {0: 1}]),
    "roll": (lambda x: op.strided_slice(x, [1], [2], [7]), [MATRIX], [{0: 0}, None]),
    "an axis in two": (lambda x: op.reshape(x, (4, 3, 10)), [MATRIX], [None, None, {0: 1}]),
    "two axes in one": (lambda x: op.reshape(x, (120,)), [MATRIX], [None]),
}


@pytest.mark.parametrize("name", SLICED)
def test_sliced(name):
    function, tensors, expected = SLICED[name]
    assert axes_of(function, *tensors) == expected


def test_one_axis_of_an_input():
    (kernel,) = kernels_of(lambda x: op.add(x, op.permute_dims(x)), ((12, 12), "float16"))
    kernel = with_producers_inlined(kernel)
    (relayout,) = read_relayouts(kernel)
    assert [sliced_axes(relayout, shapes_of(kernel), axis) for axis in (0, 1)] == [None, None]


def rows(step, base):
    """Six rows of three bytes from rows of four."""
    digits = Digit(6, 24, (32,)), Digit(3, 8, (step,)), Digit(8, 1, (1,))
    return Relayout(1, (Piece(digits, 0, ((0, base),)),), ((0, 6 * 4 * 8), (1, 6 * 3 * 8)))


def test_what_is_read_stays_in_a_position():
    shapes = {0: [6, 4], 1: [6, 3]}
    assert sliced_axes(rows(8, 0), shapes, 0) == {0: 0}
    assert sliced_axes(rows(8, 8), shapes, 0) == {0: 0}
    assert sliced_axes(rows(16, 0), shapes, 0) is None  # goes on in the next row
    assert sliced_axes(rows(8, 32), shapes, 0) is None  # is the next row


def test_only_the_axis_depends_on_its_size():
    """Else a kernel for fewer rows would be another one."""
    n = Polynomial.of(Unknown("size", (tirx.Var("n", "int64"),)))

    def axes(rows, base, *inner):
        digits = Digit(n, 16, (rows,)), *inner, Digit(8, 1, (1,))
        made = Piece(digits, 0, ((0, base),)), Piece((Digit(n, 16), Digit(8, 1)), 8, (), fill=0)
        relayout = Relayout(1, made, ((0, n * 80), (1, n * 16)))
        return sliced_axes(relayout, {0: [n, 5, 2], 1: [n, 2]}, 0)

    assert axes(80, 8) == {0: 0}
    assert axes(0, 80) == {0: None}
    assert axes(0, 80 * n - 80) is None  # the last one
    assert axes(0, 0, Digit(1, 8, (80 * n,))) is None
    assert axes(80, 0, Digit(rim(n), 1, (8,))) is None


def rim(size):
    """What is left of a size, divided by 4."""
    return Polynomial.of(Unknown("%", (size, 4), 3))


def test_sizes_are_of_one_kernel():
    (kernel,) = kernels_of(op.permute_dims, (("n", "k"), "float16"))
    assert [number(size, {"n": 3, "k": 5}) for size in shapes_of(kernel)[1]] == [5, 3]
