"""A layout in a line: what it says by numpy, there and back, and what is no line."""

import re

import numpy as np
import pytest
from relayout.described import apply

from relax_inplace import layout
from relax_inplace.layout._declaration import Declaration
from relax_inplace.relayout.coverage import tile
from relax_inplace.relayout.description import box_of
from relax_inplace.relayout.description_inverse import inverse
from relax_inplace.relayout.moves import is_bijection

DECLARED = {
    f"{name}: {line}": declaration
    for name in layout.__all__
    for line, declaration in getattr(getattr(layout, name), "LAYOUTS", {}).items()
}


def extents_in(text):
    """Of each digit; 4 of one that has none."""
    given = {name: int(extent) for name, extent in re.findall(r"\b([A-Za-z]\w*):(\d+)", text)}
    return dict.fromkeys(re.findall(r"\b[A-Za-z]\w*", text), 4) | given


def moved(text, data):
    """The bytes of a result: slices, reshaped and transposed by numpy."""
    bits = np.unpackbits(np.frombuffer(data, "uint8"), bitorder="little")
    made, extents = np.zeros_like(bits), extents_in(text)
    for line in re.sub(r"\n\s*->", " ->", text).strip().splitlines():
        line, _, flip = line.partition("^")
        read, into = (re.sub(r":\d+|,", "", side).split() for side in line.split("->"))
        names = [word for word in read if word.isidentifier()]
        order = [names.index(word) for word in into if word.isidentifier()]
        values = view(bits, read, extents).transpose(order)
        pattern = [int(flip or "0", 16) >> k & 1 for k in range(values.shape[-1])]
        view(made, into, extents)[...] = values ^ np.array(pattern, "uint8")
    return np.packbits(made, bitorder="little").tobytes()


def view(bits, words, extents):
    """An axis for each digit, of what fields and halves leave of the bits."""
    array = bits
    assert len(bits) == width(words, extents)
    for place, word in enumerate(words):
        inside = width(words[place + 1 :], extents)
        if word.isidentifier():
            array = array.reshape(*array.shape[:-1], extents[word], inside)
        elif "/" in word:
            start = int(word.split("/")[0]) * inside
            array = array[..., start : start + inside]
        else:
            start = int(word.split("+")[1])
            array = array[..., start : start + inside]
    return array[..., 0]


def width(words, extents):
    """How many bits words take."""
    if not words:
        return 1
    word, *inside = words
    if word.startswith("@"):
        return int(word[1:].split("+")[0])
    extent = extents[word] if word.isidentifier() else int(word.split("/")[1])
    return extent * width(inside, extents)


@pytest.mark.parametrize("name", DECLARED)
def test_as_numpy_does(name):
    """And back: what the line says from right to left is the inverse of the description."""
    declaration = DECLARED[name]
    extents = extents_in(declaration.text)
    relayout = declaration.relayout(extents)
    data = np.random.default_rng(0).bytes(relayout.bits_of(0) // 8)
    made = moved(declaration.text, data)
    assert apply(relayout, {0: data}) == made
    assert tile(map(box_of, relayout.pieces), relayout.bits_of(1))
    assert is_bijection(relayout)
    back = declaration.back.relayout(extents)
    assert apply(back, {0: made}) == data
    assert inverse(relayout).pieces == tuple(
        type(piece)(piece.digits, piece.into, ((1, piece.inputs[0][1]),), piece.flip)
        for piece in back.pieces
    )


def test_a_small_case():
    """Fields of 4 bits and 12: all the first, then all the second, the lowest bit turned over."""
    declaration = Declaration("""
        A, @16+0 a:4 -> @64+0 A a
        A, @16+4 b:12
            -> @64+16 A b ^0x1""")
    extents = declaration.extents([4], 16)
    assert extents == {"A": 4, "a": 4, "b": 12}
    assert declaration.shape(extents, 16) == [4]
    given = np.array([0x1230, 0x4561, 0x7892, 0xABC3], "uint16")
    made = apply(declaration.relayout(extents), {0: given.tobytes()})
    codes = [0x123 ^ 1, 0x456 ^ 1, 0x789 ^ 1, 0xABC ^ 1]
    number = 0x3210 | sum(code << 16 + 12 * at for at, code in enumerate(codes))
    assert made == number.to_bytes(8, "little")


def test_sizes():
    """An axis is what a comma ends; elements are what is left, or are in the last axis."""
    declaration = Declaration("K k:8, N, e:2 c:4 b:4 -> N c e, K, k b")
    extents = declaration.extents([24, 5], 32)
    assert (extents["K"], extents["N"]) == (3, 5)
    assert declaration.shape(extents, 32) == [40, 3]
    assert declaration.shape(extents, 8) == [40, 3, 4]
    assert declaration.factors(2) == [8, 1]
    assert declaration.back.extents([40, 3], 32) == extents
    each = declaration.of_each("E")
    assert each.text == "E, K k:8, N, e:2 c:4 b:4 -> E, N c e, K, k b"
    assert each.extents([2, 24, 5], 32)["E"] == 2


NO_LINES = {
    "N k:2 -> k": "not the same digits on both sides",
    "N k:2 b:8 -> k:2 N b": "its extent is given twice",
    "N 2k -> 2k N": "neither a digit nor a field",
    "N k:2 b:8 -> b k N ^0x80": "the innermost digit is not that of both sides",
}


@pytest.mark.parametrize("text", NO_LINES)
def test_no_lines(text):
    with pytest.raises(ValueError, match=NO_LINES[text]):
        Declaration(text)


NO_SIZES = {
    "not of 1 axes": ("N, K, b:8 -> K, N, b", [4], 8),
    "M and N have no extent": ("N M, b:8 -> M N, b", [4], 8),
    "n:3 N: not of 4": ("n:3 N, b:8 -> N n, b", [4], 8),
    "b: 16 given": ("N, b:8 -> N, b", [4], 16),
}


@pytest.mark.parametrize("reason", NO_SIZES)
def test_no_sizes(reason):
    text, shape, bits = NO_SIZES[reason]
    with pytest.raises(ValueError, match=re.sub(r":\d+ ", " ", reason)):
        Declaration(text).extents(shape, bits)


def test_what_has_no_shape():
    declaration = Declaration("N, b:12 -> N, b")
    with pytest.raises(ValueError, match="not of whole elements of 8 bits"):
        declaration.shape({"N": 2, "b": 12}, 8)
    two = Declaration("N, @8+0 a:4 -> N, @8+0 a\n N, @8+4 c:4 -> N, @16+4 c")
    with pytest.raises(ValueError, match="lines of several shapes"):
        two.shape({"N": 2, "a": 4, "c": 4}, 8)
    with pytest.raises(ValueError, match=r"@8\+4: holds less than 8 bits"):
        Declaration("N, @8+4 a:8 -> N, @8+4 a").relayout({"N": 2, "a": 8})
