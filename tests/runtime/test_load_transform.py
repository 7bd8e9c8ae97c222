"""load_transform: a compiled module in a process that has no compiler, and what is none."""

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
    assert [(one.computes, one.writes, one.before, one.worst) for one in transform.steps] == [
        ("t", ("0",), 128, 256)
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
    with pytest.raises(FileNotFoundError, match=r"no compiled module at .*lib\.so"):
        load_transform(tmp_path / "lib.so", CPU)


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + bytes(60)])
def test_no_library(tmp_path, content):
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    refused(path, r"not loadable .*, expected a module that `relax-inplace build` .* wrote")


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
            return True

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
