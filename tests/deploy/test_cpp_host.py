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


@pytest.fixture(scope="module")
def converted(model, tmp_path_factory):
    """(folders of weights: converted, and in safetensors; what a host dumps of each)."""
    transform = runtime.load_transform(model / "model.so", tvm.cpu())
    params = runtime.load_params(model / "weights", tvm.cpu(), transform)
    folder = tmp_path_factory.mktemp("saved")
    runtime.save_params(params, folder / "safetensors", "safetensors")
    runtime.save_params(params, folder / "one-file", "safetensors", shard_bytes=1 << 30)
    runtime.transform_params(transform, params)
    runtime.save_params(params, folder / "converted", "tensor-cache")
    runtime.save_params(params, folder / "converted-safetensors", "safetensors")
    fields = params._fields()
    tokens = tvm.runtime.tensor(np.array([[1, 8, 15, 22]], "int32"))
    first, cache = transform.vm["prefill"](tokens, fields)
    token = tvm.runtime.tensor(first.numpy().argmax(-1).astype("int32"))
    logits = transform.vm["decode"](token, cache, fields).numpy()
    assert np.isfinite(logits).all()
    return folder, b"".join(one.numpy().tobytes() for one in params) + logits.tobytes()


@needs_clear_refs
def test_converts_in_the_memory_promised(host, model, converted, tmp_path):
    text = run(host, model / "model.so", model / "weights", "--dump", tmp_path / "dump")
    assert re.search(r"^step 30 of 30  lm_head_q_scale +2\.10 MB$", text, re.MULTILINE)
    assert text.count("\nstep ") == 30
    before, peak = map(float, re.search(r"resident: (\S+) MB before, (\S+) MB at", text).groups())
    planned = float(re.search(r"MB measured, (\S+) MB planned", text).group(1))
    assert planned == 16.8  # the largest weight that is converted
    assert peak - before <= planned + 4
    assert (tmp_path / "dump").read_bytes() == converted[1]


@pytest.mark.parametrize("kind", ["safetensors", "one-file"])
def test_reads_safetensors(host, model, converted, tmp_path, kind):
    weights = converted[0] / kind
    if kind == "one-file":
        (weights,) = weights.glob("*.safetensors")
    text = run(host, model / "model.so", weights, "--dump", tmp_path / "dump")
    assert text.count("\nstep ") == 30
    assert (tmp_path / "dump").read_bytes() == converted[1]


@pytest.mark.parametrize("kind", ["converted", "converted-safetensors"])
def test_converted_weights_are_not_converted_again(host, model, converted, tmp_path, kind):
    weights = converted[0] / kind
    text = run(host, model / "model.so", weights, "--dump", tmp_path / "dump")
    assert text.splitlines()[0].endswith(" MB, converted before") and "step" not in text
    assert (tmp_path / "dump").read_bytes() == converted[1]


def test_upper_halves_of_float32(host, model, tmp_path):
    """As TVM's writer stores them by default, which this package's does not."""
    from tvm.contrib import tvmjs

    given = runtime.load_params(model / "weights", tvm.cpu())
    weights = {name: tensor.numpy() for name, tensor in given.items()}
    is_float = [one.dtype == np.float32 for one in weights.values()]
    assert any(is_float)
    for name, one in weights.items():
        if one.dtype == np.float32:
            weights[name] = (one.view("uint32") & 0xFFFF0000).view("float32")
    dumps = []
    for encoding in ("f32-to-bf16", "raw"):
        folder = tmp_path / encoding
        params = {name: tvm.runtime.tensor(one) for name, one in weights.items()}
        tvmjs.dump_tensor_cache(params, str(folder), encode_format=encoding, show_progress=False)
        run(host, model / "model.so", folder, "--dump", tmp_path / "dump")
        dumps.append((tmp_path / "dump").read_bytes())
    assert dumps[0] == dumps[1]


