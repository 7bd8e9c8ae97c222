# %% before: python -m relax_inplace --libfiles
from pathlib import Path

model = Path("examples/attention.py").read_text()
model = model.replace("HIDDEN = 4096", "HIDDEN = 64").replace("KEY_VALUE = 1024", "KEY_VALUE = 32")
Path("model.py").write_text(model)

# %% before: options=self_contained_options()
import relax_inplace
import tvm
from model import Attention

mod = relax_inplace.transform.LiftInplaceTransformParams()(Attention)
executable = tvm.compile(mod, "llvm")
