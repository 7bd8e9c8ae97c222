"""Any files: weights that are what the files hold, or a CheckpointError.

Never a crash or another error, no more memory than twice what the files have (bfloat16 becomes
float32), and no file outside the folder is opened. `make fuzz` tries 5,000 of each kind.
"""

import contextlib
import copy
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import tvm
from hypothesis import event, example, given
from hypothesis import strategies as st
from weight_files import BYTES, HEADER, MANIFEST, content_of, safetensors_bytes

from relax_inplace import runtime
from relax_inplace.runtime import CheckpointError, TensorInfo
from relax_inplace.runtime.checkpoint import reading

CPU = tvm.cpu()
_load = sys.modules["relax_inplace.runtime.checkpoint.loading"]

# --- what is watched

_opened = None  # the paths, while files are read


def _watch(event, args):
    if event == "open" and _opened is not None:
        _opened.append(args[0])


sys.addaudithook(_watch)


@contextlib.contextmanager
def watched(folder):
    """Check what is opened, and how much memory is asked for."""
    global _opened
    limit = 2 * sum(file.stat().st_size for file in folder.iterdir())
    requested = []
    empty = reading.empty

    def counted(shape, dtype, device):
        requested.append(TensorInfo("", tuple(shape), dtype).nbytes)
        assert sum(requested) <= limit
        return empty(shape, dtype, device)

    # What is free is read from /proc, which is outside the folder.
    with (
        mock.patch.object(reading, "empty", counted),
        mock.patch.object(_load, "available_bytes", lambda device: None),
    ):
        _opened = opened = []
        try:
            yield
        finally:
            _opened = None
    for path in opened:
        assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)), path


def stored(record):
    """The bytes of its tensor, by the definition of the format."""
    found = record.file.read_bytes()[record.offset : record.offset + record.stored_nbytes]
    assert len(found) == record.stored_nbytes
    if record.encoding == "raw":
        return found
    return (np.frombuffer(found, "<u2").astype("<u4") << 16).tobytes()


def check(files):
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path) / "weights"
        folder.mkdir()
        (Path(path) / "outside.bin").write_bytes(BYTES)
        (Path(path) / "outside.safetensors").write_bytes(safetensors_bytes())
        for name, content in files.items():
            (folder / name).write_bytes(content)
        with watched(folder):
            try:
                source = runtime.open_checkpoint(folder)
                params = runtime.load_params(folder, CPU, progress=False)
            except CheckpointError as error:
                assert str(error).isprintable() and len(str(error)) < 2000
                assert error.where and error.remedy
                event("refused")
                return
        event("loaded")
        assert params.names == tuple(source.records)
        for name, tensor in params.items():
            record = source.records[name]
            assert (tuple(tensor.shape), str(tensor.dtype)) == (record.shape, record.dtype)
            assert content_of(tensor) == stored(record)


# --- what is tried

_NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30]),
    st.floats(),
)
_WORDS = st.sampled_from(
    [
        "raw",
        "f32-to-bf16",
        "raw-shard",
        "int8",
        "int4",
        "float32",
        "bfloat16",
        "float32x4",
        "handle",
        "bool",
        "F32",
        "BF16",
        "C64",
        "F4",
        "codes",
        "bias",
        "a",
        "b",
        "params_shard_0.bin",
        "./params_shard_0.bin",
        "../outside.bin",
        "/etc/passwd",
        ".",
        "..",
        "../outside.safetensors",
        "first.safetensors",
        "second.safetensors",
        "tensor-cache.json",
        "\x00",
        "\x1b[31m",
    ]
)
_SCALARS = st.none() | st.booleans() | _NUMBERS | _WORDS | st.text(max_size=5)
_VALUES = st.recursive(
    _SCALARS,
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(_WORDS | st.text(max_size=3), below, max_size=4)
    ),
    max_leaves=6,
)  # fmt: skip


def places(value):
    """Every (container, key) in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in list(items):
        yield value, key
        if isinstance(below, dict | list):
            yield from places(below)


@st.composite
def mutated(draw, document):
    """A document with some fields dropped, replaced, moved or doubled, as text with some bytes flipped."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        found = list(places(document))
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        kind = draw(st.sampled_from(["drop", "replace", "number", "copy", "double"]))
        if kind == "drop":
            del container[key]
        elif kind == "replace":
            container[key] = draw(_VALUES)
        elif kind == "number" and isinstance(container[key], int):
            container[key] += draw(st.integers(-8, 8))
        elif kind == "copy":
            other, place = draw(st.sampled_from(found))
            container[key] = copy.deepcopy(other.get(place) if isinstance(other, dict) else None)
        elif kind == "double" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
    return draw(flipped(json.dumps(document).encode()))


@st.composite
def flipped(draw, content):
    content = bytearray(content)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.sampled_from([0, 0, 0, 0, 1, 9]))
    return bytes(content[: len(content) - cut])


@given(manifest=mutated(MANIFEST), content=flipped(BYTES))
@example(manifest=json.dumps(MANIFEST).encode(), content=BYTES)
def test_any_file_of_a_tensor_cache(manifest, content):
    check({"tensor-cache.json": manifest, "params_shard_0.bin": content})


_METADATA = {"format": "pt", "relax_inplace.converted": runtime.Mark("f", "L").to_json()}


@given(
    header=mutated({"__metadata__": _METADATA, **HEADER}),
    content=flipped(bytes(range(32))),
    length=st.sampled_from([None] * 20 + [0, 1, 99, 300, 10**8, 10**8 + 1, 2**63, 2**64 - 1]),
)
@example(header=json.dumps(HEADER).encode(), content=bytes(range(32)), length=None)
def test_any_file_of_safetensors(header, content, length):
    check({"model.safetensors": safetensors_bytes(header, content, length)})


_ONE = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
_WEIGHT_MAP = {"a": "first.safetensors", "b": "second.safetensors"}


@given(
    index=mutated({"metadata": {"total_size": 8}, "weight_map": _WEIGHT_MAP}),
    second=mutated({"b": _ONE}),
)
def test_any_file_of_an_index(index, second):
    check(
        {
            "model.safetensors.index.json": index,
            "first.safetensors": safetensors_bytes({"a": _ONE}, b"aaaa"),
            "second.safetensors": safetensors_bytes(second, b"bbbb"),
        }
    )


@given(
    name=st.sampled_from(["tensor-cache.json", "model.safetensors.index.json", "w.safetensors"]),
    content=st.binary(max_size=200) | _VALUES.map(lambda value: json.dumps(value).encode()),
)
def test_any_file_of_any_bytes(name, content):
    check({name: content, "params_shard_0.bin": BYTES})
