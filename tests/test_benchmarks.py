"""The benchmark of conversions runs, at a tiny size, and its ways do the same to every bit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from layout import references
from relayout.described import apply

from relax_inplace.layout import marlin

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from operations import OPERATIONS  # noqa: E402
from ways import makes_views  # noqa: E402
from workloads import WORKLOADS, Workload  # noqa: E402


def _marlin(words):
    """As the layout declares it, whose bytes are vLLM's (layout/test_marlin.py)."""
    declared = marlin.LAYOUTS["GPTQ, 4 bits"]
    relayout = declared.relayout(declared.extents(words.shape, 32))
    made = np.frombuffer(apply(relayout, {0: words.tobytes()}), "int32")
    return made.reshape(words.shape[0] // 2, words.shape[1] * 2)


def test_a_split_is_a_view():
    """Of numpy and torch: there is nothing to measure."""
    views = {
        (way, name)
        for way in ("TVM out of place", "numpy", "torch", "jax", "in place")
        for name in WORKLOADS
        if makes_views(way, Workload.of(name, 0))
    }
    assert views == {("numpy", "split QKV"), ("torch", "split QKV")}
    weight = np.zeros((6, 4))
    assert all(np.shares_memory(weight, x) for x in OPERATIONS["split"].arrays(np, weight))


def test_conversion_time(tmp_path):
    ways = ["warm copy", "TVM out of place", "numpy", "in place"]
    options = ["--mb", "1", "--shrink", "8", "--rounds", "1", "--only", "GGML Q4_0 8x8"]
    files = ["--json", tmp_path / "rows.json", "--plot", tmp_path / "picture.svg"]
    command = [BENCHMARKS / "conversion_time.py", *options, *files, "--ways", *ways]
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=BENCHMARKS.parent
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()
    assert [line[24:44].rstrip() for line in table[1:5]] == ways
    assert [line.split()[-1] for line in table[1:5]] == ["-", "equal", "equal", "equal"]
    rows = {row["way"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert rows["warm copy"]["ratio"] == 1
    assert rows["TVM out of place"]["allocations"] == 7  # a tensor for each weight
    assert rows["in place"]["allocations"] < 7
    assert all(len(row["rounds"]) == 1 and row["seconds"] > 0 for row in rows.values())
    assert "<svg" in (tmp_path / "picture.svg").read_text()


@pytest.mark.parametrize(
    "operation, shape, dtype, expected",
    [
        ("interleave", (16, 36), "uint8", lambda w: references.interleaved(w, "q4_0", 8, 8, 18)),
        ("mixed_gemm", (128, 64), "int8", lambda w: references.mixed_gemm(w, 80, 4)),
        ("mixed_gemm_8", (128, 64), "int8", lambda w: references.mixed_gemm(w, 80, 8)),
        ("tiles", (32, 96), "float16", lambda w: references.tiles(w, 16, 32)),
        (
            "awq",
            (16, 3),
            "int32",
            lambda w: references.packed(references.awq_matrix(w).T, 4, "uint32"),
        ),
        ("marlin", (4, 128), "int32", _marlin),
        ("transpose", (3, 4, 5), "uint32", lambda w: np.stack([matrix.T for matrix in w])),
    ],
)
def test_what_numpy_does(operation, shape, dtype, expected):
    """The peers are measured at what the layouts define."""
    generator = np.random.default_rng(0)
    weight = generator.integers(0, 256, (*shape, np.dtype(dtype).itemsize), "uint8").view(dtype)
    weight = weight.reshape(shape)
    made = OPERATIONS[operation].arrays(np, weight)
    assert made.dtype == ("uint32" if operation == "awq" else weight.dtype)
    np.testing.assert_array_equal(made, expected(weight))


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads(name):
    layer, workload = Workload.of(name, 0), Workload.of(name, 2e9)
    assert all(step.operation in OPERATIONS for step in layer.steps)
    count = len(workload.steps) // len(layer.steps)
    assert workload.steps == layer.steps * count
    if name == "32 equal layers":
        assert len(set(workload.steps)) == 1 and len(workload.steps) == 32
    else:
        assert abs(workload.nbytes - 2e9) <= layer.nbytes / 2
