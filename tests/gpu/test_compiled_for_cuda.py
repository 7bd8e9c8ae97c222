"""Whole transforms for CUDA: what is in which function, with CUDA graphs and without.

That nvcc compiles their kernels shows test_gpu_check.py.
"""

import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.transform import LiftInplaceTransformParams

TARGET = {"kind": "cuda", "arch": "sm_90"}
OURS = ["wait_for_readers", "donate_storage", "release_storage", "inplace_update_tuple"]


@I.ir_module
class Model:
    @R.function
    def decode(
        x: R.Tensor((64, 256), "float32"),
        w0: R.Tensor((256, 256), "float32"),
        w1: R.Tensor((256, 256), "float32"),
    ):
        R.func_attr({"num_input": 1})
        w0t = R.permute_dims(w0)
        w1t = R.permute_dims(w1)
        y = R.matmul(R.matmul(R.matmul(x, w0t), w1t), w1t)
        return y


def functions(text):
    """The builtins that each function of an executable calls, in their order."""
    found, name = {}, None
    for line in text.splitlines():
        words = line.split()
        if line.startswith("@") and line.endswith(":"):
            name = words[0].strip("@:")
            found[name] = []
        elif words[:1] == ["call"] and name is not None:
            found[name].append(words[1].removeprefix("vm.builtin."))
    return found


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_donation_and_graphs(graphs, lazy):
    mod = LiftInplaceTransformParams(lazy=lazy)(Model)
    target = tvm.target.Target(TARGET, host="llvm")
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": graphs}):
        found = functions(relax.build(mod, target, relax_pipeline="inplace").as_text())
    convert = found.pop("inplace_transform_params")
    assert convert.count("inplace_update_tuple") == 2
    assert convert.count("donate_storage") == 2
    # A streamed weight is read by nobody else: its owner has waited for it.
    assert convert.count("wait_for_readers") == (0 if lazy else 1)
    if not lazy:
        assert convert.index("wait_for_readers") < convert.index("donate_storage")
    assert not any("cuda_graph" in name for name in convert)
    # No other function has any of it, and a graph is captured where one is asked for.
    assert not any(name in OURS for calls in found.values() for name in calls)
    assert any(name.endswith("cuda_graph_capture") for name in found) == graphs
    assert ("cuda_graph.run_or_capture" in found["decode"]) == graphs
