"""The tests run against the installed package: a source tree has no shared library."""

import sys
from pathlib import Path

import fuzz
import profiles  # noqa: F401  before the test modules, which say how many examples they want
from hypothesis import settings

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]


def pytest_configure(config):
    if settings.get_current_profile_name() == "fuzz":
        config.pluginmanager.register(fuzz)
