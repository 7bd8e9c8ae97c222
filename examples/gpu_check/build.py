"""Build a folder that checks relax_inplace on a machine with a GPU, without compiler and network.

    python examples/gpu_check/build.py FOLDER                  CUDA, sm_80 and sm_90: needs nvcc
    python examples/gpu_check/build.py FOLDER --python 3.12    for another Python: gets its tvm-ffi
    python examples/gpu_check/build.py FOLDER --device cpu     the same check of the host

and there

    python FOLDER/check.py                                        a table; FOLDER/result.json

In the folder: a module for each conversion of ``benchmarks/workloads.py`` and each architecture;
digests of what numpy makes of the same weights; TVM's runtime, tvm-ffi and this package, without
the compiler; libcudart, which TVM's CUDA runtime needs. The machine brings the driver (13.0 or
newer: 580), Python, numpy, psutil, ml_dtypes, packaging, msgspec, safetensors, tqdm and
typing_extensions.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from contents import CONTENTS, content
from cuda_stub import find_cudart, load_stub

if shutil.which("nvcc") is not None:
    load_stub()

import tvm
import tvm_ffi
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

import relax_inplace

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

from operations import OPERATIONS  # noqa: E402
from ways import COMPILED  # noqa: E402
from workloads import WORKLOADS, Workload  # noqa: E402

ARCHES = ["sm_80", "sm_90"]
STREAMS = "transpose uint8"  # the conversion that is made on several streams, and streamed
GRAPH = "decode in a CUDA graph"


@I.ir_module
class Model:
    """What is lifted from it is converted; of the rest the last two products are in a graph."""

    @R.function
    def decode(
        x: R.Tensor((64, 256), "float32"),
        w0: R.Tensor((256, 256), "float32"),
        w1: R.Tensor((256, 256), "float32"),
    ):
        R.func_attr({"num_input": 1})
        w0t = R.permute_dims(w0)
        w1t = R.permute_dims(w1)
        y = R.matmul(R.matmul(R.matmul(x, w0t), w1t), w1t)
        return y


def main() -> None:
    """Build it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--arch", nargs="*", default=ARCHES, help="of CUDA: machine code for each")
    parser.add_argument("--gb", type=float, default=2.0, help="of the weights of each conversion")
    parser.add_argument("--shrink", type=int, default=1, help="divides the sides of matrices")
    parser.add_argument("--only", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--python", help="of the machine that checks, such as 3.12")
    options = parser.parse_args()
    if options.device == "cuda" and shutil.which("nvcc") is None:
        parser.error("nvcc is not on the PATH: CUDA's compiler is needed to build, not to check")
    makes_code = tvm_ffi.get_global_func("ffi.Module.create.cuda", allow_missing=True)
    if options.device == "cuda" and makes_code is None:
        parser.error("TVM's CUDA runtime could not be loaded: it needs libcudart.so.13")
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    cases = [_case(name, folder, options) for name in options.only]
    arches = options.arch if options.device == "cuda" else [""]
    for arch in arches:
        print(f"{GRAPH}, {arch or 'cpu'}")
        _export(_graph_module(), _target(arch), folder / _library("graph", arch), graph=True)
    _copy_packages(folder / "site", options)
    for script in ("check.py", "contents.py"):
        shutil.copy(HERE / script, folder)
    manifest = {
        "device": options.device,
        "arches": arches,
        "python": options.python or f"{sys.version_info.major}.{sys.version_info.minor}",
        "tvm": importlib.metadata.version("apache-tvm"),
        "relax_inplace": importlib.metadata.version("relax_inplace"),
        "cases": cases,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB. On the machine: python {folder.name}/check.py")


def _case(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    workload = Workload.of(name, options.gb * 1e9, options.shrink)
    layer = WORKLOADS[name](options.shrink)
    stem = "".join(c if c.isalnum() else "_" for c in name)
    for arch in options.arch if options.device == "cuda" else [""]:
        print(f"{name}, {arch or 'cpu'}")
        _export(COMPILED["in place"](workload), _target(arch), folder / _library(stem, arch))
        if name == STREAMS:
            # What reads the weights meanwhile; and the same, streamed.
            mod = COMPILED["TVM out of place"](workload)
            _export(mod, _target(arch), folder / _library(f"{stem}_reader", arch))
            mod = relax_inplace.transform.InplaceTransformParams(lazy=True)(mod)
            _export(mod, _target(arch), folder / _library(f"{stem}_streamed", arch))
    steps = [
        {
            "operation": operation,
            "weights": [{"shape": list(one.shape), "dtype": one.dtype} for one in weights],
            "digests": [_digest(operation, weights, number, c) for c in range(CONTENTS)],
        }
        for number, (operation, weights) in enumerate(layer)
    ]
    layers = len(workload.steps) // len(layer)
    return {"name": name, "stem": stem, "layers": layers, "layer": steps}


def _digest(operation: str, weights: list[Any], number: int, layer: int) -> str:
    """Of what numpy makes of a layer's step."""
    arrays = [
        content(list(one.shape), one.dtype, number, j, layer) for j, one in enumerate(weights)
    ]
    made = np.ascontiguousarray(OPERATIONS[operation].arrays(np, *arrays))
    return hashlib.blake2b(made.view("uint8").data, digest_size=16).hexdigest()


def _graph_module() -> tvm.IRModule:
    return relax_inplace.transform.LiftInplaceTransformParams()(Model)


def _library(stem: str, arch: str) -> str:
    return f"{stem}{'.' if arch else ''}{arch}.so"


def _target(arch: str) -> tvm.target.Target:
    if not arch:
        return tvm.target.Target("llvm")
    return tvm.target.Target({"kind": "cuda", "arch": arch}, host="llvm")


def _export(mod: tvm.IRModule, target: tvm.target.Target, path: Path, graph: bool = False) -> None:
    use_graph = graph and target.kind.name == "cuda"
    context = tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": use_graph})
    with context, target:  # nvcc is told the architecture of the current target
        relax.build(mod, target).export_library(str(path))


# -- what is needed there besides -----------------------------------------------------------------


def _copy_packages(site: Path, options: argparse.Namespace) -> None:
    shutil.rmtree(site, ignore_errors=True)
    tvm_folder = Path(tvm.__file__).parent
    for file in tvm_folder.rglob("*"):
        inside = file.relative_to(tvm_folder)
        is_python = file.suffix == ".py" and inside.parts[0] not in ("3rdparty", "src", "include")
        is_runtime = file.parent.name == "lib" and file.name.startswith("libtvm_runtime")
        if file.is_file() and (is_python or is_runtime):
            _copy(file, site / "tvm" / inside)
    ours = Path(relax_inplace.__file__).parent
    for file in ours.rglob("*"):
        if file.suffix in (".py", ".so"):
            _copy(file, site / "relax_inplace" / file.relative_to(ours))
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if options.python in (None, running):
        ffi = Path(tvm_ffi.__file__).parent
        for file in ffi.rglob("*"):
            if file.suffix in (".py", ".so"):
                _copy(file, site / "tvm_ffi" / file.relative_to(ffi))
    else:
        _fetch_tvm_ffi(site, options.python)
    for package in ("apache-tvm-ffi", "apache-tvm", "relax_inplace"):
        files = importlib.metadata.files(package) or []
        for one in files:
            if one.name == "METADATA":
                _copy(Path(one.locate()), site / str(one))
    if options.device == "cuda":
        if (cudart := find_cudart()) is None:
            print("note: no libcudart.so.13 here: the machine that checks has to have it")
        else:
            _copy(cudart, site / "cuda" / "libcudart.so.13")


def _fetch_tvm_ffi(site: Path, python: str) -> None:
    version = importlib.metadata.version("apache-tvm-ffi")
    with tempfile.TemporaryDirectory() as folder:
        platforms = ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        subprocess.run([*command, *platforms, f"apache-tvm-ffi=={version}"], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if name.startswith("tvm_ffi/") and Path(name).suffix in (".py", ".so"):
                    wheel.extract(name, site)


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, to)


if __name__ == "__main__":
    main()
