"""Writes model.onnx: one linear layer of random weights, for docs/frontends.md."""

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
