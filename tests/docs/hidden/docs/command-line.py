# %% before: relax-inplace explain model.py
from pathlib import Path

import numpy as np
import tvm

from relax_inplace import runtime

model = Path("examples/attention.py").read_text()
model = model.replace("HIDDEN = 4096", "HIDDEN = 64").replace("KEY_VALUE = 1024", "KEY_VALUE = 32")
Path("model.py").write_text(model)
weights = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
tensors = [tvm.runtime.tensor(np.ones(shape, "float16")) for shape in weights.values()]
runtime.save_params(runtime.Params(tensors, list(weights)), "weights/", "safetensors")
