# %% prints: cannot use its arguments
import re

import numpy as np
import relax_inplace
import tvm
import tvm_ffi
from tvm import relax
from tvm.script import relax as R


def compiled(*shapes):
    fields = [relax.TensorType(shape, "float16") for shape in shapes]
    params = relax.Var("params", relax.TupleType(fields))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params]):
        new = [builder.emit(R.permute_dims(params[i])) for i in range(len(shapes))]
        builder.emit_func_output(relax.Tuple(new))
    return tvm.compile(relax_inplace.transform.InplaceTransformParams()(builder.get()), "llvm")


vm = relax.VirtualMachine(compiled((4, 8), (6, 8)), tvm.cpu())
given = [((4, 9), "float16"), ((6, 8), "float32")]
try:
    vm["inplace_transform_params"](
        tvm_ffi.Array([tvm.runtime.tensor(np.ones(*one)) for one in given])
    )
except ValueError as error:
    print(error)

# %% prints: vm.builtin.donate_storage in: %4
text = compiled((4, 8), (4, 8)).as_text()
lines = text[text.index("@inplace_transform_params") :].split("\n\n")[0].splitlines()
second = next(i for i, line in enumerate(lines) if "i1" in line)
check = re.sub(r"\(load .*\) in:", "(...) in:", lines[1])
print("\n".join([check, "...", *lines[second:]]))
