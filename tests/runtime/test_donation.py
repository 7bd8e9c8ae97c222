"""What the runtime says of a transform that puts new weights into the storage of spent ones."""

import json
import os
import signal

import numpy as np
import pytest
import tvm
import tvm_ffi

from relax_inplace.libinfo import load_library
from relax_inplace.runtime import (
    Params,
    Transform,
    TransformError,
    TransformInterrupted,
    transform_params,
)
from relax_inplace.runtime.transform import TransformStep

load_library()
update = tvm_ffi.get_global_func("vm.builtin.inplace_update_tuple")
donate = tvm_ffi.get_global_func("vm.builtin.donate_storage")
release = tvm_ffi.get_global_func("vm.builtin.release_storage")

COUNT = 4
SHAPE = (64, 64)
NAMES = [f"w{i}" for i in range(COUNT)]


def weights():
    return [tvm.runtime.tensor(np.full(SHAPE, i, "float32")) for i in range(COUNT)]


def one_behind(given):
    """Each new weight in the storage of the one before."""
    spent = None
    for i in range(COUNT):
        weight = given[i]
        new = donate(spent, weight, SHAPE, "float32")
        np.from_dlpack(new)[...] = np.from_dlpack(weight) + 10
        spent = weight
        update(given, i, new)
        del weight, new
    release(spent)
    return given


def in_place(fails_at=None, at_kernel=lambda: None):
    """Each new weight over its own; the slot is emptied before."""

    def transform(given):
        for i in range(COUNT):
            weight = given[i]
            update(given, i, None)
            new = donate(weight, weight, SHAPE, "float32")
            if i == fails_at:
                at_kernel()
            np.from_dlpack(new)[...] = np.from_dlpack(weight) + 10
            del weight
            update(given, i, new)
            del new
        return given

    return transform


def planned(function):
    """It with a plan, of a step for each weight."""
    steps = [TransformStep(f"t{i}", (str(i),), (str(i),), 0, 0) for i in range(COUNT)]
    return Transform(tvm_ffi.convert(function), steps=steps)


def is_converted(params):
    return [bool((one.numpy() == i + 10).all()) for i, one in enumerate(params)]


def test_new_weights_in_the_storage_of_spent_ones():
    given = weights()
    before = [one.data_ptr() for one in given]
    params = transform_params(tvm_ffi.convert(one_behind), given)
    assert is_converted(params) == [True] * COUNT
    assert [one.data_ptr() for one in params][1:] == before[:-1]
    report = params.report
    assert (report.reused, report.allocated) == (3, {"first of its size": 1})
    assert "storage reused: 3 of 4 new tensors; 1 allocated (first of its size)" in str(report)
    said = json.loads(report.to_json())
    assert (said["reused"], said["allocated"]) == (3, {"first of its size": 1})
    assert report.converted == report.weights_before == report.weights_after


def test_in_place():
    given = weights()
    before = [one.data_ptr() for one in given]
    seen = []
    params = transform_params(tvm_ffi.convert(in_place()), given, progress=seen.append)
    assert is_converted(params) == [True] * COUNT
    assert [one.data_ptr() for one in params] == before
    assert (params.report.reused, params.report.allocated) == (4, {})
    each = params.report.converted // COUNT
    assert [one.done for one in seen] == [each * (i + 1) for i in range(COUNT)]
    assert [one.name for one in seen] == [str(i) for i in range(COUNT)]
    assert seen[-1].total == params.report.converted


def test_a_weight_that_something_else_holds():
    given = Params(weights(), NAMES)
    kept = given[2]
    params = transform_params(tvm_ffi.convert(in_place()), given)
    assert is_converted(params) == [True] * COUNT
    assert (kept.numpy() == 2).all()
    assert (params.report.reused, params.report.allocated) == (
        3,
        {"something else refers to it": 1},
    )
    assert [one.name for one in params.report.held] == ["w2"]


def test_nothing_is_said_without_donation():
    params = transform_params(tvm_ffi.convert(lambda given: update(given, 0, given[1])), weights())
    assert (params.report.reused, params.report.allocated) == (0, {})
    assert "storage" not in str(params.report)


@pytest.mark.parametrize("step", range(COUNT))
def test_what_was_being_written_over_is_lost(step):
    def fail():
        raise ValueError("the kernel failed")

    given = Params(weights(), NAMES)
    with pytest.raises(TransformError) as caught:
        transform_params(planned(in_place(step, fail)), given)
    error = caught.value
    assert error.converted == NAMES[:step]
    assert error.lost == [NAMES[step]]
    assert error.original == NAMES[step + 1 :]
    assert (error.step, error.computes) == (step + 1, f"t{step}")
    for i, name in enumerate(NAMES):
        value = error.params[name]
        assert value is None if i == step else (value.numpy() == (i + 10 if i < step else i)).all()


@pytest.mark.parametrize("step", range(COUNT))
def test_ctrl_c_waits_for_the_weight_that_is_being_written_over(step):
    given = Params(weights(), NAMES)
    with pytest.raises(TransformInterrupted) as caught:
        transform_params(
            planned(in_place(step, lambda: os.kill(os.getpid(), signal.SIGINT))), given
        )
    assert caught.value.converted == NAMES[: step + 1]
    assert caught.value.lost == []


@pytest.mark.parametrize("at", range(COUNT))
def test_an_error_of_the_callers_waits_likewise(at):
    """Its progress is told once of each weight: when the new one is in place."""
    seen = []

    def progress(_one):
        seen.append(None)
        if len(seen) == at + 1:
            raise ValueError("no more")

    given = Params(weights(), NAMES)
    with pytest.raises(TransformError, match="no more") as caught:
        transform_params(planned(in_place()), given, progress=progress)
    assert caught.value.converted == NAMES[: at + 1]
    assert caught.value.lost == []
