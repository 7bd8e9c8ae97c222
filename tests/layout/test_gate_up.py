"""Gate and up in turn: there and back, against TensorRT-LLM's and DeepGEMM's definitions."""

import hashlib

import numpy as np
import pytest
from compiled import assert_bits, compiled, pattern, random_bits
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from relax_inplace.layout import LayoutError, gate_up

# Of interleave_linear_and_gate (TensorRT-LLM's fused_moe/quantization.py) on `pattern` of 256 x 6
# float16: SHA-256. With groups of 8, _interleave_l1_weights of DeepGEMM does the same.
TENSORRT_LLM = {64: "e36bf23427b06179", 8: "3c994d1150febf9e", 1: "5474cc5b55e9ba38"}


def there(group):
    return lambda w: gate_up.interleave(w, group=group)


def back(group):
    return lambda w: gate_up.deinterleave(w, group=group)


def test_a_small_case():
    rows = np.array([[10], [11], [12], [13], [20], [21], [22], [23]], "int8")
    out = compiled(there(2), (rows.shape, "int8"))(rows)
    assert list(out[:, 0]) == [10, 11, 20, 21, 12, 13, 22, 23]


@pytest.mark.parametrize("group", TENSORRT_LLM)
def test_tensorrt_llm_makes_the_same_bytes(group):
    weight = pattern((256, 6), "float16")
    out = compiled(there(group), (weight.shape, "float16"))(weight)
    assert hashlib.sha256(out.tobytes()).hexdigest()[:16] == TENSORRT_LLM[group]
    assert_bits(compiled(back(group), (out.shape, "float16"))(out), weight)


@pytest.fixture(scope="module", params=[(8, "uint8"), (3, "bfloat16")], ids=str)
def symbolic(request):
    group, dtype = request.param
    shape = ("e", f"n * {2 * group}", "k"), dtype
    return group, dtype, compiled(there(group), shape), compiled(back(group), shape)


@examples(15)
@given(experts=st.integers(1, 3), groups=st.integers(1, 4), width=st.integers(1, 5))
def test_symbolic_sizes(symbolic, experts, groups, width):
    group, dtype, interleave, deinterleave = symbolic
    shape = experts, 2 * group * groups, width
    weight = random_bits(np.random.default_rng(width), shape, dtype)
    sizes = {"e": experts, "n": groups, "k": width}
    out = interleave(weight, **sizes)
    gate, up = np.split(weight, 2, 1)
    parts = [
        half[:, at : at + group] for at in range(0, group * groups, group) for half in (gate, up)
    ]
    assert_bits(out, np.concatenate(parts, 1))
    assert_bits(deinterleave(out, **sizes), weight)


@pytest.mark.parametrize(
    "group, tensor, message",
    [
        (
            64,
            ((192, 4), "float16"),
            "layout.gate_up.interleave: 192 rows given, expected a multiple of 128; both halves "
            "have to be whole groups: pad each with rows of zeros",
        ),
        (
            0,
            ((128, 4), "float16"),
            "layout.gate_up.interleave: group=0 given, expected a number above 0; 64 is "
            "TensorRT-LLM's, 8 is DeepGEMM's",
        ),
        (
            8,
            ((128,), "float16"),
            'layout.gate_up.interleave: `weight` is R.Tensor((128,), dtype="float16"), expected a '
            "tensor (2 N, K); the type of a weight has to say its shape: annotate the parameter, or "
            "use R.match_cast",
        ),
    ],
)
def test_refusals(group, tensor, message):
    with pytest.raises(LayoutError) as raised:
        compiled(there(group), tensor)
    assert str(raised.value) == message
