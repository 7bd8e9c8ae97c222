"""relax_inplace.ConvertLoaded: an engine's call on weights that TVM has loaded, decided by the mark."""

import json

import numpy as np
import pytest
import tvm
import tvm_ffi
from compiled_transforms import compiled, tensors
from tvm import relax
from tvm.script import from_source

from relax_inplace import runtime

# Square, so that a second conversion would pass every check of shapes.
SQUARE = tensors((4, 4), (4, 4))
READ = """
w0 = params[0]
w1 = params[1]
"""
TRANSPOSE = f"{READ}a = R.permute_dims(w0)\nb = R.permute_dims(w1)\nreturn (a, b)"
NAMES = ["w0", "w1"]


def arrays():
    return [np.arange(16, dtype="float32").reshape(4, 4) + i for i in range(2)]


def originals(folder):
    """As an engine finds them."""
    made = runtime.Params([tvm.runtime.tensor(one) for one in arrays()], NAMES)
    runtime.save_params(made, folder, progress=False)


def loaded(folder):
    """By TVM's loader, which reads no mark; its cache is cleared, as engines do."""
    tvm.get_global_func("vm.builtin.tensor_cache.load")(str(folder), 1, 0)
    with open(folder / "tensor-cache.json") as file:
        names = [one["name"] for shard in json.load(file)["records"] for one in shard["records"]]
    params = tvm.get_global_func("vm.builtin.param_array_from_cache_by_name")(names)
    tvm.get_global_func("vm.builtin.tensor_cache.clear")()
    return params


def convert(vm, folder, params):
    return tvm_ffi.get_global_func("relax_inplace.ConvertLoaded")(vm.module, str(folder), params)


def assert_transposed(params):
    for got, array in zip(params, arrays(), strict=True):
        assert got.numpy().tobytes() == array.T.tobytes()


def converted_folder(vm, tmp_path):
    """Converted and saved by Python's runtime."""
    originals(tmp_path / "given")
    transform = runtime.Transform.of(vm)
    params = runtime.load_params(tmp_path / "given", tvm.cpu(), transform, progress=False)
    runtime.transform_params(transform, params, progress=False)
    runtime.save_params(params, tmp_path / "converted", progress=False)
    return tmp_path / "converted"


def test_originals_are_converted_where_they_are(tmp_path):
    vm = compiled(SQUARE, TRANSPOSE)
    originals(tmp_path)
    params = loaded(tmp_path)
    pointers = [one.data_ptr() for one in params]
    result = convert(vm, tmp_path, params)
    assert result.same_as(params)
    assert_transposed(params)
    assert [one.data_ptr() for one in params] == pointers


def test_converted_ones_are_left_as_they_are(tmp_path):
    vm = compiled(SQUARE, TRANSPOSE)
    folder = converted_folder(vm, tmp_path)
    params = loaded(folder)
    assert convert(vm, folder, params).same_as(params)
    assert_transposed(params)


def test_converted_for_another_layout(tmp_path):
    folder = converted_folder(compiled(SQUARE, TRANSPOSE), tmp_path)
    other = compiled(SQUARE, f"{READ}a = R.permute_dims(w0)\nreturn (a, w1)")
    params = loaded(folder)
    with pytest.raises(ValueError, match=r"were converted to layout `\w+`, expected .* of layout"):
        convert(other, folder, params)
    assert_transposed(params)


@pytest.mark.parametrize("mark", ["", "{", "3", 5, {"layout": 7}])
def test_a_mark_that_cannot_be_read_is_one(mark, tmp_path):
    vm = compiled(SQUARE, TRANSPOSE)
    folder = converted_folder(vm, tmp_path)
    manifest = json.loads((folder / "tensor-cache.json").read_text())
    given = json.dumps(mark) if isinstance(mark, dict) else mark
    manifest["metadata"]["relax_inplace.converted"] = given
    (folder / "tensor-cache.json").write_text(json.dumps(manifest))
    params = loaded(folder)
    with pytest.raises(ValueError, match=r"no JSON object|converted to layout ``"):
        convert(vm, folder, params)
    assert_transposed(params)


def test_another_number_of_weights(tmp_path):
    vm = compiled(SQUARE, f"{READ}a = R.concat((w0, w1), axis=1)\nreturn (a,)")
    originals(tmp_path)
    params = loaded(tmp_path)
    (result,) = convert(vm, tmp_path, params)
    assert result.numpy().tobytes() == np.concatenate(arrays(), axis=1).tobytes()
    assert list(params) == [None, None]


def test_a_model_that_converts_nothing(tmp_path):
    mod = from_source("""
@I.ir_module
class Module:
    @R.function
    def decode(x: R.Tensor((2,), "float32"), params: R.Tuple(R.Tensor((2,), "float32"))):
        return R.add(x, params[0])
""")
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    params = tvm_ffi.Array([tvm.runtime.tensor(np.ones(2, "float32"))])
    assert convert(vm, tmp_path / "not looked at", params).same_as(params)


def test_a_folder_without_a_manifest(tmp_path):
    params = tvm_ffi.Array([tvm.runtime.tensor(one) for one in arrays()])
    with pytest.raises(ValueError, match=r"has no tensor-cache\.json"):
        convert(compiled(SQUARE, TRANSPOSE), tmp_path, params)
    assert params[0].numpy().tobytes() == arrays()[0].tobytes()
