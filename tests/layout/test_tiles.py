"""Tiles and VNNI: there and back, against numpy."""

import numpy as np
import pytest
import references
from compiled import assert_bits, compiled, random_bits
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from tvm import relax

from relax_inplace.layout import LayoutError, tiles

DTYPES = ["float16", "bfloat16", "float32", "int8", "uint8", "uint32"]
FOUR_BY_TWO = np.arange(8, dtype="int8").reshape(2, 4)


def test_a_small_case():
    assert_bits(
        compiled(lambda w: tiles.pack(w, 2, 3), ((2, 4), "int8"))(FOUR_BY_TWO),
        np.array([[[[0, 1, 2], [4, 5, 6]], [[3, 0, 0], [7, 0, 0]]]], "int8"),
    )
    assert_bits(
        compiled(tiles.pack_vnni, ((2, 4), "int8"))(FOUR_BY_TWO),
        np.array([[[0, 1, 2, 3], [4, 5, 6, 7]]], "int8"),
    )
    assert_bits(
        compiled(tiles.pack_vnni, ((2, 4), "float16"))(FOUR_BY_TWO.astype("float16")),
        np.array([[[0, 1], [4, 5]], [[2, 3], [6, 7]]], "float16"),
    )


@examples(20)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 5), st.integers(1, 5), st.data())
def test_static_sizes(height, width, rows, columns, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    weight = random_bits(np.random.default_rng(height), (height, width), dtype)
    there = compiled(lambda w: tiles.pack(w, rows, columns), (weight.shape, dtype))
    packed = references.tiles(weight, rows, columns)
    assert_bits(there(weight), packed)
    back = compiled(lambda w: tiles.unpack(w, relax.ShapeExpr(weight.shape)), (packed.shape, dtype))
    assert_bits(back(packed), weight)


@pytest.fixture(scope="module", params=[(4, 8, "float16"), (3, 5, "uint8"), (1, 1, "float32")])
def symbolic(request):
    rows, columns, dtype = request.param

    def both(weight):
        packed = tiles.pack(weight, rows, columns)
        return packed, tiles.unpack(packed, weight.ty.shape.values)

    return rows, columns, dtype, compiled(both, (("n", "k"), dtype))


@examples(25)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_symbolic_sizes(symbolic, height, width):
    rows, columns, dtype, both = symbolic
    weight = random_bits(np.random.default_rng(height), (height, width), dtype)
    packed, back = both(weight, n=height, k=width)
    assert_bits(packed, references.tiles(weight, rows, columns))
    assert_bits(back, weight)


@pytest.fixture(scope="module", params=["int8", "uint8", "bfloat16", "float16"])
def vnni(request):
    def both(weight):
        packed = tiles.pack_vnni(weight)
        return packed, tiles.unpack_vnni(packed)

    v = 4 if "int8" in request.param else 2
    return v, request.param, compiled(both, (("n", f"k * {v}"), request.param))


@examples(25)
@given(height=st.integers(1, 20), count=st.integers(1, 20))
def test_vnni(vnni, height, count):
    v, dtype, both = vnni
    weight = random_bits(np.random.default_rng(count), (height, count * v), dtype)
    packed, back = both(weight, n=height, k=count)
    assert_bits(packed, references.vnni(weight))
    assert_bits(back, weight)


@pytest.mark.parametrize(
    "layout, tensor, message",
    [
        (
            lambda w: tiles.pack(w, 4, 0),
            ((4, 8), "int8"),
            "layout.tiles.pack: tiles of 4 x 0 given, expected two numbers above 0; give the rows "
            "and the columns of a tile",
        ),
        (
            lambda w: tiles.pack(w, 4, 4),
            ((4, 8, 2), "int8"),
            'layout.tiles.pack: `weight` is R.Tensor((4, 8, 2), dtype="int8"), expected a tensor '
            "(N, K); the type of a weight has to say its shape: annotate the parameter, or use "
            "R.match_cast",
        ),
        (
            lambda w: tiles.unpack(w, (9, 8)),
            ((2, 2, 4, 4), "int8"),
            "layout.tiles.unpack: 2 rows of tiles given, expected 3 (9 in tiles of 4); give the "
            "`shape` that the matrix had when it was packed",
        ),
        (
            lambda w: tiles.unpack(w, (8, 8, 1)),
            ((2, 2, 4, 4), "int8"),
            "layout.tiles.unpack: a shape of 3 sizes, expected (N, K); give the `shape` that the "
            "matrix had when it was packed",
        ),
        (
            tiles.unpack,
            ((2, 2, "n", 4), "int8"),
            "layout.tiles.unpack: tiles of n x 4 given, expected constants; cast the tensor to the "
            "tiles it has with R.match_cast",
        ),
        (
            tiles.pack_vnni,
            ((4, 30), "int8"),
            "layout.tiles.pack_vnni: 30 columns given, expected a multiple of 4; pad the weight "
            "along K with zeros",
        ),
        (
            tiles.pack_vnni,
            ((4, "k"), "int8"),
            "layout.tiles.pack_vnni: k columns given, expected a multiple of 4; write that size as "
            "`m * 4`, or let R.match_cast check it when the function runs: `(k) // 4 * 4`",
        ),
        (
            tiles.pack_vnni,
            ((4, 32), "float32"),
            "layout.tiles.pack_vnni: `weight` is float32, expected int8/uint8/bfloat16/float16 "
            "(N, K); layouts move bits and never convert numbers: give the tensor as it is stored",
        ),
        (
            tiles.unpack_vnni,
            ((8, 4, 2), "int8"),
            "layout.tiles.unpack_vnni: 2 neighbours given, expected 4 (neighbours of int8); give "
            "what pack_vnni returned",
        ),
    ],
)
def test_refusals(layout, tensor, message):
    with pytest.raises(LayoutError) as raised:
        compiled(layout, tensor)
    assert str(raised.value) == message
