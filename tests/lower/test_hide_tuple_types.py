"""hide_tuple_types: before and after, and that what is read and checked stays the same."""

import numpy as np
import pytest
import tvm
from pipelines import LLVM
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.analysis import functions_that_update
from relax_inplace.lower.hide_tuple_types import hide_tuple_types


@I.ir_module
class Statements:
    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((2,), "float32"), R.Tensor((2,), "float32"))):
        with R.dataflow():
            w0 = params[0]
            w = R.add(w0, w0)
            R.output(w)
        R.inplace_update_tuple(params, 0, w, ty_args=(R.Tuple,))
        with R.dataflow():
            w1 = params[1]
            v = R.multiply(w1, w1)
            R.output(v)
        R.inplace_update_tuple(params, 1, v, ty_args=(R.Tuple,))
        return (w, v)


@I.ir_module
class StatementsAfter:
    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((2,), "float32"), R.Tensor((2,), "float32"))):
        with R.dataflow():
            w0 = params[0]
            w = R.add(w0, w0)
            R.output(w)
        untyped = R.match_cast(params, R.Any)
        R.inplace_update_tuple(untyped, 0, w, ty_args=(R.Tuple,))
        with R.dataflow():
            w1 = R.call_pure_packed(
                "vm.builtin.tuple_getitem", untyped, 1, ty_args=(R.Tensor((2,), "float32"),)
            )
            v = R.multiply(w1, w1)
            R.output(v)
        R.inplace_update_tuple(untyped, 1, v, ty_args=(R.Tuple,))
        return (w, v)


def hidden(mod):
    return hide_tuple_types(mod, functions_that_update(mod))


def test_before_and_after():
    after = hidden(Statements)
    tvm.ir.assert_structural_equal(after, StatementsAfter)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(hidden(after), after)


def test_what_is_returned_whole_keeps_its_type():
    @I.ir_module
    class Chain:
        @R.function(pure=False)
        def main(params: R.Tuple(R.Tensor((2,), "float32"), R.Tensor((2,), "float32"))):
            w = R.zeros((2,), "float32")
            p0 = R.inplace_update_tuple(params, 0, w)
            return p0

    tvm.ir.assert_structural_equal(hidden(Chain), Chain)


def test_each_branch_has_its_own_name():
    @I.ir_module
    class Branches:
        @R.function(pure=False)
        def main(
            c: R.Tensor((), "bool"),
            params: R.Tuple(R.Tensor((2,), "float32"), R.Tensor((2,), "float32")),
        ):
            w = R.zeros((2,), "float32")
            if c:
                R.inplace_update_tuple(params, 0, w, ty_args=(R.Tuple,))
                x = params[1]
            else:
                x = params[0]
            return x

    after = hidden(Branches)
    relax.analysis.well_formed(after)
    branch = after["main"].body.blocks[0].bindings[1].value
    assert "untyped" in str(branch.true_branch) and "untyped" not in str(branch.false_branch)


def test_every_field_is_checked_before_the_first_changes():
    vm = relax.VirtualMachine(tvm.compile(Statements, LLVM), tvm.cpu())
    first = tvm.runtime.tensor(np.array([1, 2], "float32"))
    params = tvm.runtime.convert([first, tvm.runtime.tensor(np.array([3], "float32"))])
    with pytest.raises(RuntimeError, match="shape"):
        vm["main"](params)
    assert params[0].same_as(first)
    params = tvm.runtime.convert([first, tvm.runtime.tensor(np.array([3, 4], "float32"))])
    w, v = vm["main"](params)
    np.testing.assert_array_equal(w.numpy(), [2, 4])
    np.testing.assert_array_equal(v.numpy(), [9, 16])
    np.testing.assert_array_equal(params[0].numpy(), w.numpy())
    np.testing.assert_array_equal(params[1].numpy(), v.numpy())
