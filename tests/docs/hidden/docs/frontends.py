# %% after: from tvm.relax.frontend import nn
hidden = stored["up.weight"].sum(axis=1)
expected = stored["down.weight"] @ (hidden / (1 + np.exp(-hidden)))
assert np.allclose(result.numpy()[0], expected, rtol=1e-4, atol=1e-4)
assert weights.report.converted == 2 * 64 * 128 * 4

# %% after: from_exported_program(program
import numpy as np

assert np.allclose(result.numpy(), model(x).detach().numpy(), rtol=1e-4, atol=1e-4)
assert weights.report.converted == 64 * 32 * 4

# %% after: onnx.load("model.onnx")
expected = arrays["fc.weight"].sum(axis=1) + arrays["fc.bias"]
assert np.allclose(result.numpy()[0], expected, rtol=1e-4, atol=1e-4)
assert weights.report.converted == 64 * 32 * 4
