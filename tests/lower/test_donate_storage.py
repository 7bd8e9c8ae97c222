"""DonateStorage: before and after; the plan; numbers, and who is never written over."""

import contextlib

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st
from lowered_machine import LoweredMachine, lowered
from memory import extra_mb, in_fresh_process, needs_clear_refs
from profiles import examples
from transforms import (
    RANDOM,
    run_both,
    tensors_in,
    transforms,
    without_what_fuse_tir_fails_at,
    without_what_is_refused,
)
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace import runtime
from relax_inplace.analysis import plan_storage
from relax_inplace.lower.donate_storage import DonateStorage
from relax_inplace.lower.tuple_objects import PARAM_TYPES
from relax_inplace.transform import InplaceTransformParams

NAME = "inplace_transform_params"

# -- before and after -----------------------------------------------------------------------


@I.ir_module
class TwoWeights:
    """What TVM lowers to. `transpose` may not write over what it reads, `scale` may."""

    @T.prim_func(s_tir=True)
    def transpose(a: T.handle, b: T.handle):
        T.evaluate(0)

    @T.prim_func(s_tir=True)
    def scale(a: T.handle, b: T.handle):
        T.func_attr({"relax_inplace.inplace": [[0, 1]]})
        T.evaluate(0)

    @R.function(pure=False)
    def main(
        params: R.Any,
    ) -> R.Any:
        cls = TwoWeights
        w0 = R.call_packed(
            "vm.builtin.tuple_getitem", params, 0, ty_args=R.Tensor((4, 8), "float32")
        )
        s0 = R.vm.alloc_storage(R.shape([128]), 0, R.dtype("uint8"), R.str("global"))
        t0 = R.vm.alloc_tensor(s0, 0, R.shape([8, 4]), R.dtype("float32"), 0)
        R.vm.kill_object(s0)
        cls.transpose(w0, t0)
        R.vm.kill_object(w0)
        R.call_packed("vm.builtin.inplace_update_tuple", params, 0, t0, ty_args=(R.Tuple,))
        R.vm.kill_object(t0)
        w1 = R.call_packed(
            "vm.builtin.tuple_getitem", params, 1, ty_args=R.Tensor((8, 4), "float32")
        )
        s1 = R.vm.alloc_storage(R.shape([128]), 0, R.dtype("uint8"), R.str("global"))
        t1 = R.vm.alloc_tensor(s1, 0, R.shape([8, 4]), R.dtype("float32"), 0)
        R.vm.kill_object(s1)
        cls.transpose(w1, t1)
        R.vm.kill_object(w1)
        s2 = R.vm.alloc_storage(R.shape([128]), 0, R.dtype("uint8"), R.str("global"))
        t2 = R.vm.alloc_tensor(s2, 0, R.shape([8, 4]), R.dtype("float32"), 0)
        R.vm.kill_object(s2)
        cls.scale(t1, t2)
        R.vm.kill_object(t1)
        R.call_packed("vm.builtin.inplace_update_tuple", params, 1, t2, ty_args=(R.Tuple,))
        R.vm.kill_object(t2)
        return params


