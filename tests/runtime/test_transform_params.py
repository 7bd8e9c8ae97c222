"""transform_params: weights of whatever holds them, converted where they are."""

import gc
import json

import numpy as np
import pytest
import tvm
import tvm_ffi
from compiled_transforms import arrays, compiled, scaled, tensors, transposes, weights
from live_bytes import watched
from tvm import relax
from tvm.script import from_source

from relax_inplace.runtime import (
    ConvertedError,
    HeldWeightsError,
    MismatchError,
    ModuleError,
    Params,
    Transform,
    transform_params,
)
from relax_inplace.runtime.provenance import Provenance
from relax_inplace.transform import LiftInplaceTransformParams


def numpy_of(values):
    return [value.numpy() for value in values]


def is_transposed(values, originals):
    return all(
        np.array_equal(value.numpy(), original.T)
        for value, original in zip(values, originals, strict=True)
    )


# -- what holds them ------------------------------------------------------------------------------

HOLDERS = {
    "Params": lambda transform, values: Params(values, [w.name for w in transform.weights]),
    "Params without names": lambda _, values: Params(values),
    "Array": lambda _, values: tvm_ffi.Array(values),
    "list": lambda _, values: values,
    "dict": lambda transform, values: dict(
        zip([w.name for w in transform.weights], values, strict=True)
    ),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_a_holder_is_updated_in_place_and_its_originals_are_freed(kind):
    transform = transposes()
    originals, watches = arrays(transform), []

    def tensor(array):
        made, watch = watched(array)
        watches.append(watch[0])
        return made

    holder = HOLDERS[kind](transform, [tensor(array) for array in originals])
    result = transform_params(transform, holder)
    assert isinstance(result, Params)
    assert is_transposed(result, originals)
    now = list(holder.values()) if isinstance(holder, dict) else list(holder)
    assert [one.shape for one in now] == [one.shape for one in result]
    assert [watch() for watch in watches] == [None] * 3
    assert result.report.held == []
    if isinstance(holder, Params):
        assert result is holder
    if isinstance(holder, dict):
        assert list(holder) == ["w0", "w1", "w2"]


def test_a_dict_may_be_in_any_order():
    transform = transposes()
    originals = arrays(transform)
    given = {f"w{i}": tvm.runtime.tensor(originals[i]) for i in (2, 0, 1)}
    assert is_transposed(transform_params(transform, given), originals)


def test_a_function_without_its_module():
    """Nothing is known of its weights but what they are: it works, and the report has no plan."""
    transform = transposes()
    originals = arrays(transform)
    params = transform_params(transform.function, weights(transform))
    assert is_transposed(params, originals)
    assert params.names == ("0", "1", "2")
    assert params.report.predicted_peak is None
    assert params.provenance == Provenance("transform")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1, 2), "expected Params, an ffi.Array, a list or a dict, but got tuple"),
        ([np.zeros(3)], "expected tensors of TVM, but got numpy.ndarray, whose memory"),
        (None, "but got NoneType"),
    ],
)
def test_what_cannot_be_taken_over(given, expected):
    with pytest.raises(TypeError, match=expected):
        transform_params(transposes(), given)


def test_a_dict_of_other_names():
    transform = transposes()
    first, second, third = weights(transform)
    given = {"w0": first, "other": second, "w2": third}
    with pytest.raises(MismatchError, match=r"1 missing \('w1'\) and 1 too many \('other'\)"):
        transform_params(transform, given)
    assert list(given) == ["w0", "other", "w2"]


# -- what they become ----------------------------------------------------------------------------


def test_nested_tuples():
    types = f"{tensors((2, 3))}, R.Tuple({tensors((4, 5), (6, 7))})"
    body = """
a = params[1]
t = R.permute_dims(a[1])
u = R.permute_dims(params[0])
v = R.permute_dims(a[0])
return (u, (v, t))
"""
    transform = Transform.of(compiled(types, body))
    assert [one.slot for one in transform.weights] == ["0", "1.0", "1.1"]
    originals = arrays(transform)
    first, second, third = weights(transform)
    given = Params([first, [second, third]])
    del first, second, third
    params = transform_params(transform, given)
    assert is_transposed(params, originals)
    assert [len(field) for field in params.fields if isinstance(field, tvm_ffi.Array)] == [2]
    by_name = {
        one.name: tvm.runtime.tensor(a) for one, a in zip(transform.weights, originals, strict=True)
    }
    assert is_transposed(transform_params(transform, by_name), originals)


@pytest.mark.parametrize("kind", HOLDERS)
def test_fewer_and_more_fields(kind):
    body = "a = params[0]\nb = params[1]\nc = R.concat((a, b))\nreturn (c,)"
    transform = Transform.of(compiled(tensors((2, 3), (4, 3)), body))
    originals = arrays(transform)
    holder = HOLDERS[kind](transform, weights(transform))
    params = transform_params(transform, holder)
    assert np.array_equal(params[0].numpy(), np.concatenate(originals))
    assert len(params) == 1
    if kind == "Array":  # cannot shrink: it is left empty
        assert list(holder) == [None, None]
    else:
        assert len(holder) == 1

    body = "a = params[0]\ns = R.split(a, 2)\nreturn (s[0], s[1], a)"
    transform = Transform.of(compiled(tensors((2, 3)), body))
    original = arrays(transform)[0]
    holder = HOLDERS[kind](transform, weights(transform))
    params = transform_params(transform, holder)
    assert np.array_equal(np.concatenate(numpy_of(params)[:2]), original)
    assert np.array_equal(params[2].numpy(), original)


