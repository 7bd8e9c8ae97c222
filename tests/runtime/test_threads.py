"""Two threads and one set of weights: `make sanitize` runs these under ThreadSanitizer."""

import threading

import pytest
import tvm_ffi
from compiled_transforms import transposes, weights

from relax_inplace.runtime import ConvertedError, Params, transform_params

HOLDERS = {"Params": Params, "Array": tvm_ffi.Array}


@pytest.mark.parametrize("kind", ["Params", "Array"])
def test_a_second_thread_gets_an_error_and_a_reader_no_freed_tensor(kind):
    transform = transposes()
    holder = HOLDERS[kind](weights(transform))
    inside, go_on = threading.Event(), threading.Event()

    def wait(_progress):
        inside.set()
        assert go_on.wait(60)

    converting = threading.Thread(
        target=lambda: transform_params(transform.function, holder, progress=wait), name="first"
    )
    converting.start()
    assert inside.wait(60)
    try:
        with pytest.raises(RuntimeError, match=r"in thread `first`"):
            transform_params(transform.function, holder)
        if kind == "Params":
            with pytest.raises(RuntimeError, match=r"being converted by thread `first`"):
                holder[0]
        else:
            assert list(holder) == [None, None, None]
    finally:
        go_on.set()
        converting.join()
    assert [one.shape for one in holder] == [(8, 4), (9, 4), (10, 4)]


def test_a_virtual_machine_runs_one_conversion_at_a_time():
    transform = transposes()
    inside, go_on = threading.Event(), threading.Event()

    def wait(_progress):
        inside.set()
        assert go_on.wait(60)

    first = weights(transform)
    converting = threading.Thread(
        target=lambda: transform_params(transform, first, progress=wait), name="first"
    )
    converting.start()
    assert inside.wait(60)
    try:
        with pytest.raises(RuntimeError, match=r"the virtual machine is being used .*`first`"):
            transform_params(transform, weights(transform))
    finally:
        go_on.set()
        converting.join()


def test_readers_and_two_converters():
    """Of two that convert the same weights one does; a reader sees old ones, new ones, or an error."""
    transform = transposes()
    old, new = [(4, 8), (4, 9), (4, 10)], [(8, 4), (9, 4), (10, 4)]
    for _ in range(30):
        params = Params(weights(transform))
        outcomes, shapes, done = [], set(), threading.Event()
        start = threading.Barrier(4)

        def convert(params=params, outcomes=outcomes, start=start):
            start.wait()
            try:
                transform_params(transform.function, params)
                outcomes.append("converted")
            except (ConvertedError, RuntimeError) as error:
                outcomes.append(type(error).__name__)

        def read(params=params, shapes=shapes, start=start, done=done):
            start.wait()
            while not done.is_set():
                try:
                    shapes.add(tuple(one.shape for one in params))
                except RuntimeError as error:
                    assert "being converted by thread" in str(error)

        readers = [threading.Thread(target=read) for _ in range(2)]
        converters = [threading.Thread(target=convert) for _ in range(2)]
        for thread in readers + converters:
            thread.start()
        for thread in converters:
            thread.join()
        done.set()
        for thread in readers:
            thread.join()
        assert outcomes.count("converted") == 1
        assert shapes <= {tuple(old), tuple(new)}
        assert [one.shape for one in params] == new
