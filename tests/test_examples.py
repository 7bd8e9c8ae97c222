"""The examples run, and say what they did."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from memory import needs_clear_refs
from transforms import passed
from tvm import relax

from relax_inplace.lift.lifted_users import without_stops

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import decoder  # noqa: E402


def run_example(*arguments):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "decoder.py"), "--small", *arguments],
        capture_output=True,
        text=True,
    )


@needs_clear_refs
@pytest.mark.parametrize("layout", decoder.LAYOUTS)
def test_decoder(layout):
    done = run_example("--layout", layout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fields bitwise equal: 37 of 37" in done.stdout
    assert "FAIL" not in done.stdout


def test_decoder_explains():
    done = run_example("--explain")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "decode, prefill: weights 37 -> 37, bytes 40,929,280 -> 40,929,280, steps 30"
    )


@needs_clear_refs
def test_decoder_notices_a_wrong_result():
    """The comparison itself: one bit of one field differs, and the exit code is 1."""
    program = f"""
import sys
sys.path.insert(0, {str(EXAMPLES)!r})
import decoder
runs = {{}}
def fake(small, layout, way):
    return {{"weights": 1, "largest": 1.0, "before": 10.0, "peak": 11.0, "seconds": 1.0,
            "fields": ["a", way], "logits": "l", "finite": True, "same_object": True}}
decoder.run_in_own_process = fake
sys.argv = ["decoder.py", "--small"]
sys.exit(decoder.main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert done.returncode == 1
    assert "FAIL fields bitwise equal: 1 of 2" in done.stdout


# -- the decoder's conversion -----------------------------------------------------------------


TINY = decoder.Config(hidden=128, intermediate=192, layers=2, heads=2, kv_heads=1, vocab=128)


def quantized(weight, axis):
    """4-bit groups of 32 along an axis, as MLC-LLM's q4f16 quantises: codes in words, scales."""
    groups = np.moveaxis(weight, axis, 0)
    groups = groups.reshape(-1, 32, *groups.shape[1:])
    scales = (np.abs(groups).max(axis=1) / np.float32(7)).astype("float16")
    codes = np.round(groups / scales[:, None].astype("float32")) + 7
    codes = np.clip(codes, 0, 14).astype("uint32").reshape(-1, 8, *groups.shape[2:])
    shifts = np.arange(8, dtype="uint32").reshape(1, 8, *[1] * (groups.ndim - 2)) * 4
    words = np.bitwise_or.reduce(codes << shifts, axis=1)
    return np.moveaxis(words, 0, axis), np.moveaxis(scales, 0, axis)


def tiny_weights(mod):
    """For each weight of the decoder its name, and what is stored; for each matrix its numbers."""
    report = decoder.relax_inplace.analysis.explain_lift(mod)
    generator = np.random.default_rng(0)
    fields = mod["decode"].params[-1].ty.fields
    stored, numbers = {}, {}
    for name, ty in zip(report.names, fields, strict=True):
        shape = [int(size) for size in ty.shape.values]
        if name.endswith("q_weight"):
            matrix = generator.standard_normal((shape[0], shape[1] * 8)).astype("float32")
            matrix *= 0.05
            numbers[name.removesuffix("_q_weight")] = matrix
            stored[name], stored[name.replace("q_weight", "q_scale")] = quantized(matrix, 1)
        elif not name.endswith("q_scale"):
            stored[name] = generator.standard_normal(shape).astype(str(ty.dtype))
    return report, [stored[name] for name in report.names], numbers


def test_converted_is_what_quantising_directly_gives():
    """q4f16_1 in place to q4f16_0, against the numbers quantised to q4f16_0, K x N."""
    mod, name = decoder.lifted(TINY, "kn", way="in-place")
    report, stored, numbers = tiny_weights(decoder.decoder(TINY, "kn"))
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    converted = dict(zip(report.new_names, vm[name](passed(stored)), strict=True))
    matrices = 0
    for matrix, weight in numbers.items():
        if matrix != "embedding":
            direct = quantized(weight.T, 0)
            for field, expected in zip(("q_weight", "q_scale"), direct, strict=True):
                result = converted[f"{matrix}_{field}"].numpy()
                assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
                assert result.tobytes() == expected.tobytes()
            matrices += 1
    assert matrices == 7 * TINY.layers + 1


def _runnable(function):
    """Nothing in TVM lowers stop_lift_params."""
    return without_stops(function) if isinstance(function, relax.Function) else function


@pytest.mark.parametrize("layout", decoder.LAYOUTS)
def test_logits_are_those_of_the_model_as_written(layout):
    before = decoder.decoder(TINY, layout)
    after, name = decoder.lifted(TINY, layout, way="in-place")
    _, stored, _ = tiny_weights(before)
    before = tvm.IRModule({g: _runnable(f) for g, f in before.functions_items()})
    old, new = (relax.VirtualMachine(tvm.compile(m, "llvm"), tvm.cpu()) for m in (before, after))
    converted = new[name](passed(stored))
    tokens = tvm.runtime.tensor(np.array([[3, 1, 4, 1]], "int32"))
    results = []
    for vm, weights in ((old, passed(stored)), (new, converted)):
        logits, cache = vm["prefill"](tokens, weights)
        token = tvm.runtime.tensor(np.array([[5]], "int32"))
        results.append(
            [x.numpy().tobytes() for x in (logits, cache, vm["decode"](token, cache, weights))]
        )
    assert results[0] == results[1]


def test_ctrl_c_ends_the_decoder_in_a_line():
    running = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "decoder.py"), "--small"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = running.stderr.readline(), running.stderr.readline()
    running.send_signal(signal.SIGINT)
    printed, said = running.communicate(timeout=60)
    assert first == ("1 of 3: TVM, out of place\n", "  lifting\n")
    assert (running.returncode, printed) == (130, "")
    assert said.splitlines()[-1] == "interrupted" and "Traceback" not in said
