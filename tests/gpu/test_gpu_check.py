"""examples/gpu_check: what it builds, what it finds, and what it says where it cannot check."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_device import is_possible

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpu_check"
SMALL = ["--gb", "0.002", "--shrink", "8", "--only", "transpose uint8"]

LOADED = """
import ctypes, os, sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], str(Path(sys.argv[2]) / "site")]
from cuda_stub import load_stub

load_stub()
os.environ["TVM_USE_RUNTIME_LIB"] = "1"
import tvm

assert tvm.__file__.startswith(sys.argv[2])
ctypes.CDLL(str(Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"))
compiled = []
tvm.register_global_func("tvm_callback_cuda_compile", compiled.append, override=True)
module = tvm.runtime.load_module(str(Path(sys.argv[2]) / "graph.sm_90.so"))
assert module.implements_function("vm_load_executable") and not compiled
"""

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")


def run(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300
    )


def built(folder, *options):
    done = run(EXAMPLE / "build.py", folder, *SMALL, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_host(tmp_path):
    """All of the check but the device; and a field that is wrong is found."""
    folder = built(tmp_path / "check", "--device", "cpu")
    assert not list(folder.rglob("libtvm_compiler*"))
    done = run("-I", folder / "check.py", "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert "13 of 13 checks passed" in done.stdout
    result = json.loads((folder / "result.json").read_text())
    (row,) = result["rows"]
    assert row["reused"] == 7 and row["extra"] is not None and row["kernels"]

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"][0]["layer"][2]["digests"][0] = "0" * 32
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = run("-I", folder / "check.py", "--rounds", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL transpose uint8, bits: 7 fields, wrong: [2]" in done.stdout

    manifest["python"] = "2.7"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = run("-I", folder / "check.py")
    assert done.returncode == 2
    assert "the folder is for 2.7" in done.stderr


@needs_nvcc
def test_cuda(tmp_path):
    """Built by nvcc, within what can be carried; without a driver it says so."""
    folder = built(tmp_path / "check", "--arch", "sm_90")
    names = {file.name for file in folder.glob("*.so")}
    stems = ["transpose_uint8", "transpose_uint8_reader", "transpose_uint8_streamed", "graph"]
    assert names == {f"{stem}.sm_90.so" for stem in stems}
    for file in folder.glob("*.so"):  # machine code, and no source that would have to be compiled
        content = file.read_bytes()
        assert b"\x50\xed\x55\xba" in content and b"__global__" not in content, file.name
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 64 << 20
    # TVM's CUDA runtime takes it without the compiler, and compiles nothing.
    done = run("-c", LOADED, EXAMPLE, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    if is_possible():
        done = run("-I", folder / "check.py")
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.startswith("cannot check here: no CUDA driver"), done.stderr
