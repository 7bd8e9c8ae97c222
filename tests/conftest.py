"""The tests run against the installed package: a source tree has no shared library."""

import os
import signal
import sys
from pathlib import Path

import profiles  # noqa: F401  before the test modules, which say how many examples they want
from fuzz import pytest_pyfunc_call, pytest_terminal_summary  # noqa: F401  hooks

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]

os.environ.pop("COLUMNS", None)  # pytest-xdist's workers have it; the command line obeys it

# In a shell's background job SIGINT is ignored, and Python leaves it so: the tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
