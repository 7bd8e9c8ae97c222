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


def _random(shape, dtype):
    """Small floats, so that a model's results are finite, or codes of a quantised weight."""
    if "int" in dtype:
        return generator.integers(0, 100, shape).astype(dtype)
    return (generator.standard_normal(shape, "float32") * 0.02).astype(dtype)


tensors = [tvm.runtime.tensor(_random(one.shape, one.dtype)) for one in transform.weights]
runtime.save_params(
    runtime.Params(tensors, [one.name for one in transform.weights]), folder, *format
)
