"""FreeTemporaries: before and after, on what TVM lowers to; then numbers and resident memory."""

import shutil
from textwrap import indent

import numpy as np
import pytest
import tvm
import tvm_ffi
from memory import extra_mb, in_fresh_process, needs_clear_refs
from pipelines import PIPELINES, load
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

import relax_inplace
from relax_inplace import inplace_update_tuple
from relax_inplace.transform import FreeTemporaries

# -- before and after -----------------------------------------------------------------------

# What TVM lowers to, in short: a storage of so many bytes, a float32 tensor in it of so many
# elements; `new`, a tensor and the storage that it alone holds.
SHORT = {
    "storage": '{0} = R.vm.alloc_storage(R.shape([{1}]), 0, R.dtype("uint8"), R.str("global"))',
    "tensor": '{0} = R.vm.alloc_tensor({1}, 0, R.shape([{2}]), R.dtype("float32"), 0)',
    "kill": "R.vm.kill_object({0})",
    "read": "{0} = params[{1}]",
    "kernel": "cls.kernel({0}, {1})",
    "view": '{0} = R.call_packed("vm.builtin.reshape", {1}, R.shape([{2}]), '
    'ty_args=R.Tensor(({2},), "float32"))',
    "tuple": "{0} = ({1},)",
    "packed": 'R.call_packed("packed", {0}, ty_args=(R.Tuple,))',
    "update": 'R.call_packed("vm.builtin.inplace_update_tuple", params, {0}, {1}, '
    "ty_args=(R.Tuple,))",
    "clear": 'R.call_packed("vm.builtin.memory_manager.clear", ty_args=(R.Tuple,))',
}
SHORT["new"] = "\n".join(
    [
        SHORT["storage"].replace("{0}", "own"),
        SHORT["tensor"].replace("{1}", "own").replace("{2}", "{1} // 4"),
        SHORT["kill"].replace("{0}", "own"),
    ]
)


def lowered(body):
    lines = [SHORT[name].format(*operands) for name, *operands in map(str.split, body)]
    return from_source(
        f"""
@I.ir_module
class Module:
    @T.prim_func(s_tir=True)
    def kernel(a: T.handle, b: T.handle):
        T.evaluate(0)

    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor(ndim=1), R.Tensor(ndim=1)), x: R.Tensor(ndim=1)):
        cls = Module
        {SHORT["update"].format(1, "x")}
{indent(chr(10).join(lines), " " * 8)}
        return params
"""
    )


def after(body):
    return FreeTemporaries()(lowered(body))


def test_a_shared_storage():
    """The second weight's tensor is smaller than the storage that it shares with the first's."""
    tvm.ir.assert_structural_equal(
        after(
            [
                "read w 0",
                "storage s 40000",
                "tensor a s 10000",
                "kernel w a",
                "kill w",
                "new b 40000",
                "kernel a b",
                "kill a",
                "update 0 b",
                "kill b",
                "read v 1",
                "tensor d s 5000",
                "kill s",
                "kernel v d",
                "kill v",
                "new e 20000",
                "kernel d e",
                "kill d",
                "update 1 e",
                "kill e",
            ]
        ),
        lowered(
            [
                "read w 0",
                "new a 40000",
                "kernel w a",
                "kill w",
                "new b 40000",
                "kernel a b",
                "kill a",
                "update 0 b",
                "kill b",
                "read v 1",
                "clear",
                "new d 20000",
                "kernel v d",
                "kill v",
                "new e 20000",
                "kernel d e",
                "kill d",
                "update 1 e",
                "kill e",
                "clear",
            ]
        ),
    )


def test_tensors_that_stay_in_the_tuple():
    """One kernel for each weight: nothing to do."""
    body = []
    for index in range(2):
        size = 40000 * (index + 1)
        body += [f"read w{index} {index}", f"new a{index} {size}", f"kernel w{index} a{index}"]
        body += [f"kill w{index}", f"update {index} a{index}", f"kill a{index}"]
    mod = lowered(body)
    assert FreeTemporaries()(mod)["main"].same_as(mod["main"])


@pytest.mark.parametrize(
    "body",
    [
        # 40000 and 40100 bytes are as many pages, and 20000 are not.
        "new a 40000/kill a/new b 40100/update 0 b",
        "new a 40000/kill a/clear/new b 20000/update 0 b",
        # One lies in the pool, not two.
        "new a 40000/kill a/new b 40000/new d 40000",
        "new a 40000/new b 20000/kill b/kill a/new d 40000/clear/new e 40000",
        # It is free when the view, or the tuple, is.
        "new a 40000/view v a 10000/kill a/new b 20000",
        "new a 40000/view v a 10000/kill a/kill v/clear/new b 20000",
        "new a 40000/view v a 10000/kill a/kill v/new b 40000",
        "new a 40000/tuple t a/kill a/new b 20000",
        "new a 40000/tuple t a/kill a/kill t/new b 40000",
        # Not surely in the pool: the function may have kept it.
        "new a 40000/packed a/kill a/clear/new b 40000",
        "new a 40000/view v a 10000/packed v/kill a/kill v/clear/new b 40000",
        # In the tuple, until the slot is updated again; not surely free even then.
        "new a 40000/update 0 a/kill a/new b 20000/update 1 b/kill b/new d 20000",
        "new a 40000/update 0 a/kill a/update 0 x/clear/new b 40000",
        "new a 40000/update 0 a/kill a/read r 0/update 0 x/new b 40000/kill r/clear/new d 40000",
        # Temporaries are not left to others.
        "new a 40000/kill a/clear",
        "new a 40000/update 0 a/kill a/update 0 x/clear",
    ],
)
def test_where_the_pool_is_emptied(body):
    expected = body.split("/")
    before = [line for line in expected if line != "clear"]
    tvm.ir.assert_structural_equal(after(before), lowered(expected))


# -- numbers and memory ---------------------------------------------------------------------

SIDES = (4096, 2048)  # 64 and 16 MB


def planned(sides, ops, shapes=None, attrs=None):
    """Each weight through four kernels, its slot emptied once read and updated at the end."""
    shapes = shapes or [(side, side) for side in sides]
    params = relax.Var(
        "params", relax.TupleType([relax.TensorType(shape, "float32") for shape in shapes])
    )
    builder = relax.BlockBuilder()
    with builder.function("main", [params], attrs=attrs, pure=False):
        p = params
        for index in range(len(shapes)):
            w = builder.emit(relax.TupleGetItem(p, index))
            empty = builder.emit(relax.op.null_value())
            p = builder.emit(inplace_update_tuple(p, index, empty))
            for op in ops:
                w = builder.emit(op(w))
            p = builder.emit(inplace_update_tuple(p, index, w))
        builder.emit_func_output(p)
    return builder.get()