@I.ir_module
class TwoWeightsDonated:
    """The second weight takes the first one's storage, and is scaled there."""

    @T.prim_func(s_tir=True)
    def transpose(a: T.handle, b: T.handle):
        T.evaluate(0)

    @T.prim_func(s_tir=True)
    def scale(a: T.handle, b: T.handle):
        T.func_attr({"relax_inplace.inplace": [[0, 1]]})
        T.evaluate(0)

    @R.function(pure=False)
    def main(
        params: R.Any,
    ) -> R.Any:
        cls = TwoWeightsDonated
        w0 = R.call_packed(
            "vm.builtin.tuple_getitem", params, 0, ty_args=R.Tensor((4, 8), "float32")
        )
        none: R.Any = R.null_value()
        host: R.Any = R.null_value()
        t0 = R.call_packed(
            "vm.builtin.donate_storage",
            none,
            host,
            R.shape([8, 4]),
            R.dtype("float32"),
            ty_args=R.Tensor((8, 4), "float32"),
        )
        cls.transpose(w0, t0)
        R.call_packed("vm.builtin.inplace_update_tuple", params, 0, t0, ty_args=(R.Tuple,))
        R.vm.kill_object(t0)
        w1 = R.call_packed(
            "vm.builtin.tuple_getitem", params, 1, ty_args=R.Tensor((8, 4), "float32")
        )
        host1: R.Any = R.null_value()
        t1 = R.call_packed(
            "vm.builtin.donate_storage",
            w0,
            host1,
            R.shape([8, 4]),
            R.dtype("float32"),
            ty_args=R.Tensor((8, 4), "float32"),
        )
        R.vm.kill_object(w0)
        cls.transpose(w1, t1)
        R.vm.kill_object(w1)
        host2: R.Any = R.null_value()
        t2 = R.call_packed(
            "vm.builtin.donate_storage",
            t1,
            host2,
            R.shape([8, 4]),
            R.dtype("float32"),
            ty_args=R.Tensor((8, 4), "float32"),
        )
        cls.scale(t1, t2)
        R.vm.kill_object(t1)
        R.call_packed("vm.builtin.inplace_update_tuple", params, 1, t2, ty_args=(R.Tuple,))
        R.vm.kill_object(t2)
        return params


PARAMS = relax.TupleType([relax.TensorType((4, 8), "float32"), relax.TensorType((8, 4), "float32")])


def donated(target):
    """What the pass makes of it, told what the tuple's type was."""
    mod = TwoWeights.clone()
    mod["main"] = mod["main"].with_attr(PARAM_TYPES, [PARAMS])
    with tvm.target.Target(target):
        return DonateStorage()(mod)


def test_before_and_after():
    tvm.ir.assert_structural_equal(donated("llvm"), TwoWeightsDonated)


def test_on_a_device_nothing_is_taken_or_dropped_before_it_was_read():
    """What is not taken is released first, and so is what a kernel in place may not have taken."""
    mod = donated(tvm.target.Target("cuda", host="llvm"))
    said = [str(one.value) for block in mod["main"].body.blocks for one in block.bindings]
    assert said[0].startswith('R.call_packed("vm.builtin.wait_for_readers", params')
    before = {
        text: said[i - 1].partition("vm.builtin.")[2].partition('"')[0]
        for i, text in enumerate(said)
        if text.startswith("R.vm.kill_object(")
    }
    assert before == {
        "R.vm.kill_object(t0)": "inplace_update_tuple",
        "R.vm.kill_object(w0)": "donate_storage",
        "R.vm.kill_object(t1)": "release_storage",
        "R.vm.kill_object(w1)": "release_storage",
        "R.vm.kill_object(t2)": "",
    }


def test_what_is_offered_is_spent_once_there_is_room_for_the_result():
    """An allocation that fails leaves the originals in their slots."""
    mod = inplace("""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((16, 4096), "float32"),
                                         R.Tensor((8, 4096), "float32"))):
        a = params[0]
        b = params[1]
        c = R.concat((b, a, b))
        return (c,)
""")
    after = lowered(mod)[NAME]
    said = [str(one.value) for block in after.body.blocks for one in block.bindings]
    steps = ["donate_storage", "inplace_update_tuple", "offer_pages", "concatenate("]
    found = [step for text in said for step in steps if step in text]
    assert found[: len(steps)] == steps
    assert found.count("offer_pages") == 1  # of the one that is given once


def lines_of(plan):
    return str(plan).splitlines()[1:]


def inplace(source):
    return InplaceTransformParams()(from_source(source))


# What cannot be computed where its input lies, though it is as large: each element needs all before.
SUMS = "R.cumsum({}, axis=1)"


