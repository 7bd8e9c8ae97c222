"""From a folder of 4-bit weights to converted ones, each way in a process of its own.

COLD_START_MB says how large the folder is: 192 here, 2,048 in `make bench`, which prints the table.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

MB = int(os.environ.get("COLD_START_MB", "192"))
N, K = 4096, 14336  # the feed-forward matrices of Llama-3-8B
CODES, SCALES = (N, K // 8), (N, K // 32)
PAIR = N * K // 2 + 2 * N * K // 32  # bytes
COUNT = max(2, round(MB * 1e6 / PAIR))
LARGEST = N * K // 2
SHARD = 32 << 20
SLACK = 8e6


def names():
    return [
        f"model.layers.{i}.mlp.{what}" for i in range(COUNT) for what in ("q_weight", "q_scale")
    ]


def build(path, lazy):
    """Compile the transform q4f16_1 -> q4f16_0 of all the weights."""
    import tvm
    from tvm import relax

    from relax_inplace.layout import group_quantized
    from relax_inplace.transform import InplaceTransformParams

    builder = relax.BlockBuilder()
    types = [relax.TensorType(CODES, "uint32"), relax.TensorType(SCALES, "float16")]
    weights = [relax.Var(name, types[i % 2]) for i, name in enumerate(names())]
    with builder.function("transform_params", weights, attrs={"num_input": 0}):
        fields = []
        for codes, scales in zip(weights[::2], weights[1::2], strict=True):
            fields += map(builder.emit, group_quantized.nk_to_kn(codes, scales))
        builder.emit_func_output(builder.emit(relax.Tuple(fields)))
    mod = InplaceTransformParams(lazy=lazy)(builder.get())
    tvm.compile(mod, "llvm").export_library(str(path))


def write(folder, format):
    """Random weights, pair by pair: the folder may be larger than memory."""
    import tvm

    from relax_inplace.runtime import Params, save_params

    generator = np.random.default_rng(0)
    params = []
    for i in range(2 * COUNT):
        shape, dtype = (CODES, "uint32") if i % 2 == 0 else (SCALES, "uint16")
        tensor = tvm.runtime.empty(shape, "uint32" if i % 2 == 0 else "float16")
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensor._create_view((nbytes,), "uint8").copyfrom(
            np.frombuffer(generator.bytes(nbytes), "uint8")
        )
        params.append(tensor)
    save_params(Params(params, names()), folder, format, shard_bytes=SHARD)


# -- the ways, each in a fresh process -------------------------------------------------------------


def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) * 1024


def run(way, library, folder, target):
    """Run it; seconds, bytes, and a digest of the result."""
    import hashlib

    import tvm

    from relax_inplace import runtime
    from relax_inplace.runtime.tensor_bytes import bytes_of

    transform = runtime.load_transform(library, tvm.cpu())
    before = resident("VmRSS")
    start = time.perf_counter()
    if way == "load":
        params = runtime.load_params(folder, tvm.cpu(), transform, progress=False)
    elif way == "stream":
        params = runtime.stream_params(transform, folder, tvm.cpu(), progress=False)
    else:
        cache = target if way == "cache" else None
        params = runtime.convert_params(transform, folder, tvm.cpu(), cache=cache, progress=False)
        if way == "convert":
            runtime.save_params(params, target, progress=False)
    seconds = time.perf_counter() - start
    peak = resident("VmHWM")
    digest = hashlib.sha256()
    for name in sorted(params.names):
        digest.update(bytes_of(params[name]))
    report = params.report
    print(
        json.dumps(
            {
                "seconds": seconds,
                "extra": peak - before,
                "weights": params.nbytes,
                "digest": digest.hexdigest(),
                "converted": report and report.converted,
                "convert_seconds": report and report.seconds,
            }
        )
    )


def in_fresh_process(way, library, folder, target):
    done = subprocess.run(
        [sys.executable, __file__, way, *map(str, (library, folder, target))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    result = json.loads(done.stdout)
    over = (result["extra"] - result["weights"]) / 1e6
    print(
        f"{way:8} {folder.name:13} {result['seconds']:6.2f} s   weights "
        f"{result['weights'] / 1e6:6.0f} MB   peak above them {over:6.1f} MB"
    )
    return result


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libraries")
    paths = {False: folder / "resident.so", True: folder / "streamed.so"}
    for lazy, path in paths.items():
        build(path, lazy)
    return paths


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("format", ["tensor-cache", "safetensors"])
def test_from_a_folder_to_converted_weights(tmp_path, libraries, format):
    if psutil.disk_usage(tmp_path).free < 4 * MB << 20:
        pytest.skip(f"needs {4 * MB} MB of disk")
    folder = tmp_path / format
    subprocess.run([sys.executable, __file__, "write", folder, format], check=True)
    print(f"\n{MB} MB, {2 * COUNT} weights, the largest {LARGEST / 1e6:.1f} MB, shards of 33.6 MB")

    resident_lib, streamed_lib = libraries[False], libraries[True]
    convert = in_fresh_process("convert", resident_lib, folder, tmp_path / "saved")
    assert convert["extra"] <= convert["weights"] + LARGEST + SHARD + SLACK

    stream = in_fresh_process("stream", streamed_lib, folder, tmp_path)
    assert stream["digest"] == convert["digest"]
    assert stream["extra"] <= stream["weights"] + 2 * LARGEST + SLACK

    cache = tmp_path / "cache"
    first = in_fresh_process("cache", resident_lib, folder, cache)
    second = in_fresh_process("cache", resident_lib, folder, cache)
    assert (first["converted"], second["converted"]) == (first["weights"], 0)
    assert second["digest"] == first["digest"] == convert["digest"]
    load = in_fresh_process("load", resident_lib, folder, tmp_path)
    print(f"second start, in plain loads: {second['seconds'] / load['seconds']:.2f}")
    assert load["extra"] <= load["weights"] + SLACK
    assert load["digest"] != convert["digest"]


if __name__ == "__main__":
    way, *arguments = sys.argv[1:]
    if way == "write":
        write(*arguments)
    else:
        run(way, *arguments)
