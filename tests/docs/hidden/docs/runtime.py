# %% before: runtime.save_params(params, "converted/")
import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

import relax_inplace
from relax_inplace import runtime


@I.ir_module
class Model:
    @R.function
    def decode(x: R.Tensor((2, 64), "float32"), params: R.Tuple(R.Tensor((32, 64), "float32"))):
        w = R.permute_dims(params[0])
        return R.matmul(x, w)


mod = relax_inplace.transform.LiftInplaceTransformParams()(Model)
tvm.compile(mod, "llvm").export_library("lib.so")
x = tvm.runtime.tensor(np.ones((2, 64), "float32"))
weights = [tvm.runtime.tensor(np.ones((32, 64), "float32"))]
runtime.save_params(runtime.Params(weights, ["params[0]"]), "weights/")
