"""Memory over time: what is asked for, and what a thread reads meanwhile."""

import os
import signal
import time

from relax_inplace.runtime.memory_sampler import MemorySampler


def test_samples_are_in_the_order_of_their_times():
    with MemorySampler() as memory:
        before = memory.before
        for _ in range(20):
            memory.sample()
            time.sleep(0.005)
    times = [one.seconds for one in memory.samples]
    assert len(times) > 25
    assert times == sorted(times)
    assert memory.samples[0] == before


def test_a_child_of_a_fork_goes_on():
    """The thread that samples does not run there."""
    with MemorySampler() as memory:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                memory.sample()
                memory.__exit__()
            finally:
                os._exit(0 if len(memory.samples) > 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
