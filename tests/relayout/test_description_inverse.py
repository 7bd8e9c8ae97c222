"""The description that undoes another one, and what has none."""

import numpy as np
import pytest
from described import apply, number
from hypothesis import given
from inplace_kernels import kernels_of, moves, te_kernel
from moving_kernels import COMPUTED, LAYOUTS, OPERATORS, SIZES
from profiles import examples
from tvm import te

from relax_inplace.relayout.byte_moves import is_bijection
from relax_inplace.relayout.description_inverse import inverse
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.read_description import read_relayouts

LOSES = "is not proved to keep every element"
NONE = {
    "strided_slice": LOSES,
    "strided_slice backwards": LOSES,
    "split rows": LOSES,
    "split columns": LOSES,
    "any size: split": LOSES,
    "any size: slice": LOSES,
    "concat rows": "reads several tensors",
    "concat columns": "reads several tensors",
    "stack": "reads several tensors",
    "any size: concat rows": "reads several tensors",
    "any size: concat columns": "reads several tensors",
    "broadcast_to": LOSES,
    "any size: broadcast": LOSES,
    "repeat rows": LOSES,
    "repeat columns": LOSES,
    "any size: repeat": LOSES,
    "tile": LOSES,
    "to a narrower": LOSES,
    "unpack, a rim": LOSES,
    "any size: unpack, a rim": LOSES,
    **dict.fromkeys(COMPUTED, "computes new numbers"),
}
PADS = ("pad", "a rim", "wider unsigned")  # what is filled up is not read again


def descriptions(name):
    function, tensors = {**OPERATORS, **LAYOUTS, **COMPUTED}[name]
    for kernel in kernels_of(function, *tensors):
        yield from read_relayouts(with_producers_inlined(kernel))


def assert_undone(relayout, back, sizes):
    """What is made of random bytes, and made of that, is these bytes."""
    count = number(relayout.bits_of(back.output), sizes) // 8
    data = np.random.default_rng(0).bytes(count)
    made = apply(relayout, {back.output: data}, {}, sizes)
    assert apply(back, {relayout.output: made}, {}, sizes) == data


@pytest.mark.parametrize("name", {**OPERATORS, **LAYOUTS, **COMPUTED})
def test_undone(name):
    for relayout in descriptions(name):
        back = inverse(relayout)
        if name in NONE:
            assert back == NONE[name]
            assert not is_bijection(relayout)
            continue
        sizes = {"n": 50, "k": 100} if "rim" in name else SIZES
        assert_undone(relayout, back, sizes)
        is_whole = not any(pad in name for pad in PADS)
        assert is_bijection(relayout) is is_whole
        assert (inverse(back) == relayout) is is_whole


@examples(100)
@given(moves(may_cast=False))
def test_any_moves(drawn):
    (relayout,) = read_relayouts(drawn.kernel)
    elements = int(np.prod(drawn.shape))
    if len(drawn.sources) < elements:
        assert inverse(relayout) == LOSES
        return
    back = inverse(relayout)
    assert is_bijection(relayout)
    assert is_bijection(back)
    assert inverse(back) == relayout
    assert_undone(relayout, back, {})


def test_what_reads_nothing_has_no_inverse():
    (relayout,) = read_relayouts(te_kernel(lambda: te.compute((4,), lambda i: 0)))
    assert inverse(relayout) == "reads no tensor"
    assert not is_bijection(relayout)
