"""``make fuzz``: random examples of each property, all its number or until its time is over.

``FUZZ_MINUTES`` are shared evenly: by the functions, and a function's share by its parameters. A
property runs in rounds, each with new examples. What ran is counted, and printed at the end.
"""

import collections
import functools
import time

import pytest
from hypothesis import is_hypothesis_test, settings
from profiles import FUZZ_MINUTES


def _seconds(item):
    """An item's share; each of xdist's workers has all the minutes."""
    workers = getattr(item.config, "workerinput", {}).get("workercount", 1)
    items = collections.Counter(other.function for other in item.session.items)
    return FUZZ_MINUTES * 60 * workers / len(items) / items[item.function]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run rounds of a property."""
    run = pyfuncitem.obj
    if settings.get_current_profile_name() != "fuzz" or not is_hypothesis_test(run):
        return None
    property_, ran = run.hypothesis.inner_test, 0

    @functools.wraps(property_)
    def counted(*args, **kwargs):
        nonlocal ran
        property_(*args, **kwargs)  # raises where the example is none
        ran += 1

    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    end = time.monotonic() + _seconds(pyfuncitem)
    run.hypothesis.inner_test = counted
    try:
        run(**arguments)
        while time.monotonic() < end:
            run(**arguments)
    finally:
        run.hypothesis.inner_test = property_
    pyfuncitem.user_properties.append(("examples", ran))
    return True


def pytest_terminal_summary(terminalreporter):
    """A line for each property that held."""
    for report in terminalreporter.stats.get("passed", []):
        for name, count in report.user_properties:
            if name == "examples":
                terminalreporter.write_line(f"{report.nodeid}: {count:,} examples, 0 mismatches")