def test_names_go_where_the_weights_go():
    body = "a = params[0]\nb = params[1]\nt = R.permute_dims(b)\nreturn (t, a)"
    params = transform_params(compiled(tensors((2, 3), (4, 3)), body), weights_of((2, 3), (4, 3)))
    assert params.names == ("b", "a")
    assert params["a"].shape == (2, 3)
    assert params["b"].shape == (3, 4)


def weights_of(*shapes):
    return [tvm.runtime.tensor(np.zeros(shape, "float32")) for shape in shapes]


def test_inputs_before_the_weights():
    scale = tvm.runtime.tensor(np.array(3, "float32"))
    params = transform_params(
        scaled(), [tvm.runtime.tensor(np.ones((2, 3), "float32"))], inputs=[scale]
    )
    assert (params["a"].numpy() == 3).all()


# -- the mark -------------------------------------------------------------------------------------


def test_weights_are_converted_once():
    transform = transposes()
    params = Params(weights(transform), ["w0", "w1", "w2"], source="abc")
    transform_params(transform, params)
    assert params.provenance == Provenance("inplace_transform_params", transform.layout, "abc")
    assert len(transform.layout) == 16
    message = (
        "weights that `inplace_transform_params` has converted, expected weights as they were "
        "stored; use them as they are, or restore_params"
    )
    with pytest.raises(ConvertedError, match=message):
        transform_params(transform, params)


def test_equal_transforms_have_equal_layouts():
    types, body = tensors((4, 8)), "a = params[0]\nt = R.permute_dims(a)\nreturn (t,)"
    layout = Transform.of(compiled(types, body)).layout
    renamed = body.replace("t =", "u =").replace("(t,)", "(u,)")
    assert Transform.of(compiled(types, renamed)).layout == layout
    assert (
        Transform.of(compiled(types, body.replace("permute_dims(a)", "negative(a)"))).layout
        != layout
    )
    assert Transform.of(compiled(tensors((4, 9)), body)).layout != layout


# -- who else holds them -------------------------------------------------------------------------


def held_by(transform, params, **options):
    return [str(one) for one in transform_params(transform, params, **options).report.held]


OUTSIDE = "something outside: a variable, a container, or an array that shares its memory"


def test_a_variable():
    transform = transposes()
    params = Params(weights(transform), ["w0", "w1", "w2"])
    kept = params[1]
    before = kept.numpy()
    with pytest.raises(HeldWeightsError, match=r"slot 1 `w1` \(144 bytes\) is held by something"):
        transform_params(transform, params, strict=True)
    assert params.provenance is None
    assert params[1].same_as(kept)
    assert held_by(transform, params) == [f"slot 1 `w1` (144 bytes) is held by {OUTSIDE}"]
    assert np.array_equal(kept.numpy(), before)


def test_an_array_that_shares_its_memory():
    transform = transposes()
    params = Params(weights(transform), ["w0", "w1", "w2"])
    view = np.from_dlpack(params[2])
    before = view.copy()
    assert held_by(transform, params) == [f"slot 2 `w2` (160 bytes) is held by {OUTSIDE}"]
    assert np.array_equal(view, before)


def test_a_second_slot():
    types = tensors((4, 8), (4, 8))
    body = (
        "a = params[0]\nb = params[1]\ns = R.permute_dims(a)\nt = R.permute_dims(b)\nreturn (s, t)"
    )
    transform = Transform.of(compiled(types, body))
    tensor = weights(transform)[0]
    params = Params([tensor, tensor], ["a", "b"])
    original = tensor.numpy()
    del tensor
    with pytest.raises(
        HeldWeightsError, match=r"slot 1 `b` .* slot 0, which holds the same tensor"
    ):
        transform_params(transform, params, strict=True)
    assert held_by(transform, params) == [
        "slot 1 `b` (128 bytes) is held by slot 0, which holds the same tensor"
    ]
    assert is_transposed(params, [original, original])


def test_the_tensor_cache_of_tvm():
    transform = transposes()
    params = Params(weights(transform), ["w0", "w1", "w2"])
    tvm.get_global_func("vm.builtin.tensor_cache.update")("w0", params[0], True)
    try:
        assert held_by(transform, params) == [
            "slot 0 `w0` (128 bytes) is held by TVM's tensor cache (vm.builtin.tensor_cache.clear empties it)"
        ]
    finally:
        tvm.get_global_func("vm.builtin.tensor_cache.clear")()


def test_a_list_whose_tensors_are_held_is_refilled():
    transform = transposes()
    given = weights(transform)
    kept = given[0]
    with pytest.raises(HeldWeightsError):
        transform_params(transform, given, strict=True)
    assert len(given) == 3
    assert given[0].same_as(kept)


