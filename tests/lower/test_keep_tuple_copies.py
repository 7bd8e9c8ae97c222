"""KeepTupleCopies: what TVM takes for one tuple, while one of them is updated."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from pipelines import PIPELINES, load
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.analysis import functions_that_update
from relax_inplace.lower.keep_tuple_copies import keep_tuple_copies


@I.ir_module
class OldFields:
    """The old fields, kept in a tuple of their own."""

    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32")),
        x: R.Tensor((4,), "float32"),
    ):
        with R.dataflow():
            a = params[0]
            y = R.add(x, x)
            R.output(a, y)
        p0 = R.inplace_update_tuple(params, 0, y)
        with R.dataflow():
            b = p0[1]
            old = (a, b)
            R.output(old)
        return (old, p0)


@I.ir_module
class OldFieldsAfter:
    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32")),
        x: R.Tensor((4,), "float32"),
    ):
        a = params[0]
        y = R.add(x, x)
        p0 = R.inplace_update_tuple(params, 0, y)
        b = p0[1]
        nothing = R.null_value()
        unfilled = (nothing, b)
        old = R.inplace_update_tuple(
            unfilled, 0, a, ty_args=(R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32")),)
        )
        return (old, p0)


def test_before_and_after():
    after = keep_tuple_copies(OldFields, functions_that_update(OldFields))
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(relax.transform.Normalize()(after), OldFieldsAfter)


@I.ir_module
class Copy:
    """Its argument is not the tuple that it updates."""

    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32")),
        x: R.Tensor((4,), "float32"),
    ):
        a = params[0]
        t = (a, x)
        b = params[1]
        a_again = t[0]
        copy = (a_again, b)
        c0 = R.inplace_update_tuple(copy, 0, x)
        return c0


@I.ir_module
class OldFieldsOnly:
    """As OldFields, but lowering reads both fields from one name."""

    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32")),
        x: R.Tensor((4,), "float32"),
    ):
        a = params[0]
        p0 = R.inplace_update_tuple(params, 0, x)
        b = p0[1]
        old = (a, b)
        return old


@I.ir_module
class Other:
    """In another order, or made of something else: no copy."""

    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32")),
        x: R.Tensor((4,), "float32"),
    ):
        a = params[0]
        b = params[1]
        swapped = (b, a)
        mixed = (a, x)
        p0 = R.inplace_update_tuple(params, 0, x)
        return (swapped, mixed, p0)


def test_other_tuples_stay_as_they_are():
    assert keep_tuple_copies(Other, functions_that_update(Other)).same_as(Other)


def tensor(value):
    return tvm.runtime.tensor(np.full(4, value, "float32"))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_old_fields_stay_the_old_fields(pipeline):
    params = tvm_ffi.Array([tensor(0), tensor(1)])
    old, new = load(OldFields, pipeline)["main"](params, tensor(5))
    assert new.same_as(params) and not old.same_as(params)
    assert [int(t.numpy()[0]) for t in (*old, *new)] == [0, 1, 10, 1]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_old_fields_are_not_the_updated_tuple(pipeline):
    params = tvm_ffi.Array([tensor(0), tensor(1)])
    old = load(OldFieldsOnly, pipeline)["main"](params, tensor(5))
    assert not old.same_as(params)
    assert [int(t.numpy()[0]) for t in (*old, *params)] == [0, 1, 5, 1]


@pytest.mark.parametrize("pipeline", ["compile", "cpu default", "compiled mode"])
def test_an_updated_copy_is_not_the_callers_tuple(pipeline):
    params = tvm_ffi.Array([tensor(0), tensor(1)])
    copy = load(Copy, pipeline)["main"](params, tensor(5))
    assert not copy.same_as(params)
    assert [int(t.numpy()[0]) for t in (*copy, *params)] == [5, 1, 0, 1]
