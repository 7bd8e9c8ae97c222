# %% prints: def inplace_transform_params(params):
import re

text = mod["inplace_transform_params"].script(show_meta=False)
text = text[text.index("@R.function") :]
text = re.sub(r"(\w+): R\..* = (?=R\.|\w+\[)", r"\1 = ", text)  # without the variables' types
print(re.sub(r"params: .*\):", "params):", text))

# %% prints: OwnershipError: in function
from pathlib import Path

Path("model.py").write_text(
    """
from tvm.script import ir as I, relax as R

@I.ir_module
class Model:
    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((4,), "int8"), R.Tensor((4,), "int8")), x: R.Tensor((4,), "int8")):
        p0 = R.inplace_update_tuple(params, 0, x)
        y = params[1]
        return (p0, y)
"""
)
from model import Model

try:
    tvm.compile(Model, "llvm")
except relax_inplace.analysis.OwnershipError as error:
    print(f"OwnershipError: {error}".replace(f"{Path.cwd()}/", ""))

# %% prints: MemoryLimitError: function
limited = relax_inplace.transform.InplaceTransformParams(memory_limit=3200000)
try:
    limited(tvm.IRModule({"transform_params": Attention["transform_params"]}))
except relax_inplace.analysis.MemoryLimitError as error:
    print(f"MemoryLimitError: {error}")