# -- weights that do not fit ----------------------------------------------------------------------


def test_all_that_differ_are_listed():
    transform = transposes()
    given = weights_of((4, 8), (4, 7), (3,))
    with pytest.raises(MismatchError) as caught:
        transform_params(transform, given)
    assert str(caught.value) == (
        "transform_params: 2 of another type ('w1' is float32[4, 7], expected float32[4, 9], 'w2' "
        "is float32[3], expected float32[4, 10]), expected the weights of inplace_transform_params; "
        "these are weights of another model, or of another version of it"
    )
    assert len(caught.value.mismatched) == 2
    assert [one.shape for one in given] == [(4, 8), (4, 7), (3,)]
    with pytest.raises(MismatchError, match=r"1 missing .'w2'."):
        transform_params(transform, weights_of((4, 8), (4, 9)))
    with pytest.raises(MismatchError, match=r"1 too many .'3'."):
        transform_params(transform, weights_of((4, 8), (4, 9), (4, 10), (4, 11)))


def test_symbolic_dimensions_agree():
    body = (
        "a = params[0]\nb = params[1]\ns = R.permute_dims(a)\nt = R.permute_dims(b)\nreturn (s, t)"
    )
    transform = Transform.of(compiled(tensors('("n", 2)', '(3, "n")'), body))
    assert [one.shape for one in transform.weights] == [("n", 2), (3, "n")]
    transform_params(transform, weights_of((5, 2), (3, 5)))
    with pytest.raises(MismatchError, match=r"'b' is float32\[3, 4\], expected .* with n = 5"):
        transform_params(transform, weights_of((5, 2), (3, 4)))


def test_more_memory_than_there_is(monkeypatch):
    from relax_inplace.runtime.convert import observe

    transform = Transform.of(transposes().vm)
    monkeypatch.setattr(observe, "available_bytes", lambda device: 100)
    params = Params(weights(transform))
    with pytest.raises(MemoryError, match=r"needs 160 bytes beside .* but 100 are free on cpu:0"):
        transform_params(transform, params)
    assert [one.shape for one in params] == [(4, 8), (4, 9), (4, 10)]


def test_a_streamed_transform_is_refused():
    with pytest.raises(ModuleError, match=r"asks for its weights one by one.*call stream_params"):
        transform_params(transposes(lazy=True), [])


# -- progress and report --------------------------------------------------------------------------


def test_progress_counts_the_bytes_of_the_weights():
    """Of each once: when the new weight is there."""
    transform, seen = transposes(), []
    transform_params(transform, weights(transform), progress=seen.append)
    expected = [(128, 432, "w0"), (272, 432, "w1"), (432, 432, "w2")]
    assert [(one.done, one.total, one.name) for one in seen] == expected


def test_report():
    transform = transposes()
    report = transform_params(transform, weights(transform)).report
    assert (report.converted, report.weights_before, report.weights_after) == (432, 432, 432)
    assert report.predicted_peak == 432 + 160
    assert report.predicted_extra == 160
    assert report.peak >= max(report.before, report.after) - 1
    said = json.loads(report.to_json())
    assert said["converted"] == 432
    assert said["samples"][0]["host"] == report.before
    lines = str(report).splitlines()
    assert lines[0].startswith("inplace_transform_params: 432 bytes converted in ")
    assert "160 bytes planned" in lines[2]


def test_nothing_is_kept():
    transform = transposes()
    made = transform_params(transform, weights(transform))
    gc.collect()
    assert list(tvm_ffi.get_global_func("relax_inplace.OutsideReferences")(made.fields)[0]) == [
        0,
        0,
        0,
    ]


# -- what is reported -----------------------------------------------------------------------------


def test_a_tensor_in_two_slots_is_resident_once():
    """A tied embedding, in a table's form and in a product's: it has grown by the second one."""
    mod = from_source("""
@I.ir_module
class Module:
    @R.function
    def main(
        i: R.Tensor((2,), "int32"),
        embed: R.Tensor((1024, 512), "float32"),
        head: R.Tensor((1024, 512), "float32"),
    ):
        R.func_attr({"num_input": 1})
        h = R.take(embed, i, axis=0)
        return R.matmul(h, R.permute_dims(head))
""")
    lift = LiftInplaceTransformParams(tied=[("embed", "head")])
    transform = Transform.of(relax.VirtualMachine(tvm.compile(lift(mod), "llvm"), tvm.cpu()))
    size = 1024 * 512 * 4
    tensor = tvm.runtime.tensor(np.ones((1024, 512), "float32"))
    params = Params([tensor, tensor], [one.name for one in transform.weights])
    report = transform_params(transform, params, progress=False).report
    assert (report.weights_before, report.weights_after, report.grown) == (size, 2 * size, size)
    assert report.predicted_extra == 0
    apart = Params([tvm.runtime.tensor(tensor.numpy()) for _ in range(2)], params.names)
    report = transform_params(transform, apart, progress=False).report
    assert (report.weights_before, report.weights_after, report.grown) == (2 * size, 2 * size, 0)
