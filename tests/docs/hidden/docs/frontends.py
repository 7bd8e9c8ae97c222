# %% after: from tvm.relax.frontend import nn
hidden = stored["up.weight"].sum(axis=1)
expected = stored["down.weight"] @ (hidden / (1 + np.exp(-hidden)))
assert np.allclose(result.numpy()[0], expected, rtol=1e-4, atol=1e-4)
assert weights.report.converted == 2 * 64 * 128 * 4

# %% after: from_exported_program(program
import numpy as np

assert np.allclose(result.numpy(), model(x).detach().numpy(), rtol=1e-4, atol=1e-4)
assert weights.report.converted == 64 * 32 * 4

# %% before: onnx.load("model.onnx")
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

generator = np.random.default_rng(0)
stored = {
    "fc.weight": generator.standard_normal((32, 64)).astype("float32"),
    "fc.bias": generator.standard_normal(32).astype("float32"),
}
graph = helper.make_graph(
    [helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], transB=1)],
    "graph",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 32])],
    [numpy_helper.from_array(array, name) for name, array in stored.items()],
)
made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
onnx.save(made, "model.onnx")

# %% after: onnx.load("model.onnx")
expected = stored["fc.weight"].sum(axis=1) + stored["fc.bias"]
assert np.allclose(result.numpy()[0], expected, rtol=1e-4, atol=1e-4)
assert weights.report.converted == 64 * 32 * 4
