"""How many examples a random property has: the same few in ``make test``, new ones in ``make fuzz``.

In ``make test`` the examples follow from the property's source and Hypothesis's version alone.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

FUZZ_MINUTES = float(os.environ.get("FUZZ_MINUTES") or 0)
ROUND = 20  # the examples of a property between two looks at the clock: tests/fuzz.py

# Hypothesis draws from the numbers and strings in whatever modules of ours are imported by then.
providers._get_local_constants = lambda: providers._local_constants

# Compiling takes a while: no deadline.
_EVERY = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "print_blob": True,
}
settings.register_profile("test", max_examples=100, derandomize=True, **_EVERY)
# Where CI is set, Hypothesis draws the same examples by default.
_ROUND_OR_ALL = ROUND if FUZZ_MINUTES else 5000
settings.register_profile("fuzz", max_examples=_ROUND_OR_ALL, derandomize=False, **_EVERY)
settings.load_profile("test")


def examples(test, fuzz=5000):
    """Decorate a property that is to have other numbers of examples than its profile's."""
    if settings.get_current_profile_name() == "fuzz":
        return settings(max_examples=min(test, ROUND) if FUZZ_MINUTES else fuzz)
    return settings(max_examples=test)
