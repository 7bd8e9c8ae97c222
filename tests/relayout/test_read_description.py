"""What a kernel moves, read off its TIR: carried out by numpy, it is bitwise what LLVM computes."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from described import apply
from hypothesis import given
from hypothesis import strategies as st
from inplace_kernels import built, kernels_of, moves, numpy_dtype, random_array, run, te_kernel
from moving_kernels import COMPUTED, LAYOUTS, OPERATORS, SIZES
from profiles import examples
from tvm import relax, te, tirx

from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.read_description import read_relayouts


def tensors_of(kernel, sizes):
    """Number, shape and dtype of each tensor parameter."""
    analyzer = tvm.sym.Analyzer()

    def known(var):
        return tirx.const(sizes[var.name], "int64")

    def size(expr):
        return int(analyzer.simplify(tvm_ffi.structural_map(expr, (relax.Var, known))))

    return {
        at: ([size(extent) for extent in param.ty.shape], str(param.ty.dtype))
        for at, param in enumerate(kernel.params)
        if isinstance(param.ty, tirx.BufferType)
    }


def assert_described(kernel, *all_sizes, is_sane=False):
    """Each output is bitwise what its description says, with each of the sizes."""
    kernel = with_producers_inlined(kernel)
    found = read_relayouts(kernel)
    assert not isinstance(found, str), found
    outputs = [relayout.output for relayout in found]
    function = built(kernel)
    for sizes in all_sizes:
        tensors = tensors_of(kernel, sizes)
        generator = np.random.default_rng(0)
        arrays = {}
        for at, (shape, dtype) in tensors.items():
            if at not in outputs:
                arrays[at] = random_array(generator, shape, dtype)
                if is_sane and "float" in dtype:
                    arrays[at] = generator.standard_normal(shape, "float32").astype(dtype)
        made = run(function, kernel, arrays.values(), sizes)
        given = {at: array.tobytes() for at, array in arrays.items()}
        dtypes = {at: dtype for at, (_, dtype) in tensors.items()}
        for relayout, expected in zip(found, made, strict=True):
            assert apply(relayout, given, dtypes, sizes) == expected
    return found


# -- what is read ----------------------------------------------------------------------------------


def sizes_for(name):
    """Some, and the smallest, that a kernel takes."""
    if not name.startswith("any size: "):
        return [{}]
    if "rim" in name:
        return [{"n": 50, "k": 100}, {"n": 48, "k": 100}, {"n": 1, "k": 64}]
    return [SIZES, {"n": 1, "k": 1, "m": 1}, {"n": 2, "k": 0, "m": 0}]


@pytest.mark.parametrize("name", {**OPERATORS, **LAYOUTS})
def test_moves_as_llvm_does(name):
    """One description for all sizes, so also for 1 and for none."""
    function, tensors = {**OPERATORS, **LAYOUTS}[name]
    for kernel in kernels_of(function, *tensors):
        for relayout in assert_described(kernel, *sizes_for(name)):
            assert all(piece.value is None for piece in relayout.pieces)


@pytest.mark.parametrize("name", COMPUTED)
def test_computes_as_llvm_does(name):
    function, tensors = COMPUTED[name]
    for kernel in kernels_of(function, *tensors):
        for relayout in assert_described(kernel, *sizes_for(name), is_sane=True):
            assert any(piece.value is not None for piece in relayout.pieces)


@examples(60)
@given(moves())
def test_any_moves(drawn):
    found = read_relayouts(drawn.kernel)
    assert not isinstance(found, str), found
    (relayout,) = found
    given = random_array(np.random.default_rng(0), drawn.shape, drawn.dtype)
    expected = given.reshape(-1)[drawn.sources].astype(numpy_dtype(drawn.made))
    made = apply(relayout, {0: given.tobytes()}, {0: drawn.dtype, 1: drawn.made})
    if any(piece.value is not None for piece in relayout.pieces):
        np.testing.assert_array_equal(np.frombuffer(made, expected.dtype), expected)
    else:
        assert made == expected.tobytes()


@st.composite
def any_kernels(draw):
    """Elements from any places: sums of indices, divided; bits of them, and choices by index."""
    shape = draw(st.lists(st.sampled_from((2, 3, 4, 6, 8, 9, 12, 20)), min_size=1, max_size=3))
    dtype = draw(st.sampled_from(("uint8", "int16", "uint32")))
    small = st.sampled_from((1, 1, 2, 3, 4, 8))

    def constant(*numbers):
        return tirx.const(draw(st.sampled_from(numbers)), dtype)

    def index(at):
        found = sum(
            (draw(small) * var for var in at if draw(st.booleans())), draw(st.integers(0, 5))
        )
        for _ in range(draw(st.integers(0, 2))):
            by = draw(st.sampled_from((2, 3, 4, 6, 8, 16)))
            found = found // by if draw(st.booleans()) else found % by
        return found

    def element(given, at):
        return given[sum(draw(small) * index(at) for _ in range(2)) % tirx.const(512, "int64")]

    def kernel(given):
        def value(*at):
            found = element(given, at)
            for _ in range(draw(st.integers(0, 3))):
                kind = draw(st.integers(0, 5))
                if kind == 0:
                    found = found >> constant(1, 3, 4)
                elif kind == 1:
                    found = found & constant(15, 0x66, 127)
                elif kind == 2:
                    found = found << constant(1, 4)
                elif kind == 3:
                    found = found ^ constant(1, 0x55)
                elif kind == 4:
                    other = element(given, at) << constant(4)
                    found = found & constant(15) | other & constant(0x70)
                else:
                    bound = draw(st.sampled_from((1, 2, 5)))
                    one = (
                        at[0] * draw(small) + at[-1] < bound
                        if draw(st.booleans())
                        else at[-1] >= bound
                    )
                    found = te.if_then_else(one, found, constant(0, 3))
            return found

        return te.compute(shape, value, "made")

    return te_kernel(kernel, ((512,), dtype)), dtype


@examples(40, fuzz=3000)
@given(any_kernels())
def test_what_is_read_is_right(drawn):
    """Most of these are no boxes of digits; what is described is described as it is."""
    kernel, dtype = drawn
    found = read_relayouts(kernel)
    if isinstance(found, str):
        return
    given = random_array(np.random.default_rng(0), (512,), dtype)
    (expected,) = run(built(kernel), kernel, [given])
    assert apply(found[0], {0: given.tobytes()}, {0: dtype, 1: dtype}) == expected
