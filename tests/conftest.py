"""The tests run against the installed package: a source tree has no shared library."""

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]

# `make fuzz` runs the same properties for longer. Compiling takes a while: no deadline.
_SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("test", max_examples=100, **_SLOW)
settings.register_profile("fuzz", max_examples=5000, **_SLOW)
settings.load_profile("test")
