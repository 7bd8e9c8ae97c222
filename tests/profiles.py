"""How many examples a random property has: 100, and 5,000 in ``make fuzz``."""

from hypothesis import HealthCheck, settings

# Compiling takes a while: no deadline.
_SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("test", max_examples=100, **_SLOW)
settings.register_profile("fuzz", max_examples=5000, **_SLOW)
settings.load_profile("test")


def examples(percent):
    """Decorate a property that is to have this part of its profile's examples.

    Hypothesis's own ``settings(max_examples=...)`` would overrule the profile.
    """
    return settings(max_examples=settings().max_examples * percent // 100)