def transposes(*shapes, dtype="float32", op="R.permute_dims({})"):
    """A transform that transposes each of its weights; or with another operator."""
    fields = ", ".join(f'R.Tensor({shape}, "{dtype}")' for shape in shapes)
    steps = "\n".join(f"            o{i} = {op.format(f'params[{i}]')}" for i in range(len(shapes)))
    return f"""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple({fields})):
        with R.dataflow():
{steps}
            out = ({"".join(f"o{i}, " for i in range(len(shapes)))})
            R.output(out)
        return out
"""


# -- the plan -------------------------------------------------------------------------------


def test_equal_layers_rotate_through_one_storage():
    plan = plan_storage(inplace(transposes(*[(4, 8)] * 4, op=SUMS)), "llvm")
    assert lines_of(plan) == [
        "slot 0 -> allocated, 128 bytes",
        "slot 1 -> storage of slot 0",
        "slot 2 -> storage of slot 1",
        "slot 3 -> storage of slot 2",
    ]
    assert plan.peak == plan.peak_without == 4 * 128 + 128


TWO_SIZES = [(512, 1024), (1024, 1024)] * 2  # 2 and 4 MB


def test_the_largest_go_first():
    """Layers of two sizes: what the larger ones leave, the smaller ones begin with."""
    plan = plan_storage(inplace(transposes(*TWO_SIZES, op=SUMS)), "llvm")
    assert lines_of(plan) == [
        "slot 1 -> allocated, 4,194,304 bytes",
        "slot 3 -> storage of slot 1",
        "slot 0 -> storage of slot 3",
        "slot 2 -> storage of slot 0",
    ]
    assert plan.peak == plan.peak_without == (2 * (2 + 4) + 4) << 20


def test_small_ones_stay_in_their_order():
    plan = plan_storage(inplace(transposes((4, 4), (4, 8), (4, 4))), "llvm")
    assert [one.tensor for one in plan.storages] == ["slot 0", "slot 1", "slot 2"]


def test_a_spare_storage_goes_where_it_would_raise_the_peak():
    """A weight that grows: 128 bytes are spare after the first, and do not fit beside 256 more."""
    source = """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32"),
                                         R.Tensor((4, 4), "float32"))):
        with R.dataflow():
            o0 = R.cumsum(params[0], axis=1)
            o1 = R.concat((params[1], params[2], params[2]), axis=1)
            o2 = R.cumsum(params[2], axis=1)
            out = (o0, o1, o2)
            R.output(out)
        return out
"""
    plan = plan_storage(inplace(source), "llvm")
    assert plan.peak == plan.peak_without
    assert {one.tensor: one.takes for one in plan.storages} == {
        "slot 0": None,
        "slot 1": None,
        "slot 2": "slot 1",
    }


BESIDE_A_BRANCH = """
@I.ir_module
class Module:
    @R.function(pure=False)
    def transform_params(flag: R.Tensor((), "bool"), x: R.Tensor((4, 4), "float32"),
                         y: R.Tensor((2, 4), "float32"), params: R.Tuple(R.Tensor((2,), "int8"))):
        R.func_attr({"num_input": 3})
        t = R.exp(x)
        s = R.sum(t)
        if flag:
            a = R.exp(y)
            r = a
        else:
            b = R.negative(y)
            r = b
        c = R.astype(r, "float16")
        d = R.exp(y)
        return (s, c, d)
"""


@pytest.mark.parametrize("branch", [0, 1])
def test_beside_a_branch(branch):
    """What is spent before a branch is not kept for what comes after it: the branch allocates."""
    after = inplace(BESIDE_A_BRANCH)
    without, donated = (
        LoweredMachine(lowered(after, donates=donates), NAME, {}, branch)
        for donates in (False, True)
    )
    assert donated.peak == without.peak == 84


READ_AGAIN = """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 4), "float32"),
                                         R.Tuple(R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32")))):
        pair = params[1]
        w = pair[1]
        o = R.multiply(w, R.const(2.0, "float32"))
        return (o, R.const([1.0, 2.0]), pair)
"""


def test_what_is_read_again_is_not_written_over():
    """Of a nested tuple that comes to be in another one, after a kernel that could be in place."""
    before = from_source(READ_AGAIN)
    after = InplaceTransformParams()(before)
    assert lines_of(plan_storage(after, "llvm")) == ["slot 0 -> allocated, 64 bytes"]
    run_both(before, after, "compile")


