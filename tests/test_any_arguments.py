"""Every function of the library with any arguments: an error, or a result, but no signal."""

import json
import re
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

PROGRAM = Path(__file__).with_name("any_arguments.py")
CALLS = 200  # of an example; `make fuzz` has 500 of them


@examples(2, fuzz=500)
@given(st.integers(0, 2**32 - 1))
def test_no_call_ends_the_process(seed):
    """In a process of its own; the last line says which call it was."""
    done = subprocess.run(
        [sys.executable, PROGRAM, str(seed), str(CALLS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["returned"] > CALLS / 10  # not all are refused at the door
    assert re.search(rf"seed {seed}, call \d+: ", done.stderr)
