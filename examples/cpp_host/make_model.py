"""Make what the C++ host takes: the decoder of ../decoder.py as a module, and weights for it.

    python make_model.py FOLDER [--self-contained]

writes FOLDER/model.so and FOLDER/weights. This needs TVM's compiler; what it writes does not.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import decoder
import tvm

from relax_inplace import libinfo, runtime

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path)
parser.add_argument("--self-contained", action="store_true", help="builtins within model.so")
arguments = parser.parse_args()
arguments.folder.mkdir(parents=True, exist_ok=True)

mod, name = decoder.lifted(decoder.SMALL, "kn", way="in-place")
executable = tvm.compile(mod, "llvm")
options = libinfo.self_contained_options() if arguments.self_contained else []
executable.export_library(str(arguments.folder / "model.so"), options=options)

transform = runtime.load_transform(arguments.folder / "model.so", tvm.cpu())
weights = decoder.random_weights(mod[name].params[0].ty.fields)
params = runtime.Params(list(weights), [one.name for one in transform.weights])
runtime.save_params(params, arguments.folder / "weights", "tensor-cache")
