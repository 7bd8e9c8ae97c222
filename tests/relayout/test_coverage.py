"""That boxes of places are all places once: what is proved is so, for all sizes."""

import itertools

import numpy as np
import pytest
from described import number, places
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from tvm import tirx

from relax_inplace.relayout.coverage import tile
from relax_inplace.relayout.size import Polynomial, Unknown

n, m = (Polynomial.of(Unknown("size", (tirx.Var(name, "int64"),))) for name in "nm")

REST = Unknown("%", (n, 16), 15)
rest = Polynomial.of(REST)
last = Polynomial.of(Unknown("//", (rest + 15, 16), 1, REST))  # 0 if the rest is, else 1


def counts(boxes, size, known):
    """How often each place is in the boxes; None if one is outside."""
    found = np.zeros(number(size, known), int)
    for base, digits in boxes:
        extents = [number(extent, known) for extent, _ in digits]
        strides = [number(stride, known) for _, stride in digits]
        there = places(number(base, known), strides, extents)
        if len(there) and (there.min() < 0 or there.max() >= len(found)):
            return None
        np.add.at(found, there, 1)
    return found


def is_tiled(boxes, size, known):
    found = counts(boxes, size, known)
    return found is not None and bool((found == 1).all())


@st.composite
def any_boxes(draw):
    """Few places, so that some of these tile."""
    digits = st.tuples(st.integers(0, 4), st.sampled_from((-2, -1, 0, 1, 1, 2, 2, 3, 4, 6, 8)))
    box = st.tuples(st.integers(0, 8), st.lists(digits, max_size=3).map(tuple))
    return draw(st.lists(box, max_size=4)), draw(st.integers(0, 16))


@st.composite
def tilings(draw):
    """A box of digits, cut; places of digits of any order; some fall."""
    extents = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    boxes = [[range(extent) for extent in extents]]
    for _ in range(draw(st.integers(0, 4))):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(extents) - 1))
        at = draw(st.integers(0, len(box[axis])))
        for part in (box[axis][:at], box[axis][at:]):
            boxes.append([*box[:axis], part, *box[axis + 1 :]])
    strides = [int(np.prod(extents[axis + 1 :])) for axis in range(len(extents))]
    found = []
    for box in boxes:
        order = draw(st.permutations(range(len(extents))))
        base, digits = 0, []
        for axis in order:
            part, stride = box[axis], strides[axis]
            if part and draw(st.booleans()):
                base, stride = base + stride * part[-1], -stride
            else:
                base += stride * part.start
            digits.append((len(part), stride))
        found.append((base, tuple(digits)))
    return draw(st.permutations(found)), int(np.prod(extents))


@examples(400, fuzz=200000)
@given(any_boxes())
def test_what_is_proved_is_so(drawn):
    boxes, size = drawn
    assert not tile(boxes, size) or is_tiled(boxes, size, {})


@examples(200, fuzz=50000)
@given(tilings(), st.data())
def test_a_box_that_is_cut_tiles(drawn, data):
    boxes, size = drawn
    assert tile(boxes, size)
    assert not tile(boxes, size + 1)
    used = [at for at, (_, digits) in enumerate(boxes) if all(extent for extent, _ in digits)]
    at = data.draw(st.sampled_from(used))
    assert not tile(boxes[:at] + boxes[at + 1 :], size)
    assert not tile([*boxes, boxes[at]], size)


TILED = {
    "rows and columns": ([(0, ((n, m * 8), (m * 8, 1)))], n * m * 8),
    "two axes, transposed": ([(0, ((8, 1), (m, n * 8), (n, 8)))], n * m * 8),
    "one after another": ([(0, ((n * 8, 1),)), (n * 8, ((m, 8), (8, 1)))], n * 8 + m * 8),
    "next to each other": (
        [(0, ((n, m + 3), (m, 1))), (m, ((n, m + 3), (3, 1)))],
        n * m + n * 3,
    ),
    "from behind": ([(n * 8 - 8, ((n, -8), (8, 1)))], n * 8),
    "a run and what goes on": (
        [(0, ((n * 8 + 3, 1),)), (n * 8 + 3, ((5, 1),)), (n * 8 + 8, ((8, 1),))],
        n * 8 + 16,
    ),
    "a rim": ([(0, ((last, m * 128), (m, 8), (rest, m * 8), (8, 1)))], rest * m * 8),
    "halves of rows": ([(0, ((n * 2, 4), (4, 1))), (n * 8, ((m, 8), (8, 1)))], n * 8 + m * 8),
}


@pytest.mark.parametrize("name", TILED)
def test_any_size(name):
    boxes, size = TILED[name]
    assert tile(boxes, size)
    for a, b in itertools.product((0, 1, 2, 5), repeat=2):
        assert is_tiled(boxes, size, {"n": a, "m": b})


NOT_TILED = {
    "a gap": ([(0, ((n, 9), (8, 1)))], n * 9),
    "a gap of no known size": ([(0, ((n, m + 8), (8, 1)))], n * m + n * 8),
    "too short": ([(0, ((n, 8), (8, 1)))], n * 8 + 8),
    "twice": ([(0, ((n, 8), (8, 1))), (0, ((8, 1),))], n * 8),
    "all twice": ([(0, ((n, 8), (8, 1)))] * 2, n * 8),
    "repeated": ([(0, ((2, 0), (n * 8, 1)))], n * 8),
    "not from the first one": ([(8, ((n, 8), (8, 1)))], n * 8),
    "parts that are not from the first one": ([(8, ((8, 1),)), (16, ((n, 1),))], n + 16),
    "a last tile that need not be there": ([(0, ((last, 8), (8, 1)))], 8),
    "a row too many": ([(at, ((n + 1, 8), (4, 1))) for at in (0, 4)], n * 8),
    "a row too early": ([(at - 8, ((n + 1, 8), (4, 1))) for at in (0, 4)], n * 8),
    "rows that may be beyond the end": (
        [(0, ((n, 8), (4, 1))), (4, ((3, 8), (4, 1))), (28, ((n - 3, 8), (4, 1)))],
        n * 8,
    ),
    "sizes that need not be equal": ([(0, ((n * 8, 1),))], m * 8),
    "the size of another": ([(0, ((n, m * 8), (n * 8, 1)))], n * m * 8),
    "overlapping": ([(0, ((n * 8, 1),)), (m * 8, ((n * 8, 1),))], n * 8 + m * 8),
    "a border that may be beyond the end": (
        [(0, ((n - 3, 8), (8, 1))), (n * 8 - 24, ((m * 8, 1),))],
        n * 8,
    ),
}


@pytest.mark.parametrize("name", NOT_TILED)
def test_not_for_all_sizes(name):
    boxes, size = NOT_TILED[name]
    assert not tile(boxes, size)
