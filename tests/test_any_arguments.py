"""Every function of the library with any arguments: an error, or a result, but no signal."""

import json
import re
import subprocess
import sys
import textwrap
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


def test_a_message_about_a_dtype_without_a_name():
    """What would throw while a message is put together would end the process."""
    program = """
        import any_arguments, tvm_ffi
        check = tvm_ffi.get_global_func("vm.builtin.check_weight")
        try:
            check("f", 0, "w", any_arguments.of_bytes(255, 8, 0), "float32", tvm_ffi.Shape([2]))
        except ValueError as error:
            print(error)
    """
    printed = subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=PROGRAM.parent, text=True
    )
    assert "one of (2,), (code 255, bits 8, lanes 0)" in printed
