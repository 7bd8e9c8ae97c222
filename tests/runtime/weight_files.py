"""Files of weights as their own writers make them, written here byte by byte."""

import copy
import ctypes
import hashlib
import json
import struct

import numpy as np
import tvm

from relax_inplace.runtime.tensor_info import TensorInfo

# A float32 stored as bfloat16 at an odd place, behind an int8: TVM's writer aligns nothing, and
# stamps `f32-to-bf16` on both.
BYTES = b"\x01\x02\x03" + np.array([0x3F80, 0xC000], "<u2").tobytes() + bytes(range(24))
MANIFEST = {
    "metadata": {"ParamSize": 3},
    "records": [
        {
            "dataPath": "params_shard_0.bin",
            "format": "raw-shard",
            "nbytes": len(BYTES),
            "md5sum": hashlib.md5(BYTES).hexdigest(),
            "records": [
                {
                    "name": "codes",
                    "shape": [3],
                    "dtype": "int8",
                    "format": "f32-to-bf16",
                    "nbytes": 3,
                    "byteOffset": 0,
                },
                {
                    "name": "bias",
                    "shape": [2],
                    "dtype": "float32",
                    "format": "f32-to-bf16",
                    "nbytes": 4,
                    "byteOffset": 3,
                },
                {
                    "name": "layers.0.weight",
                    "shape": [3, 4],
                    "dtype": "float16",
                    "format": "raw",
                    "nbytes": 24,
                    "byteOffset": 7,
                },
            ],
        }
    ],
}
HEADER = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def write_tensor_cache(folder, change=lambda manifest: None, content=BYTES):
    """The manifest above, changed, and its file."""
    manifest = copy.deepcopy(MANIFEST)
    change(manifest)
    folder.mkdir(exist_ok=True)
    (folder / "params_shard_0.bin").write_bytes(content)
    (folder / "tensor-cache.json").write_text(json.dumps(manifest))
    return folder


def safetensors_bytes(header=HEADER, content=bytes(range(32)), length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + content


def write_index(folder, weight_map=None, **shards):
    """Two files and their index; ``shards`` replaces the bytes of one."""
    one = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    files = {
        "first": safetensors_bytes({"a": one}, b"aaaa"),
        "second": safetensors_bytes({"b": one}, b"bbbb"),
    } | shards
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    weight_map = weight_map or {"a": "first.safetensors", "b": "second.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def content_of(tensor):
    """The bytes of a tensor on the host."""
    one = TensorInfo("", tuple(map(int, tensor.shape)), str(tensor.dtype))
    return np.from_dlpack(tensor._create_view((one.nbytes,), "uint8")).tobytes()


def tensor_of(shape, dtype, seed=0):
    """Any bits: those of NaN, too."""
    tensor = tvm.runtime.empty(shape, dtype)
    view = np.from_dlpack(
        tensor._create_view((TensorInfo("", tuple(shape), dtype).nbytes,), "uint8")
    )
    bits = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, view.size)
    view[:] = bits.astype("uint8")
    return tensor


def references(tensor):
    """How many there are to a tensor."""
    # TVMFFIObject (tvm/ffi/c_api.h) begins with its counts: strong ones in the lower 32 bits.
    return ctypes.c_uint32.from_address(tensor.__chandle__()).value
