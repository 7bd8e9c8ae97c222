"""The C++ host: built by CMake from the installed package, run without Python."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tvm
from memory import needs_clear_refs

from relax_inplace import libinfo, runtime

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cpp_host"
# The test extra installs it beside Python.
CMAKE = shutil.which(
    "cmake", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
)

pytestmark = pytest.mark.skipif(CMAKE is None, reason="needs CMake: pip install cmake")


def run(*command):
    # In the clone's root `-m relax_inplace` would be the source tree.
    done = subprocess.run(
        [*map(str, command)], cwd=EXAMPLE, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(source, folder, *options):
    """The folder in which CMake has built a project; without optimisation, in half the time."""
    run(
        CMAKE, "-S", source, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=Debug", *options,
    )  # fmt: skip
    run(CMAKE, "--build", folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What the example's script makes: model.so, weights/."""
    folder = tmp_path_factory.mktemp("model")
    run(sys.executable, EXAMPLE / "make_model.py", folder)
    return folder


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return built(EXAMPLE, tmp_path_factory.mktemp("host")) / "cpp_host"


def refused(*command):
    """The one line of a host that refuses its input."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("cpp_host: error: ") and done.stderr.count("\n") == 1
    return done.stderr.removeprefix("cpp_host: error: ").rstrip("\n")


@needs_clear_refs
def test_converts_in_the_memory_promised(host, model, tmp_path):
    text = run(host, model / "model.so", model / "weights", "--dump", tmp_path / "dump")
    assert re.search(r"^step 30 of 30  lm_head_q_scale +2\.10 MB$", text, re.MULTILINE)
    assert text.count("\nstep ") == 30
    before, peak = map(float, re.search(r"resident: (\S+) MB before, (\S+) MB at", text).groups())
    planned = float(re.search(r"MB measured, (\S+) MB planned", text).group(1))
    assert planned == 16.8  # the largest weight that is converted
    assert peak - before <= planned + 4

    # The same in Python.
    transform = runtime.load_transform(model / "model.so", tvm.cpu())
    params = runtime.load_params(model / "weights", tvm.cpu(), transform)
    runtime.transform_params(transform, params)
    fields = params._fields()
    tokens = tvm.runtime.tensor(np.array([[1, 8, 15, 22]], "int32"))
    first, cache = transform.vm["prefill"](tokens, fields)
    token = tvm.runtime.tensor(first.numpy().argmax(-1).astype("int32"))
    logits = transform.vm["decode"](token, cache, fields).numpy()
    assert np.isfinite(logits).all()
    expected = b"".join(one.numpy().tobytes() for one in params) + logits.tobytes()
    assert (tmp_path / "dump").read_bytes() == expected


def test_refuses_bad_input(host, model, exported, tmp_path):
    def with_manifest(name, change):
        folder = tmp_path / name
        shutil.copytree(model / "weights", folder)
        path = folder / "tensor-cache.json"
        manifest = json.loads(path.read_text())
        change(manifest["records"][0]["records"])
        path.write_text(json.dumps(manifest))
        return folder

    def transposed(records):
        assert records[0]["shape"] == [65536, 64]
        records[0]["shape"] = [64, 65536]

    module, weights = model / "model.so", model / "weights"
    (tmp_path / "no_library.so").write_text("no library")
    without = with_manifest("without", lambda records: records.pop(0))
    other = with_manifest("other", transposed)
    assert refused(host, tmp_path / "no.so", weights) == f"no module at {tmp_path}/no.so"
    assert "no_library.so" in refused(host, tmp_path / "no_library.so", weights)
    assert "vm_load_executable" in refused(host, libinfo.find_library(), weights)
    size = module.stat().st_size
    for kept in (0, 100, size // 3, size - 1):  # the dynamic loader would end the process by SIGBUS
        (tmp_path / "cut.so").write_bytes(module.read_bytes()[:kept])
        said = refused(host, tmp_path / "cut.so", weights)
        assert kept < 100 or f"cut short: it has {kept} bytes, expected {size}" in said
    assert refused(host, module, tmp_path / "no") == (
        f"no weights at {tmp_path}/no: it has no tensor-cache.json"
    )
    assert refused(host, module, without) == "Cannot find parameter in cache: embedding_q_weight"
    assert refused(host, module, other) == (
        f"weight `embedding_q_weight` in {other} is uint32 [64, 65536], but the module takes "
        "uint32 [65536, 64]"
    )
    shard = next(other.glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "Encountered an corrupted parameter shard" in refused(host, module, other)
    assert "no in-place transform" in refused(host, exported.modules["streamed"], weights)
    done = subprocess.run([host, module], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: cpp_host ")


# A host of a few lines: it converts two weights, of which the first is of other sizes then.
CONVERTS = """
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <iostream>

