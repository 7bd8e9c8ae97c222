"""KillCheckedFields: before and after, on what VMShapeLower leaves."""

import tvm
from pipelines import LLVM
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.transform import KillCheckedFields


@I.ir_module
class Lowered:
    """In short what VMShapeLower makes: a tuple, in it a tuple, read and checked at entry."""

    @R.function(pure=False)
    def main(params: R.Tuple(R.Tuple(R.Tensor(ndim=1)), R.Tensor(ndim=2)), x: R.Tensor(ndim=1)):
        inner = params[0]
        R.call_packed("check_tuple", inner, ty_args=(R.Tuple,))
        field = inner[0]
        R.call_packed("check_tensor", field, ty_args=(R.Tuple,))
        other = params[1]
        R.call_packed("check_tensor", other, ty_args=(R.Tuple,))
        R.call_packed("match_shape", field, ty_args=(R.Tuple,))
        R.call_packed("match_shape", other, ty_args=(R.Tuple,))
        read = params[1]
        y = R.call_packed("kernel", read, ty_args=R.Tensor(ndim=2))
        R.vm.kill_object(read)
        p0 = R.call_packed(
            "vm.builtin.inplace_update_tuple",
            params,
            1,
            y,
            ty_args=R.Tuple(R.Tuple(R.Tensor(ndim=1)), R.Tensor(ndim=2)),
        )
        kept = p0[0]
        return (p0, kept)


@I.ir_module
class LoweredAfter:
    @R.function(pure=False)
    def main(params: R.Tuple(R.Tuple(R.Tensor(ndim=1)), R.Tensor(ndim=2)), x: R.Tensor(ndim=1)):
        inner = params[0]
        R.call_packed("check_tuple", inner, ty_args=(R.Tuple,))
        field = inner[0]
        R.vm.kill_object(inner)
        R.call_packed("check_tensor", field, ty_args=(R.Tuple,))
        other = params[1]
        R.call_packed("check_tensor", other, ty_args=(R.Tuple,))
        R.call_packed("match_shape", field, ty_args=(R.Tuple,))
        R.vm.kill_object(field)
        R.call_packed("match_shape", other, ty_args=(R.Tuple,))
        R.vm.kill_object(other)
        read = params[1]
        y = R.call_packed("kernel", read, ty_args=R.Tensor(ndim=2))
        R.vm.kill_object(read)
        p0 = R.call_packed(
            "vm.builtin.inplace_update_tuple",
            params,
            1,
            y,
            ty_args=R.Tuple(R.Tuple(R.Tensor(ndim=1)), R.Tensor(ndim=2)),
        )
        kept = p0[0]
        return (p0, kept)


def test_before_and_after():
    tvm.ir.assert_structural_equal(KillCheckedFields()(Lowered), LoweredAfter)
    tvm.ir.assert_structural_equal(KillCheckedFields()(LoweredAfter), LoweredAfter)


def test_every_check_of_a_real_pipeline_stays():
    @I.ir_module
    class Chain:
        @R.function(pure=False)
        def main(
            params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tuple(R.Tensor(("n", 8), "float32"))),
        ):
            w0 = R.permute_dims(params[0])
            p0 = R.inplace_update_tuple(params, 0, w0)
            return p0

    with LLVM:
        lowered = relax.get_default_pipeline(LLVM)(Chain)
    after = KillCheckedFields()(lowered)

    def bindings(mod):
        return [b for block in mod["main"].body.blocks for b in block.bindings]

    def is_kill(binding):
        return getattr(getattr(binding.value, "op", None), "name", "") == "relax.vm.kill_object"

    reads = {b.var for b in bindings(lowered) if isinstance(b.value, relax.TupleGetItem)}
    killed = [b.value.args[0] for b in bindings(after) if is_kill(b)]
    assert reads <= set(killed) and len(killed) == len(set(killed))
    others = [b.value for b in bindings(lowered) if not is_kill(b)]
    assert [b.value for b in bindings(after) if not is_kill(b)] == others


def test_functions_without_updates_stay_as_they_are():
    @I.ir_module
    class Pure:
        @R.function
        def main(params: R.Tuple(R.Tensor((4, 8), "float32"))):
            return params[0]

    with LLVM:
        lowered = relax.get_default_pipeline(LLVM)(Pure)
    assert KillCheckedFields()(lowered).same_as(lowered)
