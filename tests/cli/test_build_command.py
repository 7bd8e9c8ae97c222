"""`relax-inplace build`: the library runs, and says what it is."""

import json

import numpy as np
import pytest
import tvm
import tvm_ffi
from commands import MODEL, TRANSFORM, error, output, run
from tvm import relax

from relax_inplace.cli.script_file import read_script

needs_cuda = pytest.mark.skipif(
    tvm.get_global_func("target.build.cuda", allow_missing=True) is None, reason="TVM without CUDA"
)


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


FOLDED = """
@I.ir_module
class M:
    @T.prim_func(private=True, s_tir=True)
    def kernel(A: T.Buffer((4,), "float32")):
        for i in range(4):
            with T.sblock("fill"):
                v = T.axis.spatial(4, i)
                A[v] = T.Cast("float32", T.call_packed("relax_inplace_test.mark"))

    @R.function
    def main(x: R.Tensor((4,), "float32")):
        cls = M
        with R.dataflow():
            y = R.call_tir(cls.kernel, R.tuple(), out_ty=R.Tensor((4,), "float32"))
            z = R.add(x, y)
            R.output(z)
        return z
"""


@needs_cuda
def test_kernels_are_not_run_when_they_are_compiled(tmp_path):
    """FoldConstant, in TVM's pipelines for GPUs, does."""
    runs = []
    tvm.register_global_func("relax_inplace_test.mark", lambda: runs.append(1) or 1, override=True)
    with tvm.target.Target("cuda"):
        relax.transform.FoldConstant()(read_script(FOLDED, "m.py"))
    assert runs
    runs.clear()
    run("build", "-", "--target", "cuda", "-o", tmp_path / "lib.so", text=FOLDED)
    assert not runs


@needs_cuda
def test_kernels_for_a_gpu_are_scheduled(tmp_path):
    done = run("build", "-", "--target", "cuda", "-o", tmp_path / "lib.so", text=TRANSFORM)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'lib.so'}: inplace_transform_params; for cuda\n")
    library = (tmp_path / "lib.so").read_bytes()
    assert b"transpose_kernel" in library
    is_source = b"__global__" in library
    assert is_source == (f"{tmp_path / 'lib.so'} holds CUDA source" in done.stderr)


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
