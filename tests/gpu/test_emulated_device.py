"""Conversions on a device that is emulated: the order of streams, errors, memory, streaming."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_device import build, is_possible

SCRIPT = Path(__file__).parent / "device_checks.py"
CHECKS = [
    "reads_on_another_stream",
    "without_the_wait",
    "one_wait",
    "reference_that_is_dropped_meanwhile",
    "waits_before_it_frees",
    "done_when_it_returns",
    "verified_and_saved",
    "out_of_memory",
    "peak_by_the_driver",
    "streamed",
    "loaded",
    "last_kernel_fails",
    "streamed_kernel_that_fails",
    "kernel_that_fails",  # the last one: the process ends with a device that has failed
]

pytestmark = pytest.mark.skipif(
    not is_possible(),
    reason="a CUDA driver is here: it would be found in place of the emulated one",
)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    library = build(tmp_path_factory.mktemp("emulated"))
    command = [sys.executable, str(SCRIPT), str(library), *CHECKS]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("check", CHECKS)
def test_emulated_device(process, check):
    wrong = dict(json.loads(line) for line in process.stdout.splitlines())
    assert check in wrong, process.stderr[-4000:]
    assert not wrong[check], wrong[check]


def test_a_process_with_a_device_that_has_failed_ends_well(process):
    assert process.returncode == 0, process.stderr[-4000:]
