"""Weights one by one: one is read ahead, and only one."""

import gc
import threading

import pytest
import tvm
from weight_files import BYTES, content_of, references, write_tensor_cache

from relax_inplace.runtime import CheckpointError
from relax_inplace.runtime.checkpoint import CheckpointReader, Prefetcher, open_checkpoint

NAMES = ["codes", "bias", "layers.0.weight"]


class Watched:
    """A reader that says what it has been asked for, and can be held up."""

    def __init__(self, fails=()):
        self.asked = []
        self.fails = fails
        self.arrived = threading.Condition()
        self.may_go = threading.Event()
        self.may_go.set()

    def read(self, name, *, later=False):
        with self.arrived:
            self.asked.append(name)
            self.arrived.notify_all()
        self.may_go.wait(60)
        if name in self.fails:
            raise CheckpointError.of(where=name, given="x", expected="y", remedy="z")
        return tvm.runtime.empty((1,), "int8")

    def wait_for(self, count):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.asked) >= count, 60)


def threads():
    return [one for one in threading.enumerate() if one.name == "relax_inplace prefetches"]


@pytest.mark.parametrize("asked", [[0, 1, 2], [2, 1, 0], [1, 1, 0, 2, 0]], ids=str)
@pytest.mark.parametrize("order", [None, [0, 1, 2], [2, 0, 1], [], [1]], ids=str)
def test_any_order(asked, order, tmp_path):
    source = open_checkpoint(write_tensor_cache(tmp_path))
    expected = {"codes": BYTES[:3], "bias": b"\0\0\x80\x3f\0\0\0\xc0", NAMES[2]: BYTES[7:]}
    with (
        CheckpointReader(source, tvm.cpu()) as reader,
        Prefetcher(reader, NAMES, order) as get_weight,
    ):
        for index in asked:
            assert content_of(get_weight(index)) == expected[NAMES[index]]
    assert not threads()


def test_one_ahead():
    reader = Watched()
    with Prefetcher(reader, ["a", "b", "c", "d"]) as get_weight:
        reader.wait_for(1)
        assert reader.asked == ["a"]  # before anybody asks; and not the next one
        get_weight(0)
        reader.wait_for(2)
        get_weight(1)
        reader.wait_for(3)
        assert reader.asked == ["a", "b", "c"]


def test_out_of_order():
    """The one ahead stays; the one that is asked for is not read ahead again."""
    reader = Watched()
    with Prefetcher(reader, ["a", "b", "c", "d"]) as get_weight:
        reader.wait_for(1)
        get_weight(1)
        assert reader.asked == ["a", "b"]
        get_weight(0)
        reader.wait_for(3)
        get_weight(2)
        get_weight(3)
        assert reader.asked == ["a", "b", "c", "d"]  # each once


def test_what_is_handed_out_has_one_owner():
    reader = Watched()
    gc.disable()
    try:
        with Prefetcher(reader, [str(index) for index in range(200)]) as get_weight:
            for index in range(200):
                tensor = get_weight(index)
                assert references(tensor) == 1
    finally:
        gc.enable()


def test_an_error_is_raised_where_the_weight_is_asked_for():
    reader = Watched(fails=["b"])
    with Prefetcher(reader, ["a", "b", "c"]) as get_weight:
        get_weight(0)
        reader.wait_for(2)
        with pytest.raises(CheckpointError, match="b: x, expected y; z"):
            get_weight(1)
        get_weight(2)  # the next one can be read
    assert not threads()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_thread_ends_after_an_error(error):
    with pytest.raises(error), Prefetcher(Watched(), ["a", "b"]) as get_weight:
        get_weight(0)
        raise error
    assert not threads()


def test_an_interrupt_while_it_waits(monkeypatch):
    """Ctrl-C comes while the weight is read, and again while the thread is waited for."""
    reader = Watched()
    reader.may_go.clear()
    ahead = Prefetcher(reader, ["a", "b"])
    wait_for, join = threading.Condition.wait_for, threading.Thread.join
    interrupts = [KeyboardInterrupt(), KeyboardInterrupt()]

    def interrupted(call):
        def once(*args):
            if threading.current_thread() is threading.main_thread() and interrupts:
                reader.may_go.set()
                raise interrupts.pop()
            return call(*args)

        return once

    reader.wait_for(1)
    monkeypatch.setattr(threading.Condition, "wait_for", interrupted(wait_for))
    monkeypatch.setattr(threading.Thread, "join", interrupted(join))
    with pytest.raises(KeyboardInterrupt), ahead as get_weight:
        get_weight(0)
    assert not interrupts
    assert not threads()


def test_closed():
    ahead = Prefetcher(Watched(), ["a"])
    ahead.close()
    ahead.close()
    with pytest.raises(RuntimeError, match="this Prefetcher is closed"):
        ahead(0)
    assert not threads()


def test_nothing_is_read_twice_at_once():
    """The thread and a caller share a reader; a file is open once."""
    reader = Watched()
    reader.may_go.clear()
    ahead = Prefetcher(reader, ["a", "b"])
    reader.wait_for(1)
    reader.may_go.set()
    assert ahead(0) is not None
    ahead.close()
    assert not threads()
