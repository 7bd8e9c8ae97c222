# %% before: session = disco.ProcessSession(2)
import numpy as np
import relax_inplace
import tvm
from relax_inplace import runtime
from tvm.script import ir as I
from tvm.script import relax as R


@I.ir_module
class Model:
    @R.function
    def decode(x: R.Tensor((2, 6), "float32"), params: R.Tuple(R.Tensor((4, 6), "float32"))):
        w = R.permute_dims(params[0])
        return R.matmul(x, w)


mod = relax_inplace.transform.LiftInplaceTransformParams()(Model)
tvm.compile(mod, "llvm").export_library("lib.so")
for rank in range(2):
    weight = tvm.runtime.tensor(np.full((4, 6), rank, "float32"))
    runtime.save_params(runtime.Params([weight], ["params[0]"]), f"weights/{rank}")

# %% after: session = disco.ProcessSession(2)
assert logits.debug_get_from_remote(1).shape == (2, 4)
session.shutdown()
