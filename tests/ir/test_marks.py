"""Marks (`R.lift_param`) are taken out as if they had never been there."""

import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.ir.marks import has_marks, without_marks_in

# A module, and the same without marks.
PAIRS = {}


@I.ir_module
class Plain:
    @R.function
    def main(x: R.Tensor((1, 8), "float32"), w: R.Tensor((4, 8), "float32")):
        t = R.permute_dims(w)
        m = R.lift_param(t)
        again = R.lift_param(m)
        pair = (again, x)
        y = R.matmul(x, pair[0])
        return (y, m, again)


@I.ir_module
class PlainWithout:
    @R.function
    def main(x: R.Tensor((1, 8), "float32"), w: R.Tensor((4, 8), "float32")):
        t = R.permute_dims(w)
        pair = (t, x)
        y = R.matmul(x, pair[0])
        return (y, t, t)


PAIRS["plain"] = (Plain, PlainWithout)


@I.ir_module
class OfDataflow:
    """What a block hands out keeps the name that is seen outside."""

    @R.function
    def main(x: R.Tensor((1, 8), "float32"), w: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            a = R.lift_param(w)
            t = R.permute_dims(a)
            inside = R.lift_param(t)
            out = R.lift_param(inside)
            other = R.lift_param(t)
            given = R.lift_param(x)
            y = R.matmul(given, inside)
            R.output(out, other, given, y)
        z = R.add(R.matmul(given, out), y)
        return (z, other)


@I.ir_module
class OfDataflowWithout:
    @R.function
    def main(x: R.Tensor((1, 8), "float32"), w: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            out = R.permute_dims(w)
            y = R.matmul(x, out)
            R.output(out, y)
        z = R.add(R.matmul(x, out), y)
        return (z, out)


PAIRS["handed out of a dataflow block"] = (OfDataflow, OfDataflowWithout)


@I.ir_module
class Nested:
    @R.function
    def main(c: R.Tensor((), "bool"), w: R.Tensor(("n", 8), "float32")):
        n = T.int64()

        @R.function
        def local(v: R.Tensor((8, 8), "float32")) -> R.Tensor((8, 8), "float32"):
            m = R.lift_param(v)
            return m

        m = R.lift_param(w)
        cast = R.match_cast(m, R.Tensor((8, 8), "float32"))
        if c:
            t = R.permute_dims(cast)
            y = R.lift_param(t)
        else:
            k = R.lift_param(R.const(2.0))
            y = R.multiply(local(cast), k)
        return y


@I.ir_module
class NestedWithout:
    @R.function
    def main(c: R.Tensor((), "bool"), w: R.Tensor(("n", 8), "float32")):
        n = T.int64()

        @R.function
        def local(v: R.Tensor((8, 8), "float32")) -> R.Tensor((8, 8), "float32"):
            return v

        cast = R.match_cast(w, R.Tensor((8, 8), "float32"))
        if c:  # noqa: SIM108
            y = R.permute_dims(cast)
        else:
            y = R.multiply(local(cast), R.const(2.0))
        return y


PAIRS["in branches and local functions"] = (Nested, NestedWithout)


@pytest.mark.parametrize("name", PAIRS)
def test_as_if_they_had_never_been_there(name):
    before, expected = PAIRS[name]
    after = without_marks_in(before)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, expected)
    assert not has_marks(after["main"])
    assert has_marks(before["main"])  # it is another object


def test_none_is_the_same_object():
    assert without_marks_in(PlainWithout).same_as(PlainWithout)


def test_a_name_that_tvm_made_up_gives_way():
    """As it would have been written without the mark."""

    @I.ir_module
    class Named:
        @R.function
        def main(w: R.Tensor((4, 8), "float32"), c: R.Tensor((), "bool")):
            with R.dataflow():
                a = R.lift_param(R.permute_dims(w))
                b = R.lift_param(R.negative(a))
                R.output(b)
            d = R.lift_param(R.negative(b))
            if c:  # noqa: SIM108
                e = R.lift_param(R.negative(d))
            else:
                e = R.lift_param(d)
            return e

    names = [
        binding.var.name
        for block in without_marks_in(Named)["main"].body.blocks
        for binding in block.bindings
    ]
    assert names == ["a", "b", "d", "e"]
    relax.analysis.well_formed(without_marks_in(Named))
