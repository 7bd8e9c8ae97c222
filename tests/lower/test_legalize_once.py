"""Equal operators become one kernel in one step: the same module as by LegalizeOps alone."""

import pytest
import tvm
from tvm import relax, tirx
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.lower.legalize_once import LegalizeOnce


@I.ir_module
class Equal:
    @R.function
    def main(
        x: R.Tensor((4, 6), "float32"), y: R.Tensor((4, 6), "float32"), z: R.Tensor((2, 3), "int8")
    ):
        a = R.permute_dims(x)
        b = R.permute_dims(y)
        c = R.permute_dims(z)
        d = R.permute_dims(x, axes=[0, 1])
        e = R.add(x, y)
        f = R.add(y, y)
        g = R.add(y, x)
        return (a, b, c, d, e, f, g)


@I.ir_module
class Tuples:
    @R.function
    def main(
        x: R.Tensor((4, 6), "float32"), y: R.Tensor((4, 6), "float32"), z: R.Tensor((4,), "float32")
    ):
        a = R.concat((x, y))
        b = R.concat((y, x))
        c = R.split(x, 2)
        d = R.split(y, 2)
        e = R.split(x, 1)
        f = R.split(y, 1)
        g = R.meshgrid((z,))  # a tuple of one, of which the kernel computes the one
        return (a, b, c, d, e, f, g)


@I.ir_module
class Constants:
    @R.function
    def main(x: R.Tensor((2, 3), "float32"), y: R.Tensor((2, 3), "float32")):
        a = R.multiply(x, R.const(2.0, "float32"))
        b = R.multiply(y, R.const(2.0, "float32"))
        c = R.multiply(y, R.const(3.0, "float32"))
        d = R.add(x, R.const([1.0, 2.0, 3.0], "float32"))
        e = R.add(y, R.const([1.0, 2.0, 4.0], "float32"))
        return (a, b, c, d, e)


@I.ir_module
class Symbolic:
    @R.function
    def main(x: R.Tensor(("n", 6), "float32"), y: R.Tensor(("m", 6), "float32")):
        n, m = T.int64(), T.int64()
        a = R.permute_dims(x)
        b = R.permute_dims(y)
        c = R.reshape(x, R.shape([n * 6]))
        return (a, b, c)


@I.ir_module
class NoKernels:
    @T.prim_func(private=True, s_tir=True)
    def kernel(a: T.handle, b: T.handle):
        source, target = T.match_buffer(a, (4,)), T.match_buffer(b, (4,))
        for i in range(4):
            with T.sblock("b"):
                j = T.axis.remap("S", [i])
                target[j] = source[j]

    @R.function(pure=False)
    def main(x: R.Tensor((4,), "float32")):
        cls = NoKernels
        a = R.call_tir(cls.kernel, (x,), R.Tensor((4,), "float32"))
        b = R.sort(x)
        c = R.call_packed("test.any", x, ty_args=R.Tensor((4,), "float32"))
        d = R.nonzero(x)
        return (a, b, c, d)


@I.ir_module
class Devices:
    I.module_global_infos({"vdevice": [I.vdevice("llvm"), I.vdevice("llvm")]})

    @R.function
    def main(x: R.Tensor((4, 6), "float32", "llvm:0"), y: R.Tensor((4, 6), "float32", "llvm:1")):
        a = R.permute_dims(x)
        b = R.permute_dims(y)
        return (a, b)


MODULES = (Equal, Tuples, Constants, Symbolic, NoKernels, Devices)
NAMES = ("equal", "tuples", "constants", "symbolic", "no kernels", "devices")


def legalized(mod, *before):
    mod = tvm.transform.Sequential([*before, relax.transform.LegalizeOps()])(mod)
    mod = mod.clone()
    for gvar, function in mod.functions_items():
        if isinstance(function, tirx.PrimFunc):
            mod[gvar] = function.without_attr("op_pattern")
    return mod


@pytest.mark.parametrize("mod", MODULES, ids=NAMES)
def test_as_by_legalize_ops(mod):
    tvm.ir.assert_structural_equal(legalized(mod, LegalizeOnce()), legalized(mod))


def test_each_operator_once(monkeypatch):
    """Of seven calls, three are like others."""
    made = []
    stock = relax.BlockBuilder.call_te

    def call_te(self, *args, **kwargs):
        made.append(args)
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(relax.BlockBuilder, "call_te", call_te)
    legalized(Equal, LegalizeOnce())
    assert len(made) == 5