def test_symbolic_sizes():
    source = transposes(("n", 8), ("n", 8), ("m", 8), op=SUMS)
    plan = plan_storage(inplace(source), "llvm")
    assert sorted(lines_of(plan)) == [
        "slot 0 -> allocated, 32*n bytes",
        "slot 1 -> storage of slot 0",
        "slot 2 -> allocated, 32*m bytes",
    ]


def test_another_device():
    """Pages of a GPU are not given back: an allocation for each size."""
    target = tvm.target.Target("cuda", host="llvm")
    plan = plan_storage(inplace(transposes(*TWO_SIZES)), target)
    assert [one.takes for one in plan.storages] == [None, "slot 1", None, "slot 0"]


def test_which_function():
    mod = inplace(transposes((4, 8), op=SUMS))
    with pytest.raises(ValueError, match=r"function='main'.*\['inplace_transform_params'\]"):
        plan_storage(mod, "llvm", "main")
    assert '"takes": null' in plan_storage(mod, "llvm", NAME).to_json()


# -- numbers --------------------------------------------------------------------------------


def compiled(source):
    mod = inplace(source)
    return relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())


def address(tensor):
    return np.from_dlpack(tensor).ctypes.data


def test_a_layer_lies_where_the_one_before_it_was():
    vm = compiled(transposes(*[(4, 8)] * 3, op=SUMS))
    arrays = [RANDOM.standard_normal((4, 8)).astype("float32") for _ in range(3)]
    weights = tvm_ffi.Array([tvm.runtime.tensor(array) for array in arrays])
    before = [address(weight) for weight in weights]
    vm[NAME](weights)
    assert [address(weight) for weight in weights][1:] == before[:2]
    for weight, array in zip(weights, arrays, strict=True):
        assert weight.numpy().tobytes() == array.cumsum(axis=1).tobytes()


def test_what_is_converted_can_be_converted_again():
    """A new weight owns its storage, and can be donated in turn."""
    vm = compiled(transposes(*[(4, 4)] * 3, op=SUMS))
    arrays = [RANDOM.standard_normal((4, 4)).astype("float32") for _ in range(3)]
    weights = tvm_ffi.Array([tvm.runtime.tensor(array) for array in arrays])
    vm[NAME](weights)
    before = [address(weight) for weight in weights]
    vm[NAME](weights)
    assert [address(weight) for weight in weights][1:] == before[:2]
    for weight, array in zip(weights, arrays, strict=True):
        assert weight.numpy().tobytes() == array.cumsum(axis=1).cumsum(axis=1).tobytes()


def test_the_report_counts():
    vm = compiled(transposes(*[(4, 8)] * 8, op=SUMS))
    weights = runtime.Params([tvm.runtime.tensor(np.ones((4, 8), "float32")) for _ in range(8)])
    report = runtime.transform_params(vm, weights).report
    assert report.reused == 7
    assert report.allocated == {"first of its size": 1}


# -- what is never written over -------------------------------------------------------------


def layers(count=4):
    arrays = [RANDOM.standard_normal((4, 8)).astype("float32") for _ in range(count)]
    return arrays, tvm_ffi.Array([tvm.runtime.tensor(array) for array in arrays])


def check(arrays, weights):
    for weight, array in zip(weights, arrays, strict=True):
        assert weight.numpy().tobytes() == array.T.tobytes()


def test_tied_weights():
    """Each is read after the other has been replaced."""
    vm = compiled(transposes(*[(4, 8)] * 4))
    array = RANDOM.standard_normal((4, 8)).astype("float32")
    tied = tvm.runtime.tensor(array)
    other = tvm.runtime.tensor(array + 1)
    weights = tvm_ffi.Array([tied, other, tied, other])
    del tied, other
    vm[NAME](weights)
    check([array, array + 1, array, array + 1], weights)


