"""The description that undoes another one, and what has none."""

import numpy as np
import pytest
from described import apply, number
from hypothesis import given
from inplace_kernels import kernels_of, moves, te_kernel
from moving_kernels import COMPUTED, LAYOUTS, OPERATORS, SIZES, constant
from profiles import examples
from tvm import relax, te

from relax_inplace.relayout.description_inverse import inverse
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.moves import is_bijection
from relax_inplace.relayout.read_description import read_relayouts

op = relax.op
LOSES = "is not proved to keep every element"
QUIET = "casts: `astype` of float16 to float32 makes signalling NaNs quiet"
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
    **dict.fromkeys(("scale", "scale and transpose", "add"), "computes new numbers"),
    "float to half": "casts: `astype` of float32 to float16 loses bits",
    "half to float": QUIET,
    "any size: half to float": QUIET,
}
BOOL = ((8,), "bool")
INT8 = ((12, 10), "int8")
EXACT = {
    "to a wider signed, turned": (lambda x: op.permute_dims(op.astype(x, "int32")), [INT8]),
    "to a wider signed, any size": (
        lambda x: op.flip(op.astype(x, "int64"), 0),
        [(("n", "k"), "int32")],
    ),
    "to a float, filled up": (
        lambda x: op.nn.pad(op.astype(x, "float32"), (1, 2, 0, 3), pad_value=1.0),
        [INT8],
    ),
    "several steps": (
        lambda x: op.bitwise_not(op.bitwise_xor(op.astype(x, "int16"), constant(300, "int16"))),
        [INT8],
    ),
}
PADS = ("pad", "a rim", "wider unsigned")  # what is filled up is not read again


ALL = {**OPERATORS, **LAYOUTS, **COMPUTED, **EXACT}


def descriptions(name):
    """Each with the dtypes of its parameters."""
    function, tensors = ALL[name]
    for kernel in kernels_of(function, *tensors):
        yield from read_relayouts(with_producers_inlined(kernel))


def assert_undone(relayout, back, sizes):
    """What is made of random bytes, and made of that, is these bytes."""
    count = number(relayout.bits_of(back.output), sizes) // 8
    data = np.random.default_rng(0).bytes(count)
    made = apply(relayout, {back.output: data}, sizes)
    assert apply(back, {relayout.output: made}, sizes) == data


@pytest.mark.parametrize("name", ALL)
def test_undone(name):
    for relayout in descriptions(name):
        back = inverse(relayout)
        if name in NONE:
            assert back == NONE[name]
            assert not is_bijection(relayout)
            continue
        sizes = {"n": 50, "k": 100} if "rim" in name else SIZES
        assert_undone(relayout, back, sizes)
        if any(piece.value is not None for piece in back.pieces):
            continue
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


def test_what_computes_in_two_ways_has_no_inverse():
    """Or moves some, and computes others."""

    def halves(one, other):
        def kernel(x):
            whole = lambda i: te.if_then_else(i < 4, one(x[i]), other(x[i]))  # noqa: E731
            return te.compute((8,), whole)

        (relayout,) = read_relayouts(te_kernel(kernel, ((8,), "int8")))
        return inverse(relayout)

    def wide(x):
        return x.astype("int32")

    assert not isinstance(halves(wide, wide), str)
    assert halves(wide, lambda x: ~wide(x)) == "computes new numbers"
    assert halves(wide, lambda x: wide(x) & 255) == "computes new numbers"
    assert halves(wide, lambda x: wide(x) + 1) == "computes new numbers"


def test_bool_has_two_values():
    """Not all that a byte may hold."""
    (relayout,) = read_relayouts(te_kernel(lambda x: te.compute((8,), lambda i: ~x[i]), BOOL))
    assert inverse(relayout) == "computes new numbers"


def test_what_reads_nothing_has_no_inverse():
    (relayout,) = read_relayouts(te_kernel(lambda: te.compute((4,), lambda i: 0)))
    assert inverse(relayout) == "reads no tensor"
    assert not is_bijection(relayout)
