"""What is planned in a weight's memory: where lowering has it there, and nowhere else."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given, note
from hypothesis import strategies as st
from lowered_machine import LoweredMachine, lowered
from measured_peaks import extra_weights
from memory import in_fresh_process, needs_clear_refs
from profiles import examples
from transforms import (
    SIZES,
    transforms,
    without_what_fuse_tir_fails_at,
    without_what_is_refused,
)
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.analysis import MemoryLimitError, plan_memory
from relax_inplace.inplace import schedule
from relax_inplace.transform import InplaceTransformParams, LiftInplaceTransformParams

INPLACE = "inplace_transform_params"
SIDE = 2048
WEIGHT = SIDE * SIDE * 4  # bytes
SCRATCH = 4 << 20


def module(lines, outputs, weights=2, ty=f'R.Tensor(({SIDE}, {SIDE}), "float32")', params=None):
    """A transform of w0, w1, ..., all of one type."""
    params = params or f"R.Tuple({', '.join([ty] * weights)})"
    reads = [f"w{i} = params[{i}]" for i in range(weights)]
    body = "\n        ".join([*reads, *lines])
    return from_source(
        f"""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: {params}):
        {body}
        return ({", ".join(outputs)},)
"""
    )


def plan(mod, **options):
    return plan_memory(mod["transform_params"], mod, **{"target": "llvm", **options})


@pytest.fixture
def without_scratch(monkeypatch):
    monkeypatch.setattr(schedule, "MOST_SCRATCH", 0)


TRANSPOSES = ["t0 = R.permute_dims(w0)", "t1 = R.permute_dims(w1)"], ["t0", "t1"]


def test_a_transposed_weight_has_no_temporary():
    mod = module(*TRANSPOSES)
    assert plan(mod).peak == 2 * WEIGHT + SCRATCH
    assert [step.in_place for step in plan(mod).steps] == [["w0"], ["w1"]]
    text = str(plan(mod))
    assert "order: exact; in place by at most 4,194,304 of scratch\n" in text
    assert "step  computes  reads  writes  in  frees" in text
    with tvm.target.Target("llvm"):
        assert plan(mod, target=None).peak == 2 * WEIGHT + SCRATCH


def test_without_a_target_each_step_has_a_temporary():
    mod = module(*TRANSPOSES)
    assert plan(mod, target=None).peak == 3 * WEIGHT
    assert "scratch" not in str(plan(mod, target=None))


def test_small_weights_take_no_more_than_out_of_place():
    mod = module(*TRANSPOSES, ty='R.Tensor((64, 64), "float32")')
    assert plan(mod).peak == plan(mod, target=None).peak == 3 * 64 * 64 * 4


@pytest.mark.parametrize(
    "lines, outputs, peak",
    [
        (["t0 = R.permute_dims(w0)", "t1 = R.concat((w0, w1))"], ["t0", "t1"], 4),
        (["t0 = R.permute_dims(w0)", "t1 = R.add(w0, w1)"], ["t0", "t1"], 2),
        (["v = R.reshape(w0, R.shape([4, 1024, 1024]))", "t0 = R.exp(v)"], ["t0", "w1"], 2),
        (["t0 = R.add(w0, w0)"], ["t0", "w1"], 3),
        (
            ["v = R.memory.view(w0, R.shape([2048, 2048]))", "a = R.add(w0, v)"],
            ["a", "w1"],
            3,
        ),
        (["a = R.add(w0, w1)"], ["a", "w1"], 2),
        (["a = R.add(w0, w1)"], ["w0", "a"], 2),
        (["a = R.add(w0, w1)"], ["w0", "w1", "a"], 3),
        (["e = R.exp(w0)", "t0 = R.permute_dims(e)"], ["t0", "w1"], 2),
        (['h = R.astype(w0, "float16")'], ["h", "w1"], 2),
        (['h = R.astype(w0, "float64")'], ["h", "w1"], 4),
    ],
)
def test_what_lies_in_an_operand(without_scratch, lines, outputs, peak):
    """The whole of a weight, or of what a step makes, that is one operand and is read last."""
    mod = module(lines, outputs)
    assert plan(mod).peak == peak * WEIGHT
    after = InplaceTransformParams(target="llvm")(mod)
    assert LoweredMachine(lowered(after, fuses=False), INPLACE, {}).peak <= peak * WEIGHT


@examples(60, fuzz=20000)
@given(transforms(), st.booleans(), st.booleans(), st.booleans())
def test_no_lowered_function_needs_more(transform, is_streamed, fuses, has_scratch):
    params = None if is_streamed else transform.params
    before = from_source(transform.source)
    options = {"params": params, "lazy": is_streamed, "target": "llvm"}
    with pytest.MonkeyPatch.context() as patch:
        if not has_scratch:
            patch.setattr(schedule, "MOST_SCRATCH", 0)
        with without_what_is_refused():
            after = InplaceTransformParams(**options)(before)
        planned, without = (
            plan_memory(
                before["transform_params"],
                before,
                fused=fuses,
                tir_var_upper_bound=SIZES,
                **{**options, "target": target},
            )
            for target in ("llvm", None)
        )
    note(f"{after}\n{planned}")
    if not isinstance(planned.peak, int):
        return
    assert planned.peak <= without.peak
    with without_what_fuse_tir_fails_at():
        mod = lowered(after, fuses=fuses)
    for branch in (0, 1):
        assert LoweredMachine(mod, INPLACE, SIZES, branch).peak <= planned.peak


@needs_clear_refs
@pytest.mark.parametrize("order", ["straight", "reversed"])
def test_resident_memory(order):
    """Of the weights and scratch, where each output is in its weight's slot or in another."""
    extra = in_fresh_process(extra_weights, "compile", order, True, True)
    assert extra * 1500 * 1500 * 4 <= 1.2 * SCRATCH


