"""load_transform: a compiled module in a process that has no compiler, and what is none."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import pytest
import tvm
from compiled_transforms import module, tensors, transposes
from tvm import relax
from tvm.script import from_source

from relax_inplace.runtime import ModuleError, Params, Transform, load_transform, save_params
from relax_inplace.transform import InplaceTransformParams

CPU = tvm.cpu()
BODY = "a = params[0]\nt = R.permute_dims(a)\nreturn (t,)"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("library") / "lib.so"
    mod = InplaceTransformParams()(module(tensors((4, 8)), BODY))
    tvm.compile(mod, "llvm").export_library(str(path))
    return path


def refused(path, message, device=CPU, **options):
    with pytest.raises(ModuleError, match=message) as caught:
        load_transform(path, device, **options)
    assert "\n" not in str(caught.value)


def test_what_the_module_says(library):
    transform = load_transform(library, CPU)
    assert (transform.name, transform.peak, transform.is_streamed) == (
        "inplace_transform_params",
        256,
        False,
    )
    assert [str(one) for one in transform.weights] == ["float32[4, 8]"]
    assert [str(one) for one in transform.params] == ["float32[8, 4]"]
    assert [dataclasses.astuple(one) for one in transform.steps] == [
        ("t", ("0",), ("0",), 128, 256)
    ]
    assert json.loads(transform.target)["kind"] == "llvm"
    assert str(transform.device) == "cpu:0"


def test_without_the_compiler(library, tmp_path):
    """From files to converted weights where `import tvm` brings the runtime alone."""
    save_params(Params([tvm.runtime.empty((4, 8))], ["a"]), tmp_path / "weights")
    program = f"""
        import sys
        import relax_inplace
        from relax_inplace import runtime
        import tvm
        assert tvm.base._RUNTIME_ONLY
        transform = runtime.load_transform({str(library)!r}, tvm.cpu())
        params = runtime.convert_params(transform, {str(tmp_path / "weights")!r}, tvm.cpu())
        runtime.save_params(params, {str(tmp_path / "converted")!r})
        print(params[0].shape)
        assert not any("relax_inplace." + one in sys.modules for one in ("op", "analysis", "transform"))
        with open("/proc/self/maps") as maps:
            assert "libtvm_compiler" not in maps.read()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "(8, 4)\n"), done.stderr


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lib\.so: no such file, expected a library"):
        load_transform(tmp_path / "lib.so", CPU)


@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_no_library(tmp_path, content):
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    refused(path, r"not loadable .*, expected a module that `relax-inplace build` .* wrote")


@pytest.mark.parametrize("part", [20, 64, 1000, 0.1, 0.5, 0.9, -1])
def test_a_library_that_was_cut_off(library, tmp_path, part):
    """The dynamic linker would map what is not there: SIGBUS."""
    content = library.read_bytes()
    path = tmp_path / "lib.so"
    path.write_bytes(content[: int(part * len(content)) if isinstance(part, float) else part])
    refused(path, r"bytes of a library, expected all of it \(.+\); it was cut off: copy it again")


@pytest.mark.parametrize("at", [32, 40, 54, 56, 58, 60, 72, 96])
def test_a_library_with_damaged_headers(library, tmp_path, at):
    content = bytearray(library.read_bytes())
    content[at : at + 2 if 54 <= at < 64 else at + 8] = b"\xff" * (2 if 54 <= at < 64 else 8)
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    refused(path, r"bytes of a library|not loadable")


def test_no_headers(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(b"\x7fELF" + bytes(60))
    refused(path, "bytes of a library, expected all of it")


def test_another_kind_of_file(tmp_path):
    path = tmp_path / "lib.txt"
    path.write_text("x")
    refused(path, "not loadable")


def test_a_library_that_is_none_of_tvm():
    from relax_inplace.libinfo import find_library

    refused(find_library(), r"not loadable|no Relax executable")


def test_a_module_without_the_transform(tmp_path):
    mod = module(tensors((4, 8)), BODY)
    path = tmp_path / "lib.so"
    tvm.compile(mod, "llvm").export_library(str(path))
    refused(path, r"no function `inplace_param_map`, expected one with an in-place transform")


def test_a_module_for_another_device(library):
    refused(library, r"built for target `llvm`, expected one for device cuda:0", tvm.cuda(0))


def test_a_module_for_another_target():
    """What a module for a GPU would say of itself, and the device is a CPU."""
    said = json.dumps(
        {
            "inplace_transform_params": {
                **json.loads(transposes().vm["inplace_param_map"]())["inplace_transform_params"],
                "target": '{"kind":"cuda","arch":"sm_90"}',
            }
        }
    )

    class Module:
        def implements_function(self, name):
            return name == "inplace_param_map"

        def __getitem__(self, name):
            return (lambda: said) if name == "inplace_param_map" else transposes().function

    from relax_inplace.runtime.transform import _find

    with pytest.raises(
        ModuleError, match=r"built for target `cuda`, expected one for device cpu:0"
    ):
        _find(Module(), None, None, CPU)


def test_several_transforms():
    text = """
@I.ir_module
class Module:
    @R.function
    def a_transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"))):
        w = R.permute_dims(params[0])
        return (w,)

    @R.function
    def b_transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"))):
        w = R.negative(params[0])
        return (w,)
"""
    mod = InplaceTransformParams()(from_source(text))
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), CPU)
    with pytest.raises(ModuleError, match=r"transforms `a_inplace.*`, `b_inplace.*, expected one"):
        Transform.of(vm)
    assert Transform.of(vm, "b_inplace_transform_params").name == "b_inplace_transform_params"
    with pytest.raises(ModuleError, match=r"expected `c`; name one of them"):
        Transform.of(vm, "c")


