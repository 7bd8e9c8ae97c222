"""LowerUpdateChain: before and after."""

import pytest
import tvm
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.analysis import OwnershipError
from relax_inplace.transform import LowerUpdateChain


@I.ir_module
class Chain:
    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32"))):
        w0 = R.permute_dims(params[0])
        p0 = R.inplace_update_tuple(params, 0, w0)
        w1 = R.permute_dims(p0[1])
        p1 = R.inplace_update_tuple(p0, 1, w1)
        return p1


@I.ir_module
class ChainAfter:
    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32"))):
        w0 = R.permute_dims(params[0])
        R.inplace_update_tuple(params, 0, w0, ty_args=(R.Tuple,))
        w1 = R.permute_dims(params[1])
        p1 = R.inplace_update_tuple(
            params,
            1,
            w1,
            ty_args=(R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((8, 6), "float32")),),
        )
        return p1


@I.ir_module
class ReadAfter:
    """A read of a replaced field is the value that replaced it."""

    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32")),
        x: R.Tensor((2,), "float32"),
    ):
        p0 = R.inplace_update_tuple(params, 0, x)
        a = p0[0]
        b = p0[1]
        p1 = R.inplace_update_tuple(p0, 0, R.null_value())
        return (a, b)


@I.ir_module
class ReadAfterAfter:
    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32")),
        x: R.Tensor((2,), "float32"),
    ):
        R.inplace_update_tuple(params, 0, x, ty_args=(R.Tuple,))
        a = x
        b = params[1]
        gv = R.null_value()
        R.inplace_update_tuple(params, 0, gv, ty_args=(R.Tuple,))
        return (a, b)


@I.ir_module
class UsedWhole:
    """A result that is used as a whole keeps its name; what follows starts from it."""

    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((4, 8), "float32")), x: R.Tensor((2,), "float32")):
        p0 = R.inplace_update_tuple(params, 0, x)
        p1 = R.inplace_update_tuple(p0, 0, x)
        y = R.call_packed("f", p1, ty_args=R.Tensor((2,), "float32"))
        p2 = R.inplace_update_tuple(p1, 0, y)
        p3 = R.inplace_update_tuple(p2, 0, x)
        return p3


@I.ir_module
class UsedWholeAfter:
    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((4, 8), "float32")), x: R.Tensor((2,), "float32")):
        R.inplace_update_tuple(params, 0, x, ty_args=(R.Tuple,))
        p1 = R.inplace_update_tuple(params, 0, x, ty_args=(R.Tuple(R.Tensor((2,), "float32")),))
        y = R.call_packed("f", p1, ty_args=R.Tensor((2,), "float32"))
        R.inplace_update_tuple(p1, 0, y, ty_args=(R.Tuple,))
        p3 = R.inplace_update_tuple(p1, 0, x, ty_args=(R.Tuple(R.Tensor((2,), "float32")),))
        return p3


@I.ir_module
class Branch:
    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor((2,), "float32"), R.Tensor((2,), "float32")),
        c: R.Tensor((), "bool"),
    ):
        w = params[1]
        if c:
            p0 = R.inplace_update_tuple(params, 0, w)
            p1 = R.inplace_update_tuple(p0, 1, w)
            q = p1
        else:
            q = params
        return q


@I.ir_module
class BranchAfter:
    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor((2,), "float32"), R.Tensor((2,), "float32")),
        c: R.Tensor((), "bool"),
    ):
        w = params[1]
        if c:
            R.inplace_update_tuple(params, 0, w, ty_args=(R.Tuple,))
            p1 = R.inplace_update_tuple(
                params,
                1,
                w,
                ty_args=(R.Tuple(R.Tensor((2,), "float32"), R.Tensor((2,), "float32")),),
            )
            q = p1
        else:
            q = params
        return q


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Chain, ChainAfter),
        (ReadAfter, ReadAfterAfter),
        (UsedWhole, UsedWholeAfter),
        (Branch, BranchAfter),
    ],
    ids=lambda mod: mod.__name__,
)
def test_before_and_after(before, after):
    lowered = LowerUpdateChain()(before)
    relax.analysis.well_formed(lowered)
    tvm.ir.assert_structural_equal(lowered, after)
    assert LowerUpdateChain()(lowered).same_as(lowered)


def test_a_chain_that_is_not_linear():
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((2,), "float32")), x: R.Tensor((2,), "float32")):
        p0 = R.inplace_update_tuple(params, 0, x)
        p1 = R.inplace_update_tuple(params, 0, x)
        return p1
"""
    )
    with pytest.raises(OwnershipError):
        LowerUpdateChain()(mod)


def test_other_functions_stay_as_they_are():
    @I.ir_module
    class Pure:
        @R.function
        def main(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            return x

    both = tvm.IRModule(
        {"chain": Chain["main"].with_attr("global_symbol", "chain"), **Pure.functions}
    )
    lowered = LowerUpdateChain()(both)
    assert lowered["main"].same_as(Pure["main"])
    assert not lowered["chain"].same_as(both["chain"])
