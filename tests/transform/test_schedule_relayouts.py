"""ScheduleRelayouts, and the pipeline "inplace": which kernels are touched, and which are not."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from pipelines import LLVM
from tvm import relax, tirx
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace import runtime
from relax_inplace.pipeline import inplace_pipeline
from relax_inplace.transform import InplaceTransformParams, ScheduleRelayouts


@I.ir_module
class Model:
    """A transform, and a function that calls the same kernel."""

    @R.function
    def main(x: R.Tensor((64, 32), "float32")):
        with R.dataflow():
            y = R.permute_dims(x)
            R.output(y)
        return y

    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor((64, 32), "float32"), R.Tensor((8, 8), "float32")),
    ):
        with R.dataflow():
            a = R.permute_dims(params[0])
            b = R.sum(params[1], axis=[1])
            out = (a, b)
            R.output(out)
        return out


CAST = """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((64, 32), "float32"))):
        return (R.astype(params[0], "{}"),)
"""


def legalized(mod):
    return relax.transform.LegalizeOps()(InplaceTransformParams()(mod))


def scheduled(mod, target=LLVM):
    with target:
        return ScheduleRelayouts()(mod)


def kernels(mod):
    """By name, whether each has a schedule."""
    return {
        gvar.name_hint: bool(function.attrs.get("tirx.is_scheduled", False))
        for gvar, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }


def test_a_kernel_that_another_function_calls_is_copied():
    before = legalized(Model)
    after = scheduled(before)
    assert kernels(before) == {"transpose": False, "sum": False}
    assert kernels(after) == {"transpose": False, "transpose_relayout": True, "sum": False}
    tvm.ir.assert_structural_equal(after["main"], before["main"], map_free_vars=True)
    tvm.ir.assert_structural_equal(after["transpose"], before["transpose"])
    assert "transpose_relayout" in after["inplace_transform_params"].script()
    relax.analysis.well_formed(after)


def test_a_kernel_of_transforms_alone_is_replaced():
    mod = Model.clone()
    del mod["main"]
    assert kernels(scheduled(legalized(mod))) == {"transpose": True, "sum": False}


def test_a_cast_that_llvm_leaves_undefined():
    """Of NaN to int8, say: a vector has other bits than an element."""
    for dtype, takes in (("int8", False), ("float16", True)):
        mod = from_source(CAST.format(dtype))
        assert kernels(scheduled(legalized(mod))) == {"cast": takes}


def test_again_changes_nothing():
    once = scheduled(legalized(Model))
    tvm.ir.assert_structural_equal(scheduled(once), once)


def test_other_modules_stay_as_they_are():
    mod = Model.clone()
    del mod["transform_params"]
    mod = relax.transform.LegalizeOps()(mod)
    assert scheduled(mod).same_as(mod)


def test_a_target_without_rules():
    before = legalized(Model)
    tvm.ir.assert_structural_equal(scheduled(before, tvm.target.Target("c")), before)


def test_what_a_conversion_is_compared_with_is_compiled_as_tvm_does():
    mod = relax.transform.LegalizeOps()(InplaceTransformParams(reference=True)(Model))
    after = scheduled(mod)
    assert "transpose_relayout" not in after["reference_transform_params"].script()
    assert "transpose_relayout" in after["inplace_transform_params"].script()


# -- the pipeline -----------------------------------------------------------------------------


def test_the_pipeline_of_other_functions_is_tvms():
    mod = Model.clone()
    del mod["transform_params"]
    with LLVM:
        ours, tvms = inplace_pipeline()(mod), relax.get_default_pipeline(LLVM)(mod)
    tvm.ir.assert_structural_equal(ours, tvms, map_free_vars=True)


def test_it_needs_a_target():
    with pytest.raises(ValueError, match=r"none is given: tvm\.compile"):
        inplace_pipeline()(Model)


def test_it_is_registered_once():
    from relax_inplace.pipeline import register

    register()
    assert relax.get_pipeline("inplace").info.name == "inplace_pipeline"


@pytest.mark.parametrize("mode", ["bytecode", "compiled"])
def test_numbers(mode):
    mod = InplaceTransformParams()(Model)
    executable = relax.build(mod, "llvm", relax_pipeline="inplace", exec_mode=mode)
    vm = relax.VirtualMachine(executable, tvm.cpu())
    arrays = [np.arange(64 * 32, dtype="float32").reshape(64, 32), np.eye(8, dtype="float32")]
    weights = tvm_ffi.Array([tvm.runtime.tensor(array) for array in arrays])
    vm["inplace_transform_params"](weights)
    assert weights[0].numpy().tobytes() == arrays[0].T.tobytes()
    assert weights[1].numpy().tobytes() == arrays[1].sum(axis=1).tobytes()


def test_verified():
    """By kernels that have no schedule of ours."""
    mod = InplaceTransformParams(reference=True)(Model)
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm", relax_pipeline="inplace"), tvm.cpu())
    arrays = [np.random.default_rng(0).random(shape, "float32") for shape in ((64, 32), (8, 8))]
    weights = runtime.Params([tvm.runtime.tensor(array) for array in arrays])
    assert runtime.transform_params(vm, weights, verify=True).report.verified
