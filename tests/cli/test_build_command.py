"""`relax-inplace build`: the library runs, and says what it is."""

import json

import numpy as np
import pytest
import tvm
import tvm_ffi
from commands import MODEL, TRANSFORM, error, output, run
from tvm import relax

from relax_inplace import transform
from relax_inplace.cli.script_file import read_script


def test_model(tmp_path):
    library = tmp_path / "lib.so"
    text = output("build", "-", "--max-resident", "1.0", "-o", library, text=MODEL)
    assert text == (
        f"{library}: decode, inplace_transform_params, prefill; for llvm\n"
        "inplace_transform_params: weights 2 -> 2, bytes 6,144 -> 6,144, peak 10,240, steps 2\n"
    )
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    w = np.random.default_rng(0).standard_normal((32, 64)).astype("float16")
    codes = np.arange(32 * 64, dtype="int8").reshape(32, 64)
    params = vm["inplace_transform_params"](
        tvm_ffi.Array([tvm.runtime.tensor(w), tvm.runtime.tensor(codes)])
    )
    assert [field.numpy().tobytes() for field in params] == [w.T.tobytes(), codes.T.tobytes()]
    assert "inplace_transform_params" in json.loads(vm["inplace_param_map"]())


def test_transform_and_json(tmp_path):
    library = tmp_path / "lib.so"
    built = json.loads(output("build", "-", "--json", "-o", library, text=TRANSFORM))
    assert built == {
        "library": str(library),
        "target": "llvm",
        "functions": ["inplace_transform_params"],
        "transforms": [
            {
                "name": "inplace_transform_params",
                "weights": 2,
                "new_weights": 2,
                "before": 160,
                "after": 160,
                "peak": 256,
                "steps": 2,
                "streamed": False,
            }
        ],
    }
    assert library.is_file()


def test_streamed(tmp_path):
    text = output("build", "-", "--lazy", "-o", tmp_path / "lib.so", text=TRANSFORM)
    assert text.endswith("steps 4, streamed\n")


def test_what_is_rewritten_already_is_built(tmp_path):
    rewritten = output("rewrite", "-", text=TRANSFORM)
    done = run("build", "-", "-o", tmp_path / "lib.so", text=rewritten)
    assert done.stdout == f"{tmp_path / 'lib.so'}: inplace_transform_params; for llvm\n"
    assert done.stderr == ""


@pytest.mark.skipif(
    tvm.get_global_func("target.build.cuda", allow_missing=True) is None, reason="TVM without CUDA"
)
def test_kernels_for_a_gpu_are_scheduled(tmp_path):
    """Without a schedule TVM refuses them: memory is accessed outside of threads."""
    with pytest.raises(RuntimeError, match="Memory verification failed"):
        tvm.compile(transform.InplaceTransformParams()(read_script(TRANSFORM, "m.py")), "cuda")
    text = output("build", "-", "--target", "cuda", "-o", tmp_path / "lib.so", text=TRANSFORM)
    assert text.startswith(f"{tmp_path / 'lib.so'}: inplace_transform_params; for cuda\n")


def test_refused(tmp_path):
    def build(*arguments, **how):
        return error("build", "-", *arguments, text=TRANSFORM, **how)

    assert build("--target", "nope", "-o", tmp_path / "lib.so").startswith(
        'Target kind "nope" is not defined.'
    )
    assert build("--target", "{", "-o", tmp_path / "lib.so").startswith("--target {: no JSON: ")
    assert build("-o", tmp_path / "no" / "lib.so") == f"{tmp_path}/no/lib.so: no such folder"
    assert build(code=2) == "Missing option '-o' / '--output'; see relax-inplace build --help"
    assert build("-o", "lib.txt", code=2) == (
        "-o lib.txt: expected a library, .so; see relax-inplace build --help"
    )
    assert not list(tmp_path.iterdir())
