"""restore_params, and transform_params(verify=True): what goes with a transform."""

import sys

import numpy as np
import pytest
import tvm
import tvm_ffi
from compiled_transforms import HEAD, arrays, compiled, tensors, transposes, weights
from memory import extra_mb, in_fresh_process, needs_clear_refs
from tvm.script import from_source

from relax_inplace.analysis import UnsupportedTransformError
from relax_inplace.runtime import (
    ConvertedError,
    ModuleError,
    Params,
    Transform,
    VerificationError,
    load_params,
    restore_params,
    save_params,
    transform_params,
)
from relax_inplace.transform import InplaceTransformParams

# The second weight goes to the first slot, two make one, and a nested tuple is made.
TYPES = f"{tensors((4, 8), (6, 8))}, R.Tuple({tensors((2, 3), (5, 3))})"
BODY = """
a = params[0]
b = params[1]
n = params[2]
t = R.permute_dims(a)
c = R.concat((n[0], n[1]))
return (b, (t, c))
"""


def restorable(**options):
    return Transform.of(compiled(TYPES, BODY, restore=True, **options), "inplace_transform_params")


def given(transform):
    names = [one.name for one in transform.weights]
    first, second, third, fourth = weights(transform)
    return Params([first, second, [third, fourth]], names, source="here")


# -- back ------------------------------------------------------------------------------------------


def test_back_bit_by_bit():
    transform = restorable()
    assert [(one.slot, one.shape) for one in transform.params] == [
        ("0", (6, 8)),
        ("1.0", (8, 4)),
        ("1.1", (7, 3)),
    ]
    params = given(transform)
    names = params.names
    assert transform_params(transform, params).provenance is not None
    assert restore_params(transform, params) is params
    assert params.provenance is None
    assert params.names == names
    for one, original in zip(params, arrays(transform), strict=True):
        assert np.array_equal(one.numpy(), original)
    assert params.report.transform == "inplace_restore_params"
    assert transform_params(transform, params).provenance is not None


def test_back_from_files(tmp_path):
    transform = transposes(restore=True)
    params = Params(weights(transform), [one.name for one in transform.weights])
    save_params(transform_params(transform, params), tmp_path)
    restored = restore_params(transform, load_params(tmp_path, tvm.cpu(), transform))
    for one, original in zip(restored, arrays(transform), strict=True):
        assert np.array_equal(one.numpy(), original)


def test_what_is_not_converted_is_not_restored():
    transform = restorable()
    with pytest.raises(ConvertedError, match=r"weights without a mark, expected .* has converted"):
        restore_params(transform, given(transform))


def test_what_another_transform_has_converted_is_not_restored():
    transform = restorable()
    params = transform_params(transform, given(transform))
    other = transposes(restore=True)
    with pytest.raises(ConvertedError, match=r"weights in layout \w+, expected layout \w+, which"):
        restore_params(other, params)


def test_a_module_that_does_not_restore():
    transform = transposes()
    params = transform_params(transform, weights(transform))
    with pytest.raises(ModuleError, match=r"build the module with restore=True"):
        restore_params(transform, params)


def test_a_restoring_function_does_not_convert():
    vm = transposes(restore=True).vm
    back = Transform.of(vm, "inplace_restore_params")
    with pytest.raises(ModuleError, match=r"which restores.*call restore_params"):
        transform_params(back, [])


# -- verified --------------------------------------------------------------------------------------


def test_verified():
    transform = restorable(reference=True)
    params = transform_params(transform, given(transform), verify=True)
    assert params.report.verified
    assert "every field is bitwise that of an out-of-place conversion" in str(params.report)
    assert (
        list(tvm_ffi.get_global_func("relax_inplace.OutsideReferences")(params.fields)[0])
        == [0] * 3
    )


def _extra_of_verifying(count, verify):
    types = tensors(*[(2048, 2048)] * count)
    body = "".join(f"w{i} = params[{i}]\nt{i} = R.permute_dims(w{i})\n" for i in range(count))
    body += f"return ({', '.join(f't{i}' for i in range(count))})"
    transform = Transform.of(compiled(types, body, reference=True))
    params = Params([tvm.runtime.tensor(np.ones((2048, 2048), "float32")) for _ in range(count)])
    return extra_mb(lambda: transform_params(transform, params, verify=verify))


@needs_clear_refs
def test_one_weight_at_a_time():
    """8 weights of 16.8 MB: a copy of one, and what is made of it; no second copy of all."""
    assert in_fresh_process(_extra_of_verifying, 8, False) < 1.1 * 16
    assert in_fresh_process(_extra_of_verifying, 8, True) < 2.2 * 16


@pytest.mark.parametrize("field", range(3))
def test_a_wrong_bit_is_found(field, monkeypatch):
    """A conversion whose memory goes bad."""
    module = sys.modules["relax_inplace.runtime.transform_params"]
    stock = module.convert

    def convert(transform, ownership, *args, **kwargs):
        report = stock(transform, ownership, *args, **kwargs)
        np.from_dlpack(ownership.params._leaves()[field]).view("uint32").flat[5] ^= 1 << 17
        return report

    monkeypatch.setattr(module, "convert", convert)
    transform = transposes(reference=True)
    with pytest.raises(VerificationError, match=rf"1 of 3 fields differ .*: w{field}") as caught:
        transform_params(transform, weights(transform), verify=True)
    assert caught.value.names == [f"w{field}"]
    assert caught.value.params.provenance is not None


def test_a_module_without_a_reference():
    with pytest.raises(ModuleError, match=r"without a reference.*reference=True"):
        transform_params(transposes(), weights(transposes()), verify=True)


def test_a_failure_while_verifying_changes_nothing(monkeypatch):
    """What runs on copies fails before the weights are touched: they can be converted."""
    module = sys.modules["relax_inplace.runtime.transform_params"]
    copies = []

    def copy(tensor):
        copies.append(tensor.shape)
        if len(copies) == 2:
            raise MemoryError("no room for a copy")
        return stock(tensor)

    stock = module.copy_of
    monkeypatch.setattr(module, "copy_of", copy)
    transform = transposes(reference=True)
    params = Params(weights(transform))
    with pytest.raises(MemoryError, match="no room for a copy"):
        transform_params(transform, params, verify=True)
    assert (params.provenance, params.partial) == (None, None)
    unchanged = map(np.array_equal, (one.numpy() for one in params), arrays(transform))
    assert list(unchanged) == [True] * 3
    monkeypatch.undo()
    assert transform_params(transform, params, verify=True, strict=True).report.verified


def test_a_name_that_is_taken():
    text = (
        HEAD.replace("TYPES", tensors((4, 8))).replace("PURE", "True")
        + """
        w = R.permute_dims(params[0])
        return (w,)

    @R.function
    def reference_transform_params(x: R.Tensor((4, 8), "float32")):
        return x
"""
    )
    taken = r"reference=True: the module has a `reference_transform_params` already"
    with pytest.raises(UnsupportedTransformError, match=taken):
        InplaceTransformParams("transform_params", reference=True)(from_source(text))


@pytest.mark.parametrize("option", ["restore", "reference"])
def test_not_with_lazy(option):
    with pytest.raises(ValueError, match=rf"{option}=True .* with lazy=True"):
        InplaceTransformParams(lazy=True, **{option: True})
