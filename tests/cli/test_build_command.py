"""`relax-inplace build`: the library runs, and says what it is."""

import json

import numpy as np
import pytest
import tvm
import tvm_ffi
from commands import MODEL, TRANSFORM, error, module, output, run
from tvm import relax

from relax_inplace.cli import processor
from relax_inplace.cli.compilation import target_of

needs_cuda = pytest.mark.skipif(
    tvm.get_global_func("target.build.cuda", allow_missing=True) is None, reason="TVM without CUDA"
)


NAMED = '{"kind": "llvm", "mcpu": "x86-64"}'
PROCESSOR = processor.of_this_machine().get("mcpu")
LLVM = "llvm" if PROCESSOR is None else f"llvm {PROCESSOR}"


def test_model(tmp_path):
    library = tmp_path / "lib.so"
    text = output("build", "-", "--max-resident", "1.0", "-o", library, text=MODEL)
    assert text == (
        f"{library}: decode, inplace_transform_params, prefill; for {LLVM}\n"
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
        "processor": PROCESSOR,
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
    done = run("build", "-", "--target", NAMED, "-o", tmp_path / "lib.so", text=rewritten)
    assert done.stdout == f"{tmp_path / 'lib.so'}: inplace_transform_params; for llvm x86-64\n"
    assert done.stderr == ""


V3 = {"kind": "llvm", "mcpu": "x86-64-v3", "mattr": ["-fma"]}
V3_FLAGS = "ssse3 sse4_1 sse4_2 popcnt cx16 lahf_lm movbe xsave avx avx2 f16c fma bmi1 bmi2 abm"


@pytest.mark.parametrize(
    "machine, text, expected",
    [
        ("x86_64", f"processor\t: 0\nflags\t\t: fpu {V3_FLAGS} avx512f\n", V3),
        *(
            ("x86_64", f"flags : {V3_FLAGS.replace(f'{one} ', ' ')} \n", {"kind": "llvm"})
            for one in V3_FLAGS.split()[:-1]
        ),
        ("x86_64", f"flags : {V3_FLAGS[:-4]}\n", {"kind": "llvm"}),
        ("x86_64", "", {"kind": "llvm"}),
        ("aarch64", f"flags : {V3_FLAGS}\n", {"kind": "llvm"}),
    ],
)
def test_processor(monkeypatch, tmp_path, machine, text, expected):
    """All of x86-64-v3, or none of it; a kernel of Linux says what there is."""
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    assert processor.of_this_machine() == expected


def test_no_file_says_what_the_processor_is(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "none")
    assert processor.of_this_machine() == {"kind": "llvm"}


@pytest.mark.skipif(PROCESSOR is None, reason="no x86-64-v3")
def test_library_for_others_names_its_target(tmp_path):
    library = tmp_path / "lib.so"
    done = run("build", "-", "-o", library, text=TRANSFORM)
    assert done.stderr == (
        f"relax-inplace: {library} is for this machine's processor (x86-64-v3); a library for "
        "others names theirs: --target '" + NAMED + "'\n"
    )
    assert run("build", "-", "--quiet", "-o", library, text=TRANSFORM).stderr == ""
    said = json.loads(output("build", "-", "--json", "--target", NAMED, "-o", library, text=MODEL))
    assert said["processor"] == "x86-64"


PRODUCT_AND_SUM = """
from tvm.script import ir as I, relax as R, tirx as T
@I.ir_module
class M:
    @T.prim_func(private=True, s_tir=True)
    def kernel(A: T.Buffer((4096,), "float32"), B: T.Buffer((4096,), "float32")):
        for i in range(4096):
            with T.sblock("computed"):
                v = T.axis.spatial(4096, i)
                B[v] = A[v] * A[4095 - v] + A[v]

    @R.function
    def main(x: R.Tensor((4096,), "float32")):
        cls = M
        return R.call_tir(cls.kernel, (x,), out_ty=R.Tensor((4096,), "float32"))
"""


@pytest.mark.skipif(PROCESSOR is None, reason="no x86-64-v3")
def test_product_and_sum_are_rounded_each(tmp_path):
    """As on any processor; with FMA there is one rounding."""
    x = np.random.default_rng(0).standard_normal(4096).astype("float32")
    expected = x * x[::-1] + x

    def computed(name, *target):
        library = tmp_path / f"{name}.so"  # one of the same path is not loaded again
        output("build", "-", *target, "-o", library, text=PRODUCT_AND_SUM)
        vm = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
        return vm["main"](tvm.runtime.tensor(x)).numpy()

    assert computed("own").tobytes() == expected.tobytes()
    assert computed("any", "--target", NAMED).tobytes() == expected.tobytes()
    with_fma = json.dumps({"kind": "llvm", "mcpu": "x86-64-v3"})
    assert not np.array_equal(computed("fma", "--target", with_fma), expected)


def test_other_targets_are_as_they_are_named():
    assert target_of('{"tag": "nvidia/nvidia-a100"}').kind.name == "cuda"
    assert target_of('{"kind": "llvm", "mcpu": "x86-64"}').attrs["mcpu"] == "x86-64"
    assert "mattr" not in target_of('{"kind": "llvm", "mcpu": "x86-64-v3"}').attrs
    assert "mcpu" not in target_of('{"kind": "llvm", "mtriple": "x86_64-linux-gnu"}').attrs


FOLDED = """
from tvm.script import ir as I, relax as R, tirx as T
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
        relax.transform.FoldConstant()(module(FOLDED))
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

    assert build("--target", "cudaa", "-o", tmp_path / "lib.so").startswith(
        "--target cudaa: no such kind; there are cuda, "
    )
    assert "there are nvidia/nvidia-a10" in build(
        "--target", "nvidia/nvidia-a1000", "-o", tmp_path / "lib.so"
    )
    assert (
        "LLVM knows no processor 'znver99' of x86_64-linux-gnu; expected one such as znver"
        in build(
            *("--target", '{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver99"}'),
            *("-o", tmp_path / "lib.so"),
        )
    )
    assert "No available targets are compatible" in build(
        *("--target", '{"kind": "llvm", "mtriple": "nope-linux-gnu", "mcpu": "znver4"}'),
        *("-o", tmp_path / "lib.so"),
    )
    assert build("--target", "llvm -mcpu=znver4 -mattr=+avx2", "-o", tmp_path / "lib.so") == (
        "--target llvm -mcpu=znver4 -mattr=+avx2: TVM reads options as JSON: "
        '\'{"kind": "llvm", "mcpu": "znver4", "mattr": ["+avx2"]}\''
    )
    old = "cuda -arch=sm_80 -max_num_threads=512"
    shown = build("--target", old, "-o", tmp_path / "lib.so").split("'")[1]
    assert target_of(shown).attrs["max_num_threads"] == 512
    assert build("--target", "{", "-o", tmp_path / "lib.so").startswith("--target {: no JSON: ")
    assert build("-o", tmp_path / "no" / "lib.so") == f"{tmp_path}/no/lib.so: no such folder"
    assert build(code=2) == "Missing option '-o' / '--output'; see relax-inplace build --help"
    assert build("-o", "lib.txt", code=2) == (
        "-o lib.txt: expected a library, .so; see relax-inplace build --help"
    )
    assert not list(tmp_path.iterdir())
