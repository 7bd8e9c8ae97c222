"""KillUnusedRegisters: before and after, on what TVM leaves in registers."""

import tvm
from pipelines import LLVM
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.transform import KillUnusedRegisters


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
        R.vm.kill_object(y)
        kept = p0[0]
        return (p0, kept)


def test_before_and_after():
    tvm.ir.assert_structural_equal(KillUnusedRegisters()(Lowered), LoweredAfter)
    tvm.ir.assert_structural_equal(KillUnusedRegisters()(LoweredAfter), LoweredAfter)


@I.ir_module
class AfterBranch:
    """In short what KillAfterLastUse makes of what follows a branch: nothing is killed."""

    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((4,), "float32"))):
        w = params[0]
        s = R.vm.alloc_storage(R.shape([16]), 0, R.dtype("uint8"), R.str("global"))
        a = R.vm.alloc_tensor(s, 0, R.shape([4]), R.dtype("float32"), 0)
        R.call_packed("kernel", w, a, ty_args=(R.Tuple,))
        v = R.call_packed("vm.builtin.reshape", a, R.shape([4]), ty_args=R.Tensor((4,), "float32"))
        p0 = R.call_packed(
            "vm.builtin.inplace_update_tuple",
            params,
            0,
            v,
            ty_args=R.Tuple(R.Tensor((4,), "float32")),
        )
        return p0


@I.ir_module
class AfterBranchAfter:
    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((4,), "float32"))):
        w = params[0]
        s = R.vm.alloc_storage(R.shape([16]), 0, R.dtype("uint8"), R.str("global"))
        a = R.vm.alloc_tensor(s, 0, R.shape([4]), R.dtype("float32"), 0)
        R.vm.kill_object(s)
        R.call_packed("kernel", w, a, ty_args=(R.Tuple,))
        R.vm.kill_object(w)
        v = R.call_packed("vm.builtin.reshape", a, R.shape([4]), ty_args=R.Tensor((4,), "float32"))
        R.vm.kill_object(a)
        p0 = R.call_packed(
            "vm.builtin.inplace_update_tuple",
            params,
            0,
            v,
            ty_args=R.Tuple(R.Tensor((4,), "float32")),
        )
        R.vm.kill_object(v)
        return p0


def test_after_a_branch():
    tvm.ir.assert_structural_equal(KillUnusedRegisters()(AfterBranch), AfterBranchAfter)


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
    after = KillUnusedRegisters()(lowered)

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
    assert KillUnusedRegisters()(lowered).same_as(lowered)
