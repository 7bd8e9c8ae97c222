"""Ownership: an interrupt at any line, weights converted twice, what is lost and what is named."""

import collections
import signal
import sys

import numpy as np
import pytest
import tvm
import tvm_ffi
from compiled_transforms import arrays, compiled, tensors, transposes, weights
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

import relax_inplace
from relax_inplace.runtime import (
    ConvertedError,
    Params,
    Transform,
    TransformError,
    TransformInterrupted,
    load_params,
    restore_params,
    save_params,
    transform_params,
)
from relax_inplace.runtime.convert.signals import HeldSignals

FOLDER = relax_inplace.__path__[0]
KINDS = ("list", "dict", "ffi.Array", "Params")
TRANSFORM = transposes(3)
LINES = 2600  # more than a conversion executes


def held_in(kind, transform, tensors):
    names = [one.name for one in transform.weights]
    if kind == "list":
        return tensors
    if kind == "dict":
        return dict(zip(names, tensors, strict=True))
    array = tvm_ffi.Array(tensors)
    return array if kind == "ffi.Array" else Params(array, names)


def values_of(kind, container):
    return list(container.values()) if kind in ("dict", "Params") else list(container)


class Interrupt:
    """Sends a signal to this process at one of the lines that the package executes."""

    def __init__(self, line, number=signal.SIGINT):
        self.line, self.number, self.lines = line, number, 0

    def __call__(self, frame, event, _argument):
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.line:
                sys.settrace(None)
                signal.raise_signal(self.number)
        return self

    def __enter__(self):
        self._tracing = sys.gettrace()  # coverage's
        sys.settrace(self)
        return self

    def __exit__(self, *_error):
        sys.settrace(self._tracing)


def check_interrupted(kind, line):
    """Interrupt a conversion; return whether that many lines were executed."""
    originals = arrays(TRANSFORM)
    container = held_in(kind, TRANSFORM, weights(TRANSFORM))
    handler = signal.getsignal(signal.SIGINT)
    error = None
    with Interrupt(line) as interrupt:
        try:
            transform_params(TRANSFORM, container, progress=False)
        except KeyboardInterrupt as raised:
            error = raised
    assert signal.getsignal(signal.SIGINT) == handler
    values = values_of(kind, container)
    assert len(values) == len(originals)
    new = [np.array_equal(v.numpy(), w.T) for v, w in zip(values, originals, strict=True)]
    old = [np.array_equal(v.numpy(), w) for v, w in zip(values, originals, strict=True)]
    assert all(np.logical_xor(new, old)), "a slot is neither its original nor the new weight"
    assert (error is not None) == (interrupt.lines >= line)
    if isinstance(error, TransformInterrupted):
        names = [one.name for one in TRANSFORM.weights]
        assert error.converted == [name for name, is_new in zip(names, new, strict=True) if is_new]
        assert error.original == [name for name, is_old in zip(names, old, strict=True) if is_old]
        assert not error.lost
    elif error is not None:
        assert all(old), "converted weights are not named"
    # What was converted is never converted again; what was not can be.
    if any(new):
        with pytest.raises(ConvertedError):
            transform_params(TRANSFORM, container, progress=False)
    else:
        transform_params(TRANSFORM, container, progress=False)
    return interrupt.lines >= line


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_at_a_line(kind):
    reached = [check_interrupted(kind, line) for line in range(1 + KINDS.index(kind), LINES, 23)]
    assert reached[0]
    assert not reached[-1], "LINES is too low"


@given(kind=st.sampled_from(KINDS), line=st.integers(1, LINES))
@examples(40)
def test_an_interrupt_at_any_line(kind, line):
    check_interrupted(kind, line)


class AlarmError(Exception):
    pass


def test_what_any_handler_raises_is_held():
    def raises(_number, _frame):
        raise AlarmError("time is over")

    before = signal.signal(signal.SIGUSR1, raises)
    try:
        seen = collections.Counter()
        for line in range(1, LINES, 60):
            container = held_in("list", TRANSFORM, weights(TRANSFORM))
            with Interrupt(line, signal.SIGUSR1) as interrupt:
                try:
                    transform_params(TRANSFORM, container, progress=False)
                except (AlarmError, TransformError) as error:
                    seen[type(error)] += 1
                    if isinstance(error, TransformError):
                        assert isinstance(error.__cause__, AlarmError)
                        assert len(error.converted + error.original) == len(container)
                else:
                    assert interrupt.lines < line
            assert len(container) == len(TRANSFORM.weights)
            assert signal.getsignal(signal.SIGUSR1) is raises
        assert seen[AlarmError]
        assert seen[TransformError]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_interrupt_before_the_run_changes_nothing(monkeypatch):
    module = sys.modules["relax_inplace.runtime.transform_params"]
    stock = module.find_held

    def find_held(*args):
        signal.raise_signal(signal.SIGINT)
        return stock(*args)

    monkeypatch.setattr(module, "find_held", find_held)
    container = weights(TRANSFORM)
    with pytest.raises(KeyboardInterrupt) as raised:
        transform_params(TRANSFORM, container, progress=False)
    assert type(raised.value) is KeyboardInterrupt
    assert all(map(np.array_equal, (one.numpy() for one in container), arrays(TRANSFORM)))


