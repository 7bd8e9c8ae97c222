"""The profiles: the same examples each time, or new ones until the time is over."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
DRAWS = """
from hypothesis import given, strategies as st
{imports}
@given(st.integers(), st.booleans())
def test_draws(number, chosen):
    with open("drawn", "a") as file:
        print(number, chosen, file=file)
    assert number < {limit}
"""


@pytest.fixture
def run(tmp_path):
    """What pytest prints of a property, and what that drew; in a process of its own."""

    def run(*options, limit="float('inf')", imports="", minutes="", returns=0):
        (tmp_path / "drawn").unlink(missing_ok=True)
        (tmp_path / "test_draws.py").write_text(DRAWS.format(limit=limit, imports=imports))
        (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
        (tmp_path / "constants.py").write_text("NUMBERS = [12345, 23456, 34567]\n" * 50)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(TESTS), "FUZZ_MINUTES": minutes},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == returns, done.stdout
        return done.stdout, (tmp_path / "drawn").read_text().splitlines()

    return run


def test_the_same_examples_whatever_else_is_imported(run):
    """Hypothesis would draw numbers that stand in modules of ours."""
    first = run()[1]
    assert len(first) == 100
    assert run(imports="import constants")[1] == first


def test_new_examples_until_the_time_is_over(run):
    printed, drawn = run("--hypothesis-profile=fuzz", "-n", "2", minutes="0.05")
    assert len(drawn) > 100
    assert len(set(drawn)) > len(drawn) // 2
    count = re.search(r"test_draws.py::test_draws: ([\d,]+) examples, 0 mismatches", printed)
    assert int(count[1].replace(",", "")) == len(drawn)
    assert run("--hypothesis-profile=fuzz", minutes="0.001")[1] != drawn[:20]


def test_a_failure_says_what_reproduces_it(run):
    options = ["--hypothesis-profile=fuzz", "--exitfirst"]
    printed, _ = run(*options, limit=1000, minutes="0.02", returns=1)
    assert "@reproduce_failure(" in printed
    assert "test_draws(\n" in printed
    assert "mismatches" not in printed
