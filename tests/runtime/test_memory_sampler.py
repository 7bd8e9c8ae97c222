"""Memory over time, sampled by several threads at once."""

import threading

from relax_inplace.runtime.memory_sampler import MemorySampler


def test_samples_are_in_the_order_of_their_times():
    with MemorySampler() as memory:
        threads = [
            threading.Thread(target=lambda: [memory.sample() for _ in range(300)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    times = [one.seconds for one in memory.samples]
    assert len(times) > 1200
    assert times == sorted(times)
