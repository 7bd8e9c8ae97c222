"""A folder of 4-bit weights, what converts them, and one way from the one to the other.

COLD_START_MB says how large the folder is. As a script it runs one way: see test_cold_start.py.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

MB = int(os.environ.get("COLD_START_MB", "192"))
N, K = 4096, 14336  # the feed-forward matrices of Llama-3-8B
CODES, SCALES = (N, K // 8), (N, K // 32)
PAIR = N * K // 2 + 2 * N * K // 32  # bytes
COUNT = max(2, round(MB * 1e6 / PAIR))
LARGEST = N * K // 2
SHARD = 32 << 20


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


def forget(folder):
    """Have the system drop the files from its cache, as far as it does."""
    for path in Path(folder).iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
        params = runtime.load_params(folder, tvm.cpu(), progress=False)
    elif way == "stream":
        params = runtime.stream_params(transform, folder, tvm.cpu(), progress=False)
    elif way == "both":
        params = runtime.load_params(folder, tvm.cpu(), transform, progress=False)
        runtime.transform_params(transform, params, progress=False)
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


if __name__ == "__main__":
    way, *arguments = sys.argv[1:]
    if way == "write":
        write(*arguments)
    else:
        run(way, *arguments)
