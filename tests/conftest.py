"""The tests run against the installed package: a source tree has no shared library."""

import sys
from pathlib import Path

import profiles  # noqa: F401  each test module may ask for a part of what the profile has

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]