# -- limits ---------------------------------------------------------------------------------------


def called(mod, *given):
    """With weights that nothing else refers to, made by each function of `given`."""
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    return vm[INPLACE](
        tvm_ffi.Array([make(np.full((SIDE, SIDE), i, "float32")) for i, make in enumerate(given)])
    )


OWN, IMPORTED = tvm.runtime.tensor, tvm_ffi.from_dlpack


LIMIT = 2 * WEIGHT + SCRATCH


def test_a_limit_of_the_weights_and_scratch():
    mod = module(*TRANSPOSES)
    with pytest.raises(MemoryLimitError):
        InplaceTransformParams(memory_limit=LIMIT)(mod)
    with pytest.raises(MemoryLimitError):
        InplaceTransformParams(memory_limit=LIMIT - 1, target="llvm")(mod)
    after = InplaceTransformParams(memory_limit=LIMIT, target="llvm")(mod)
    assert "_read_slice_" not in str(after)
    result = called(after, OWN, OWN)
    assert [float(field.numpy()[5, 3]) for field in result] == [0, 1]


def test_imported_weights_cannot_be_taken_over():
    after = InplaceTransformParams(memory_limit=LIMIT, target="llvm")(module(*TRANSPOSES))
    expected = (
        f"would need {3 * WEIGHT} bytes: {3 * WEIGHT} by its plan, as no new one can lie in a "
        r"weight that was imported \(field \[1\]\)\. Its memory_limit"
    )
    with pytest.raises(ValueError, match=expected):
        called(after, OWN, IMPORTED)
    wider = InplaceTransformParams(memory_limit=3 * WEIGHT, target="llvm")(module(*TRANSPOSES))
    assert len(called(wider, IMPORTED, IMPORTED)) == 2


def test_weights_that_something_else_refers_to():
    after = InplaceTransformParams(memory_limit=LIMIT, target="llvm")(module(*TRANSPOSES))
    held = OWN(np.zeros((SIDE, SIDE), "float32"))
    with pytest.raises(ValueError, match=f"and {WEIGHT} bytes for 1 weights"):
        called(after, lambda _: held, OWN)


