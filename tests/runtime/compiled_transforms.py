"""Small transforms, compiled once for all tests that run them."""

import functools

import numpy as np
import tvm
from tvm import relax
from tvm.script import from_source

from relax_inplace.runtime import Transform
from relax_inplace.transform import InplaceTransformParams

HEAD = """
@I.ir_module
class Module:
    @R.function(pure=PURE)
    def transform_params(params: R.Tuple(TYPES)):
"""


def module(types, body, pure=True):
    """A module with a ``transform_params`` of weights of these types, and this body."""
    text = HEAD.replace("TYPES", types).replace("PURE", str(pure))
    return from_source(text + "".join(f"        {line}\n" for line in body.strip().splitlines()))


def tensors(*shapes, dtype="float32"):
    return ", ".join(f'R.Tensor({shape}, "{dtype}")' for shape in shapes)


@functools.cache
def compiled(types, body, pure=True, **options):
    """The virtual machine of a transform in place."""
    mod = InplaceTransformParams(**options)(module(types, body, pure))
    return relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())


@functools.cache
def scaled():
    """The virtual machine of a transform of an input, a number, and a weight of 2 x 3."""
    mod = from_source("""
@I.ir_module
class Module:
    @R.function
    def transform_params(scale: R.Tensor((), "float32"), a: R.Tensor((2, 3), "float32")):
        R.func_attr({"num_input": 1})
        b = R.multiply(a, scale)
        return (b,)
""")
    return relax.VirtualMachine(tvm.compile(InplaceTransformParams()(mod), "llvm"), tvm.cpu())


def transposes(count=3, **options):
    """``count`` weights of 4 x (8 + i) float32, transposed one by one."""
    types = tensors(*((4, 8 + i) for i in range(count)))
    body = "".join(f"w{i} = params[{i}]\n" for i in range(count))
    body += "".join(f"t{i} = R.permute_dims(w{i})\n" for i in range(count))
    body += f"return ({', '.join(f't{i}' for i in range(count))},)"
    return Transform.of(compiled(types, body, **options))


def arrays(transform, seed=0):
    """Random numbers for its weights."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 100, one.shape).astype(one.dtype) for one in transform.weights]


def weights(transform, seed=0):
    """The same as tensors that nothing else refers to."""
    return [tvm.runtime.tensor(array) for array in arrays(transform, seed)]