int main(int, char** argv) {
  namespace ffi = tvm::ffi;
  try {
    const auto module = ffi::Module::LoadFromFile(argv[1]);
    const auto vm = module->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
    vm->GetFunction("vm_initialization").value()(int{kDLCPU}, 0, 2);
    const auto allocate = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
    const DLDataType dtype{kDLFloat, 32, 1};
    ffi::Array<ffi::Any> weights;
    for (const ffi::Shape& shape : {ffi::Shape{32, 64}, ffi::Shape{16, 64}}) {
      weights.push_back(allocate(shape, dtype, DLDevice{kDLCPU, 0}, nullptr));
    }
    const ffi::Function convert = vm->GetFunction("inplace_transform_params").value();
    ffi::Function::GetGlobalRequired("relax_inplace.RunTransform")(nullptr, convert, weights);
    std::cout << ffi::Shape(weights[0].cast<ffi::Tensor>().shape()) << std::endl;
  } catch (const std::exception& error) {
    std::cout << error.what() << std::endl;
    return 1;
  }
  return 0;
}
"""

LINKED = """
cmake_minimum_required(VERSION 3.18)
project(linked LANGUAGES CXX)
find_package(relax_inplace 0.1 CONFIG REQUIRED)
find_library(tvm_runtime tvm_runtime PATHS "${tvm}/lib" NO_DEFAULT_PATH REQUIRED)
link_libraries(-Wl,--no-as-needed tvm_ffi::shared "${tvm_runtime}")
add_library(main OBJECT main.cc)
foreach(kind none shared static)
  add_executable(${kind} $<TARGET_OBJECTS:main>)
endforeach()
target_link_libraries(shared PRIVATE relax_inplace::shared)
target_link_libraries(static PRIVATE relax_inplace::static)
"""


def test_both_libraries_link(exported, tmp_path):
    (tmp_path / "main.cc").write_text(CONVERTS)
    (tmp_path / "CMakeLists.txt").write_text(LINKED)
    folder = run(sys.executable, "-m", "relax_inplace", "--cmakedir").strip()
    assert folder == libinfo.find_cmake_path()
    assert (
        run(sys.executable, "-m", "relax_inplace", "--libfiles").strip() == libinfo.find_library()
    )
    tvm_folder = Path(tvm.__file__).parent
    build = built(
        tmp_path, tmp_path / "build", f"-Drelax_inplace_ROOT={folder}", f"-Dtvm={tvm_folder}"
    )
    for kind in ("shared", "static"):
        assert "64, 32" in run(build / kind, exported.modules["plain"])
        assert "64, 32" in run(build / kind, exported.modules["self_contained"])
    assert "64, 32" in run(build / "none", exported.modules["self_contained"])
    done = subprocess.run(
        [build / "none", exported.modules["plain"]], capture_output=True, text=True
    )
    assert done.returncode == 1 and libinfo.BUILTINS in done.stdout


def test_a_version_that_is_not_there(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(other LANGUAGES NONE)\n"
        "find_package(relax_inplace 0.9 CONFIG REQUIRED)\n"
    )
    options = ["-S", tmp_path, "-B", tmp_path / "build"]
    options.append(f"-Drelax_inplace_ROOT={libinfo.find_cmake_path()}")
    done = subprocess.run([CMAKE, *options], capture_output=True, text=True)
    assert done.returncode == 1 and "version: 0.1.0" in done.stderr
