"""The kernels that operators become: one for equal ones, another one where anything differs."""

import pytest
import tvm_ffi
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.ir.kernels import Kernels


@I.ir_module
class Operators:
    @R.function
    def main(
        x: R.Tensor((4, 4), "float32"),
        y: R.Tensor((4, 4), "float32"),
        z: R.Tensor((4, 4), "float16"),
        b: R.Tensor((2,), "int64"),
    ):
        turned = R.permute_dims(x)
        same = R.permute_dims(y)
        attributes = R.permute_dims(x, axes=[0, 1])
        dtype = R.permute_dims(z)
        sum = R.add(x, y)
        swapped = R.add(y, x)
        operator = R.multiply(x, y)
        twice = R.add(x, x)
        pair = R.concat((x, y))
        one_twice = R.concat((x, x))
        three = R.concat((x, y, x))
        constant = R.add(x, R.const(2.0, "float32"))
        other = R.add(x, R.const(3.0, "float32"))
        several_kernels = R.dynamic_strided_slice(x, b, b, b)
        no_kernel = R.sort(x)
        return (x,)


VALUES = {
    binding.var.name: binding.value
    for block in Operators["main"].body.blocks
    for binding in block.bindings
}


@pytest.mark.parametrize(("name", "other"), [("turned", "same"), ("sum", "swapped")])
def test_equal_operators(name, other):
    kernels = Kernels(Operators)
    assert kernels.of(VALUES[name]) is kernels.of(VALUES[other])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("turned", "attributes"),
        ("turned", "dtype"),
        ("sum", "operator"),
        ("sum", "twice"),
        ("pair", "one_twice"),
        ("pair", "three"),
        ("constant", "other"),
    ],
)
def test_other_operators(name, other):
    kernels = Kernels(Operators)
    one, two = kernels.of(VALUES[name]), kernels.of(VALUES[other])
    is_same = tvm_ffi.structural_equal(one.kernel, two.kernel)
    assert not (is_same and one.operands == two.operands)


@pytest.mark.parametrize("name", ["several_kernels", "no_kernel"])
def test_no_one_kernel(name):
    assert Kernels(Operators).of(VALUES[name]) is None


def test_operands_are_numbered_as_the_call_has_its_variables():
    """A constant is part of the kernel, and what is given twice has one number."""
    kernels = Kernels(Operators)
    found = {name: kernels.of(VALUES[name]).operands for name in ("swapped", "twice", "constant")}
    assert found == {"swapped": [0, 1], "twice": [0, 0], "constant": [0]}
    assert [var.name for var in relax.analysis.free_vars(VALUES["swapped"])] == ["y", "x"]