def test_an_interrupt_when_nothing_is_held_any_more_has_names(monkeypatch):
    """All is converted and given back; the handler is Python's again, and the call has not ended."""
    stock = HeldSignals.__exit__

    def interrupted(self, *error):
        stock(self, *error)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(HeldSignals, "__exit__", interrupted)
    container = weights(TRANSFORM)
    with pytest.raises(KeyboardInterrupt) as raised:
        transform_params(TRANSFORM, container, progress=False)
    assert isinstance(raised.value, TransformInterrupted)
    assert raised.value.converted == [one.name for one in TRANSFORM.weights]
    assert len(container) == len(TRANSFORM.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_converted_twice(kind):
    """Of square weights no shape tells."""
    transform = Transform.of(
        compiled(tensors((8, 8)), "w = params[0]\nt = R.permute_dims(w)\nreturn (t,)")
    )
    (original,) = arrays(transform)
    container = held_in(kind, transform, weights(transform))
    transform_params(transform, container, progress=False)
    with pytest.raises(ConvertedError, match="`inplace_transform_params` has converted"):
        transform_params(transform, container, progress=False)
    # Nor in another container.
    with pytest.raises(ConvertedError):
        transform_params(transform, values_of(kind, container), progress=False)
    np.testing.assert_array_equal(values_of(kind, container)[0].numpy(), original.T)


@pytest.mark.parametrize("format", ["tensor-cache", "safetensors"])
def test_converted_weights_from_files_are_not_converted_again(tmp_path, format):
    """Not in another container, either; and restored they are originals, those that stayed, too."""
    body = "w0 = params[0]\nw1 = params[1]\nt = R.permute_dims(w0)\nreturn (t, w1)"
    vm = compiled(tensors((8, 8), (8, 8)), body, restore=True)
    transform = Transform.of(vm, "inplace_transform_params")
    params = transform_params(transform, Params(weights(transform), ["a", "b"]), progress=False)
    save_params(params, tmp_path, format)
    loaded = load_params(tmp_path, "cpu", progress=False)
    with pytest.raises(ConvertedError, match="`inplace_transform_params` has converted"):
        transform_params(transform, list(loaded), progress=False)
    restore_params(vm, loaded, progress=False)
    transform_params(transform, list(loaded), progress=False)


def test_a_freed_tensor_leaves_no_mark():
    """Its address may be another one's."""
    for _ in range(50):
        transform_params(TRANSFORM, weights(TRANSFORM), progress=False)


def test_restored_weights_can_be_converted_again():
    body = "w = params[0]\nt = R.permute_dims(w)\nreturn (t,)"
    vm = compiled(tensors((8, 8)), body, restore=True)
    transform = Transform.of(vm, "inplace_transform_params")
    params = Params(weights(transform))
    for _ in range(2):
        transform_params(transform, params, progress=False)
        restore_params(vm, params, progress=False)
    np.testing.assert_array_equal(params[0].numpy(), arrays(transform)[0])


SPLIT = """
w0 = params[0]
w1 = params[1]
w2 = params[2]
s = R.split(w0, 2, axis=1)
s0 = s[0]
s1 = s[1]
c = R.concat((w1, w2), axis=1)
return (s0, s1, c)
"""


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stop_waits_until_each_weight_is_whole(stop):
    """A weight that becomes two, and two that become one."""
    transform = Transform.of(compiled(tensors((4, 8), (4, 9), (4, 9)), SPLIT))
    given = arrays(transform)
    params = Params(weights(transform), ["w0", "w1", "w2"])
    told = []

    def progress(one):
        told.append(one.name)
        if len(told) == stop:
            raise RuntimeError("stop")

    with pytest.raises(TransformError, match="stop") as raised:
        transform_params(transform, params, progress=progress)
    error = raised.value
    assert error.lost == []
    assert sorted(error.converted + error.original) == ["w0", "w1", "w2"]
    for name in error.original:
        np.testing.assert_array_equal(params[name].numpy(), given[int(name[1])])
    if "w0" in error.converted:
        halves = np.concatenate([params[0].numpy(), params[1].numpy()], axis=1)
        np.testing.assert_array_equal(halves, given[0])


@tvm_ffi.register_global_func("test.fails_at_the_second")
def _fails_at_the_second(source, target):
    _fails_at_the_second.calls += 1
    if _fails_at_the_second.calls == 2:
        raise ValueError("the kernel failed")
    np.from_dlpack(target)[...] = np.from_dlpack(source)


def test_a_kernel_that_fails_names_the_part_that_is_lost():
    """The first half is in the slot of the whole when the second one's kernel fails."""
    call = (
        'R.call_dps_packed("test.fails_at_the_second", ({},), out_ty=R.Tensor((4, 4), "float32"))'
    )
    body = f"""
w0 = params[0]
w1 = params[1]
s = R.split(w0, 2, axis=1)
s0 = s[0]
a = {call.format("s0")}
s1 = s[1]
b = {call.format("s1")}
return (a, b)
"""
    transform = Transform.of(compiled(tensors((4, 8), (4, 4)), body))
    params = Params(weights(transform), ["whole", "unused"])
    _fails_at_the_second.calls = 0
    with pytest.raises(TransformError, match="the kernel failed") as raised:
        transform_params(transform, params, progress=False)
    shapes = [None if one is None else tuple(one.shape) for one in params]
    print(shapes, raised.value)
    assert raised.value.lost == ["whole (of it `w0.1`)"]


def test_a_result_that_is_a_new_tuple_is_held():
    """Three weights become two; what asks to stop comes with the last update."""
    body = """
w0 = params[0]
w1 = params[1]
w2 = params[2]
c = R.concat((w1, w2), axis=1)
t = R.permute_dims(w0)
return (c, t)
"""
    transform = Transform.of(compiled(tensors((4, 8), (4, 9), (4, 9)), body))
    given = arrays(transform)
    params = Params(weights(transform))

    def progress(one):
        if one.done == one.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        transform_params(transform, params, progress=progress)
    assert isinstance(raised.value, TransformInterrupted)
    assert raised.value.lost == []
    assert len(raised.value.converted) == 3
    assert len(params) == 2
    assert params.provenance is not None
    np.testing.assert_array_equal(params[0].numpy(), np.concatenate(given[1:], axis=1))
    np.testing.assert_array_equal(params[1].numpy(), given[0].T)


def test_one_tuple_in_two_slots_is_refused():
    """Before anything is taken."""
    body = """
t0 = params[0]
t1 = params[1]
a = t0[0]
b = t1[0]
x = R.permute_dims(a)
y = R.permute_dims(b)
return ((x,), (y,))
"""
    pair = 'R.Tuple(R.Tensor((4, 8), "float32"))'
    transform = Transform.of(compiled(f"{pair}, {pair}", body))
    inner = tvm_ffi.Array([tvm.runtime.tensor(np.ones((4, 8), "float32"))])
    container = tvm_ffi.Array([inner, inner])
    with pytest.raises(ValueError, match="one tuple stands in two places"):
        transform_params(transform, container, progress=False)
    assert tuple(container[0][0].shape) == (4, 8)


def test_params_by_name():
    params = Params(
        [tvm.runtime.tensor(np.full(1, i, "float32")) for i in range(3)], ["a", "b", "c"]
    )
    assert "a" in params
    assert "d" not in params
    assert list(params.keys()) == ["a", "b", "c"]
    assert params.get("d") is None
    assert {name: int(one.numpy()[0]) for name, one in dict(params).items()} == {
        "a": 0,
        "b": 1,
        "c": 2,
    }
    assert [int(one.numpy()[0]) for one in params] == [0, 1, 2]
    with pytest.raises(KeyError):
        params["d"]


def test_params_are_found_in_constant_time():
    """By the instructions executed, not by the clock: 4 times as many names, as many a name."""
    zero = np.zeros(1, "float32")

    def events(count):
        params = Params(
            [tvm.runtime.tensor(zero) for _ in range(count)], [f"w{i}" for i in range(count)]
        )
        seen = [0]

        def trace(_frame, _event, _argument):
            seen[0] += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            params[f"w{count - 1}"]
        finally:
            sys.settrace(before)
        return seen[0]

    assert events(4000) == events(1000)
