"""At most one temporary beside the weights: numbers, resident memory, branches, graphs."""

import shutil

import numpy as np
import pytest
import tvm
import tvm_ffi
from memory import extra_mb, in_fresh_process, needs_clear_refs
from pipelines import PIPELINES
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R

import relax_inplace.lower.pipeline
from relax_inplace import inplace_update_tuple

OPS = (relax.op.permute_dims, relax.op.exp, relax.op.permute_dims, relax.op.sqrt)
N, M = tvm.tirx.Var("n", "int64"), tvm.tirx.Var("m", "int64")


def four_kernels_each(shapes, attrs=None):
    """Each weight is read, its slot emptied, and updated by what four kernels make of it."""
    params = relax.Var("params", relax.TupleType([relax.TensorType(s, "float32") for s in shapes]))
    builder = relax.BlockBuilder()
    with builder.function("main", [params], attrs=attrs, pure=False):
        p = params
        for index in range(len(shapes)):
            w = builder.emit(relax.TupleGetItem(p, index))
            p = builder.emit(inplace_update_tuple(p, index, builder.emit(relax.op.null_value())))
            for op in OPS:
                w = builder.emit(op(w))
            p = builder.emit(inplace_update_tuple(p, index, w))
        builder.emit_func_output(p)
    return builder.get()


def executable(mod, pipeline):
    """Without fusion, of which four kernels would be one."""
    with tvm.transform.PassContext(config={"relax.FuseOps.max_depth": 1}):
        return PIPELINES[pipeline](mod)


def tensors(*shapes):
    return tvm_ffi.Array(
        [
            tvm.runtime.tensor(np.linspace(0, index + 1, np.prod(s), dtype="float32").reshape(s))
            for index, s in enumerate(shapes)
        ]
    )


def expected(array):
    return np.sqrt(np.exp(array))