def test_a_module_of_this_folder(host, model):
    """Without a slash the dynamic loader would look for it in the system's folders."""
    done = subprocess.run([host, "model.so", "weights"], cwd=model, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_refuses_bad_input(host, model, exported, tmp_path):
    def with_manifest(name, change):
        folder = tmp_path / name
        shutil.copytree(model / "weights", folder)
        path = folder / "tensor-cache.json"
        manifest = json.loads(path.read_text())
        change(manifest["records"][0])
        path.write_text(json.dumps(manifest))
        return folder

    def transposed(shard):
        assert shard["records"][0]["shape"] == [65536, 64]
        shard["records"][0]["shape"] = [64, 65536]

    module, weights = model / "model.so", model / "weights"
    (tmp_path / "no_library.so").write_text("no library")
    without = with_manifest("without", lambda shard: shard["records"].pop(0))
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
        f"no weights at {tmp_path}/no: expected a folder with tensor-cache.json or "
        "model.safetensors, or a .safetensors file"
    )
    assert refused(host, module, without) == f"{without}: it has no weight `embedding_q_weight`"
    assert refused(host, module, other) == (
        f"weight `embedding_q_weight` in {other} is uint32 [64, 65536], but the module takes "
        "uint32 [65536, 64]"
    )
    outside = with_manifest("outside", lambda shard: shard.update(dataPath="../weights.bin"))
    assert "expected the names of files in its folder" in refused(host, module, outside)
    far = with_manifest("far", lambda shard: shard["records"][0].update(byteOffset=2**62))
    assert f"from {2**62} on are not in the file" in refused(host, module, far)
    shard = next(other.glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "are not in the file" in refused(host, module, other)
    assert "no in-place transform" in refused(host, exported.modules["streamed"], weights)
    done = subprocess.run([host, module], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: cpp_host ")


def test_refuses_another_layout(host, model, converted, tmp_path):
    def with_mark(name, mark):
        folder = tmp_path / name
        shutil.copytree(converted[0] / "converted", folder)
        path = folder / "tensor-cache.json"
        manifest = json.loads(path.read_text())
        manifest["metadata"]["relax_inplace.converted"] = mark
        path.write_text(json.dumps(manifest))
        return refused(host, model / "model.so", folder)

    other = json.dumps({"transform": "f", "layout": "another"})
    assert "were converted to layout `another`, expected weights as" in with_mark("other", other)
    # A mark that cannot be read is one: taken for none, the weights might be converted twice.
    assert "the mark of converted weights" in with_mark("no-json", "converted")
    assert "the mark of converted weights" in with_mark("no-text", 1)
    assert "`layout`" in with_mark("no-layout", "{}")
    # Two files, of which one is marked.
    folder = tmp_path / "half"
    shutil.copytree(converted[0] / "converted-safetensors", folder)
    file = min(folder.glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"relax_inplace.converted", b"relax_inplace.CONVERTED", 1))
    assert "in another way than those of other files" in refused(host, model / "model.so", folder)


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [32, 64], "data_offsets": [0, 8192]}


def entry(**changed):
    return safetensors({"w": {**ENTRY, **changed}}, bytes(8192))


HOSTILE = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "a header longer than the file": safetensors({}, length=1000),
    "a header of 2 ** 64 - 1 bytes": safetensors({}, length=2**64 - 1),
    "no JSON": safetensors(b"{]"),
    "no text": safetensors(b"\xff\x00\xfe"),
    "an array": safetensors([]),
    "an entry that is none": safetensors({"w": 1}),
    "a deep header": safetensors(b'{"w":' + b"[" * 1_000_000),
    "no shape": safetensors({"w": {"dtype": "F32", "data_offsets": [0, 0]}}),
    "a name that is several lines": safetensors({"w\n\x1b[2J": 1}),
    "no dtype": entry(dtype=None),
    "another dtype": entry(dtype="C64"),
    "sizes below 0": entry(shape=[-32, -64]),
    "sizes that overflow": entry(shape=[2**62, 2**62]),
    "sizes that are no integers": entry(shape=[3.2e1, 64]),
    "text for a size": entry(shape=["32", 64]),
    "one offset": entry(data_offsets=[0]),
    "offsets that are turned round": entry(data_offsets=[8192, 0]),
    "an offset below 0": entry(data_offsets=[-8192, 0]),
    "an end behind the file": entry(data_offsets=[0, 8193]),
    "an end of 2 ** 63 - 1": entry(data_offsets=[2**63 - 1, 2**63 - 1]),
    "an end of 2 ** 64": entry(data_offsets=[0, 2**64]),
    "fewer bytes than the shape has": entry(data_offsets=[0, 8188]),
    "metadata that is no object": safetensors({"__metadata__": 1}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_safetensors_are_one_line(host, exported, tmp_path, case):
    (tmp_path / "w.safetensors").write_bytes(HOSTILE[case])
    refused(host, exported.modules["plain"], tmp_path / "w.safetensors")


def test_damaged_safetensors_are_one_line(host, exported, tmp_path):
    """Cut anywhere, or with a byte of the header changed: refused, or of no consequence."""
    names = [
        one.name for one in runtime.load_transform(exported.modules["plain"], tvm.cpu()).weights
    ]
    params = runtime.Params(list(map(tvm.runtime.tensor, exported.weights)), names)
    runtime.save_params(params, tmp_path, "safetensors", shard_bytes=1 << 30)
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    generator = np.random.default_rng(0)
    for kept in (*generator.integers(0, header, 8), header, len(whole) - 1):
        file.write_bytes(whole[:kept])
        refused(host, exported.modules["plain"], file)
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[generator.integers(0, header)] = generator.integers(0, 256)
        file.write_bytes(damaged)
        done = subprocess.run([host, exported.modules["plain"], file], capture_output=True)
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1  # at the latest: no `prefill`


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
find_package(relax_inplace 0.2 CONFIG REQUIRED)
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
    assert done.returncode == 1 and "version: 0.2.0" in done.stderr
