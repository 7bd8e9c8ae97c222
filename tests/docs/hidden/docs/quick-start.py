# %% before: LiftInplaceTransformParams(only="*")
import numpy as np
import tvm
import tvm_ffi


def some(shape, dtype):
    return tvm.runtime.tensor(np.arange(np.prod(shape)).reshape(shape).astype(dtype))


x = some((16, 64), "float16")
params = tvm_ffi.Array([some((32, 64), "float16"), some((32, 64), "int8")])

# %% before: runtime.load_params("checkpoint/", tvm.cpu(), transform)
from relax_inplace import runtime

weights = [some((32, 64), "float16"), some((32, 64), "int8")]
runtime.save_params(
    runtime.Params(weights, ["params[0]", "params[1]"]), "checkpoint/", "safetensors"
)