# -- names and sizes -------------------------------------------------------------------------------


def with_mlc_metadata(described):
    """A module of one tuple of weights, and the function that MLC-LLM attaches."""
    from relax_inplace.transform import LiftInplaceTransformParams

    text = """
@I.ir_module
class Module:
    @R.function
    def prefill(x: R.Tensor((1, 8), "float32"), packed_params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32"))):
        w = R.permute_dims(packed_params[1])
        v = R.negative(packed_params[1])
        a = R.matmul(x, w)
        b = R.matmul(a, v)
        return b

    @R.function
    def _metadata() -> R.Any:
        return R.str(METADATA)
""".replace("METADATA", repr(json.dumps(described)))
    mod = LiftInplaceTransformParams(max_resident=2.0)(from_source(text))
    return Transform.of(relax.VirtualMachine(tvm.compile(mod, "llvm"), CPU))


def test_names_of_mlc_llm():
    described = {
        "model_type": "llama",
        "params": [
            {"name": "model.embed.weight", "shape": [4, 8], "dtype": "float32"},
            {"name": "model.layers.0.weight", "shape": [4, 8], "dtype": "float32"},
        ],
    }
    transform = with_mlc_metadata(described)
    assert [one.name for one in transform.weights] == [
        "model.embed.weight",
        "model.layers.0.weight",
    ]
    assert [one.name for one in transform.params] == [
        "model.layers.0.weight",
        "model.layers.0.weight.1",
    ]


def test_names_of_mlc_llm_are_found_by_name():
    """Fields that have names are looked up: an order that differs swaps no weights."""
    from relax_inplace.transform import LiftInplaceTransformParams

    metadata = {
        "params": [
            {"name": name, "shape": [8, 8], "dtype": "float32"}
            for name in ("layers.0.down", "layers.0.up")
        ]
    }
    text = f"""
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((1, 8), "float32"), packed_params: R.Tuple(R.Tensor((8, 8), "float32"), R.Tensor((8, 8), "float32"))):
        layers_0_up = packed_params[0]
        layers_0_down = packed_params[1]
        w = R.permute_dims(layers_0_up)
        a = R.matmul(x, w)
        b = R.matmul(a, layers_0_down)
        return b

    @R.function
    def _metadata() -> R.Any:
        return R.str({json.dumps(metadata)!r})
"""
    mod = LiftInplaceTransformParams(restore=True)(from_source(text))
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), CPU)
    transform = Transform.of(vm)
    back = Transform.of(vm, restoring=transform.name)
    for types in (transform.weights, transform.params, back.weights, back.params):
        assert [(one.name, one.slot) for one in types] == [
            ("layers.0.up", "0"),
            ("layers.0.down", "1"),
        ]


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"params": []},
        {"params": "x"},
        {"params": [{"name": "a", "shape": [4, 8], "dtype": "float16"}] * 2},
        {"params": [{"name": "a"}] * 2},
    ],
)
def test_other_metadata_is_left_alone(described):
    names = [one.name for one in with_mlc_metadata(described).weights]
    assert names == ["packed_params[0]", "packed_params[1]"]


def test_symbolic_sizes_become_numbers():
    import numpy as np

    from relax_inplace.runtime import transform_params

    body = (
        "a = params[0]\nb = params[1]\nt = R.permute_dims(a)\nu = R.concat((b, b))\nreturn (t, u)"
    )
    mod = InplaceTransformParams()(module(tensors('("n", 2)', '(3, "m")'), body))
    transform = Transform.of(relax.VirtualMachine(tvm.compile(mod, "llvm"), CPU))
    assert isinstance(transform.peak, str)
    weights = [tvm.runtime.tensor(np.zeros(shape, "float32")) for shape in ((5, 2), (3, 100))]
    report = transform_params(transform, weights).report
    assert report.predicted_peak == 5 * 2 * 4 + 3 * 100 * 4 * 3


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (12, 12),
        ("16*n + 128", 208),
        ("max(4*n*m, 8*(n*4), 3)", 160),
        ("n//2*m", 14),
        ("k + 1", None),
        ("|w| + 4", None),
        ("T.max(n, 3)", None),
        ("__import__('os')", None),
        ("9**9**9", None),
        ("(", None),
        ("n//(m-7)", None),
        ("-" * 100000 + "1", None),
    ],
)
def test_sizes_as_text(size, expected):
    from relax_inplace.runtime.symbolic_size import size_at

    assert size_at(size, {"n": 5, "m": 7}) == expected
