"""Conversions on a device that is emulated: the order of streams, errors, memory, streaming."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_device import build, is_possible

CHECKS = Path(__file__).parent / "device_checks.py"
NAMES = [line.strip(" ,") for line in CHECKS.read_text().partition("\nCHECKS = [\n")[2].splitlines()]
NAMES = [name.partition(",")[0] for name in NAMES[: NAMES.index("]")]]

pytestmark = pytest.mark.skipif(
    not is_possible(), reason="a CUDA driver is here: it would be found in place of the emulated one"
)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    library = build(tmp_path_factory.mktemp("emulated"))
    command = [sys.executable, str(CHECKS), str(library)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("check", NAMES)
def test_emulated_device(process, check):
    wrong = dict(json.loads(line) for line in process.stdout.splitlines())
    assert check in wrong, process.stderr[-4000:]
    assert not wrong[check], wrong[check]


def test_a_process_with_a_device_that_has_failed_ends_well(process):
    assert process.returncode == 0, process.stderr[-4000:]