BOUNDS = {"tir_var_upper_bound": {"n": 9, "m": 9}}
KINDS = {
    "static": ([(5, 3), (70, 60), (3, 5)] * 2, None),
    "symbolic": ([(N, M), (70, 60), (M, N)] * 2, None),
    "bounded": ([(N, M), (70, 60), (M, N)] * 2, BOUNDS),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers(pipeline, kind):
    params = tensors(*[(5, 3), (70, 60), (3, 5)] * 2)
    before = [p.numpy().copy() for p in params]
    vm = relax.VirtualMachine(executable(four_kernels_each(*KINDS[kind]), pipeline), tvm.cpu())
    assert vm["main"](params).same_as(params)
    for got, was in zip(params, before, strict=True):
        np.testing.assert_allclose(got.numpy(), expected(was), rtol=1e-6)


# 16 and 12 MB: none fits into what LLVM leaves free in the heap, which is resident before the call,
# and would be after it.
SIDES = (2048, 1792)


def extra_of_four_kernels(pipeline, allocator="pooled", symbolic=False, kills=True):
    """Of weights of two sizes in turn; in weights of the larger one."""
    if not kills:
        relax_inplace.lower.pipeline.kill_registers = lambda function: function
    shapes = [(side, side) for side in SIDES] * 2
    mod = four_kernels_each([(N, N), (M, M)] * 2 if symbolic else shapes)
    vm = relax.VirtualMachine(executable(mod, pipeline), tvm.cpu(), memory_cfg=allocator)
    params = tensors(*shapes)
    return extra_mb(lambda: vm["main"](params)) / (SIDES[0] ** 2 * 4 / 2**20)


@needs_clear_refs
@pytest.mark.parametrize(
    ("pipeline", "symbolic"),
    [("compile", False), ("compile", True), ("cpu default", True), ("compiled mode", False)],
)
def test_at_most_one_temporary_beside_the_weights(pipeline, symbolic):
    assert in_fresh_process(extra_of_four_kernels, pipeline, "pooled", symbolic) <= 1.06


@needs_clear_refs
def test_with_tvms_other_allocator():
    assert in_fresh_process(extra_of_four_kernels, "compile", "naive") <= 1.06


@needs_clear_refs
def test_the_measurement_shows_temporaries_that_are_kept():
    assert in_fresh_process(extra_of_four_kernels, "compile", "pooled", False, False) >= 1.9


# -- branches -------------------------------------------------------------------------------------


def branches(side):
    return from_source(
        f"""
@I.ir_module
class Module:
    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor(({side}, {side}), "float32"), R.Tensor(({side}, 8), "float32")),
        c: R.Tensor((), "bool"),
        d: R.Tensor((), "bool"),
    ):
        if c:
            if d:
                a = R.permute_dims(R.exp(R.permute_dims(params[1])))
                p0 = R.inplace_update_tuple(params, 1, a)
                q = p0
            else:
                a = R.exp(R.sqrt(R.sqrt(params[1])))
                p0 = R.inplace_update_tuple(params, 1, a)
                q = p0
            r = q
        else:
            a = R.sqrt(R.sqrt(R.exp(params[1])))
            p0 = R.inplace_update_tuple(params, 1, a)
            r = p0
        w = r[0]
        empty = R.null_value()
        r0 = R.inplace_update_tuple(r, 0, empty)
        b = R.sqrt(R.permute_dims(R.exp(R.permute_dims(w))))
        r1 = R.inplace_update_tuple(r0, 0, b)
        return r1
"""
    )


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize(("c", "d"), [(False, False), (True, False), (True, True)])
def test_branches(pipeline, c, d):
    params = tensors((16, 16), (16, 8))
    big, small = (p.numpy().copy() for p in params)
    vm = relax.VirtualMachine(executable(branches(16), pipeline), tvm.cpu())
    vm["main"](params, *(tvm.runtime.tensor(np.array(x)) for x in (c, d)))
    np.testing.assert_allclose(params[0].numpy(), expected(big), rtol=1e-6)
    if c:
        want = np.exp(small) if d else np.exp(np.sqrt(np.sqrt(small)))
    else:
        want = np.sqrt(np.sqrt(np.exp(small)))
    np.testing.assert_allclose(params[1].numpy(), want, rtol=1e-5)


def extra_after_branches(pipeline, side=2048):
    vm = relax.VirtualMachine(executable(branches(side), pipeline), tvm.cpu())
    params = tensors((side, side), (side, 8))
    flags = [tvm.runtime.tensor(np.array(x)) for x in (False, False)]
    return extra_mb(lambda: vm["main"](params, *flags)) / (side * side * 4 / 2**20)


@needs_clear_refs
@pytest.mark.parametrize("pipeline", ["compile", "cpu default"])
def test_what_follows_a_branch_is_freed_too(pipeline):
    """KillAfterLastUse kills nothing there."""
    assert in_fresh_process(extra_after_branches, pipeline) <= 1.06


# -- graphs ---------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="compiling for CUDA needs nvcc")
def test_temporaries_of_a_function_that_updates_go_into_no_cuda_graph():
    """It would keep their storage, and run the kernels on it that it was captured with."""

    @I.ir_module
    class Module:
        @R.function(pure=False)
        def update(params: R.Tuple(R.Tensor((64, 64), "float32"), R.Tensor((32, 32), "float32"))):
            a = R.matmul(R.matmul(params[0], params[0]), params[0])
            p0 = R.inplace_update_tuple(params, 0, a)
            b = R.matmul(R.matmul(p0[1], p0[1]), p0[1])
            p1 = R.inplace_update_tuple(p0, 1, b)
            return p1

        @R.function
        def other(x: R.Tensor((64, 64), "float32")):
            return R.matmul(R.matmul(R.matmul(x, x), x), x)

    @I.ir_module
    class Other:
        @R.function
        def other(x: R.Tensor((64, 64), "float32")):
            return R.matmul(R.matmul(R.matmul(x, x), x), x)

    def calls(mod, function):
        target = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm")
        with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
            text = tvm.compile(mod, target).as_text()
        body = text.partition(f"@{function}:")[2].partition("ret ")[0]
        return [line.split()[1] for line in body.splitlines() if line.startswith("  call")]

    assert not any("cuda_graph" in name for name in calls(Module, "update"))
    assert calls(Module, "update").count("vm.builtin.donate_storage") == 4
    graph = calls(Module, "other")
    assert any("cuda_graph" in name for name in graph)
    assert [n for n in graph if "vm." in n] == [n for n in calls(Other, "other") if "vm." in n]
