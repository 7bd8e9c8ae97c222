"""Write random weights for a library that `relax-inplace build` has made.

python examples/random_weights.py lib.so weights/ [tensor-cache|safetensors]
"""

import sys

import numpy as np
import tvm

from relax_inplace import runtime

library, folder, *format = sys.argv[1:]
transform = runtime.load_transform(library, tvm.cpu())
generator = np.random.default_rng(0)
tensors = [
    tvm.runtime.tensor((generator.random(one.shape, "float32") * 100).astype(one.dtype))
    for one in transform.weights
]
runtime.save_params(
    runtime.Params(tensors, [one.name for one in transform.weights]), folder, *format
)