def test_what_was_planned_for_another_target_is_not_compiled():
    after = InplaceTransformParams(target="llvm")(module(*TRANSPOSES))
    with pytest.raises(
        ValueError, match=f"`{INPLACE}` was planned for llvm, and is compiled for c"
    ):
        tvm.compile(after, "c")
    neutral = ["t0 = R.concat((w0, w1))"], ["t0"]
    tvm.compile(InplaceTransformParams(target="llvm")(module(*neutral)), "c")


def test_what_is_lifted_is_planned_for_a_target():
    @I.ir_module
    class Model:
        @R.function
        def main(x: R.Tensor((1, 4096), "float32"), w: R.Tensor((2048, 4096), "float32")):
            R.func_attr({"num_input": 1})
            return R.matmul(x, R.permute_dims(w))

    with pytest.raises(MemoryLimitError):
        LiftInplaceTransformParams(memory_limit=1.25)(Model)
    LiftInplaceTransformParams(memory_limit=1.25, target="llvm")(Model)


# -- what is not planned in place -----------------------------------------------------------------


def test_a_weight_that_is_loaded(without_scratch):
    """Its memory may be imported; the temporaries are the function's own."""
    mod = module(["e = R.exp(w0)", "t0 = R.permute_dims(e)"], ["t0"], weights=1)
    assert plan(mod, lazy=True).peak == 2 * WEIGHT
    assert [step.in_place for step in plan(mod, lazy=True).steps] == [[], [], ["e"]]


def test_a_weight_in_a_nested_tuple(without_scratch):
    ty = f'R.Tensor(({SIDE}, {SIDE}), "float32")'
    mod = from_source(
        f"""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tuple({ty}))):
        inner = params[0]
        w = inner[0]
        t = R.permute_dims(w)
        return ((t,),)
"""
    )
    assert plan(mod).peak == 2 * WEIGHT


def test_another_device_beside_the_target(without_scratch):
    mod = module(*TRANSPOSES)
    device = relax.VDevice("llvm", 0, "global")
    mod.update_global_info("vdevice", [device])
    assert plan(mod).peak == 3 * WEIGHT


def test_what_cannot_be_given_back_is_not_taken_over(without_scratch):
    """Of a device's memory: half of what a cast leaves."""
    half = module(['h = R.astype(w0, "float16")'], ["h", "w1"])
    assert plan(half).peak == 2 * WEIGHT
    assert plan(half, target="cuda").peak == 2.5 * WEIGHT
    same = module(["e = R.exp(w0)"], ["e", "w1"])
    assert plan(same, target="cuda").peak == 2 * WEIGHT


def test_float_to_integer_stays_as_it_is(without_scratch):
    """LLVM leaves undefined what does not fit: such kernels are given to no rule."""
    mod = module(['h = R.astype(w0, "int32")'], ["h", "w1"])
    assert plan(mod).peak == 3 * WEIGHT


def test_a_kernel_of_the_module(without_scratch):
    @I.ir_module
    class Module:
        @T.prim_func(private=True, s_tir=True)
        def reversed_rows(
            a: T.Buffer((2048, 2048), "float32"), b: T.Buffer((2048, 2048), "float32")
        ):
            for i, j in T.grid(2048, 2048):
                with T.sblock("moved"):
                    v, u = T.axis.remap("SS", [i, j])
                    b[v, u] = a[2047 - v, u]

        @R.function
        def transform_params(params: R.Tuple(R.Tensor((2048, 2048), "float32"))):
            cls = Module
            w = params[0]
            r = R.call_tir(cls.reversed_rows, (w,), out_ty=R.Tensor((2048, 2048), "float32"))
            return (r,)

    assert plan(Module).peak == WEIGHT
    after = InplaceTransformParams(target="llvm")(Module)
    assert LoweredMachine(lowered(after, fuses=False), INPLACE, {}).peak == WEIGHT