def test_an_outside_reference():
    vm = compiled(transposes(*[(4, 8)] * 4))
    arrays, weights = layers()
    outside = weights[1]
    vm[NAME](weights)
    check(arrays, weights)
    assert outside.numpy().tobytes() == arrays[1].tobytes()


def test_a_dlpack_import():
    vm = compiled(transposes(*[(4, 8)] * 4))
    arrays, weights = layers()
    own = np.array(arrays[1])
    weights = tvm_ffi.Array([weights[0], tvm_ffi.from_dlpack(own), *weights[2:]])
    vm[NAME](weights)
    check(arrays, weights)
    assert own.tobytes() == arrays[1].tobytes()


def test_a_dlpack_export():
    vm = compiled(transposes(*[(4, 8)] * 4))
    arrays, weights = layers()
    outside = np.from_dlpack(weights[1])
    vm[NAME](weights)
    check(arrays, weights)
    assert outside.tobytes() == arrays[1].tobytes()


def test_a_view():
    vm = compiled(transposes(*[(4, 8)] * 4))
    arrays, weights = layers()
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    outside = view(weights[1], tvm_ffi.Shape([32]), "float32", 0)
    vm[NAME](weights)
    check(arrays, weights)
    assert outside.numpy().tobytes() == arrays[1].tobytes()


def test_a_weight_that_is_a_view():
    vm = compiled(transposes(*[(4, 8)] * 4))
    arrays, weights = layers()
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    base = tvm.runtime.tensor(np.stack([arrays[1], arrays[2]]))
    views = [view(base, tvm_ffi.Shape([4, 8]), "float32", 128 * half) for half in (0, 1)]
    weights = tvm_ffi.Array([weights[0], views[0], weights[3], weights[3]])
    del views[0]
    vm[NAME](weights)
    check([arrays[0], arrays[1], arrays[3], arrays[3]], weights)
    assert base.numpy().tobytes() == np.stack([arrays[1], arrays[2]]).tobytes()


@contextlib.contextmanager
def _references(weights, how):
    """Something outside refers to some of the weights, and sees the same bytes afterwards."""
    make_view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    kept = []
    for tensor, kind in zip(tensors_in(weights[0] if weights else []), how, strict=False):
        bytes_of = tensor.numpy().tobytes()
        if kind == "variable":
            kept.append((tensor, bytes_of))
        elif kind == "export" and str(tensor.dtype) != "bool":
            kept.append((tvm_ffi.from_dlpack(np.from_dlpack(tensor)), bytes_of))
        elif kind == "view":
            kept.append((make_view(tensor, tensor.shape, tensor.dtype, 0), bytes_of))
    tensor = None
    yield
    for outside, before in kept:
        assert outside.numpy().tobytes() == before


KINDS = ["none", "none", "variable", "export", "view"]


@examples(50)
@given(transforms(), st.lists(st.sampled_from(KINDS), min_size=8, max_size=8))
def test_any_reference(transform, how):
    """The outside sees its old bytes, and the results are those of the out-of-place function."""
    before = from_source(transform.source)
    with without_what_is_refused():
        after = InplaceTransformParams(params=transform.params)(before)
    with without_what_fuse_tir_fails_at():
        run_both(before, after, "compile", referring=lambda weights: _references(weights, how))


# -- memory ---------------------------------------------------------------------------------


def _extra_of_eight():
    """8 uint8 weights of 16 MB, glibc as it is; its threshold raised by what was freed before."""
    side = 4096
    vm = compiled(transposes(*[(side, side)] * 8, dtype="uint8"))
    for mb in (16, 24, 31):
        np.ones(mb << 20, "uint8").sum()
    array = np.arange(side * side, dtype="uint32").astype("uint8").reshape(side, side)
    weights = tvm_ffi.Array([tvm.runtime.tensor(array) for _ in range(8)])
    extra = extra_mb(lambda: vm[NAME](weights))
    check([array] * 8, weights)
    return extra


@needs_clear_refs
def test_resident_memory():
    assert in_fresh_process(_extra_of_eight, with_defaults=True) < 16 + 4
