# %% before: relax-inplace build model.py -o model.so
from pathlib import Path

model = Path("examples/attention.py").read_text()
model = model.replace("HIDDEN = 4096", "HIDDEN = 64").replace("KEY_VALUE = 1024", "KEY_VALUE = 32")
Path("model.py").write_text(model)

# %% before: options=self_contained_options()
import relax_inplace
import tvm
from examples.attention import Attention

mod = relax_inplace.transform.LiftInplaceTransformParams()(Attention)
executable = tvm.compile(mod, "llvm")

# %% before: --save converted/
import numpy as np
import tvm

from relax_inplace import runtime

transform = runtime.load_transform("model.so", tvm.cpu())
tensors = [tvm.runtime.tensor(np.ones(one.shape, one.dtype)) for one in transform.weights]
names = [one.name for one in transform.weights]
runtime.save_params(runtime.Params(tensors, names), "weights/", "safetensors")
