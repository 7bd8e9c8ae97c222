"""Any files: weights that are what the files hold, or a CheckpointError.

Never a crash, a wait or another error, no more memory than twice what the files have (bfloat16
becomes float32), and no file outside the folder is opened. `make fuzz` tries 5,000 of each kind.
"""

import contextlib
import copy
import functools
import itertools
import json
import os
import socket
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import tvm
from compiled_transforms import arrays, compiled, tensors, transposes
from hypothesis import event, example, given
from hypothesis import strategies as st
from profiles import examples
from safetensors import SafetensorError, safe_open
from weight_files import BYTES, HEADER, MANIFEST, content_of, safetensors_bytes

from relax_inplace import runtime
from relax_inplace.runtime import CheckpointError
from relax_inplace.runtime.checkpoint import open_checkpoint, reading
from relax_inplace.runtime.provenance import Provenance
from relax_inplace.runtime.tensor_info import TensorInfo

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
    limit = 2 * sum(file.lstat().st_size for file in folder.iterdir())
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


def check(files, change=lambda folder: None):
    """Weights that are right, and their shapes are given back, or an error."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path) / "weights"
        folder.mkdir()
        (Path(path) / "outside.bin").write_bytes(BYTES)
        (Path(path) / "outside.safetensors").write_bytes(safetensors_bytes())
        for name, content in files.items():
            (folder / name).write_bytes(content)
        change(folder)
        with watched(folder):
            try:
                checkpoint = open_checkpoint(folder)
                params = runtime.load_params(folder, CPU, progress=False)
            except CheckpointError as error:
                assert str(error).isprintable() and len(str(error)) < 2000
                assert error.where and error.remedy
                event("refused")
                return None
        event("loaded")
        assert params.names == tuple(checkpoint.records)
        for name, tensor in params.items():
            record = checkpoint.records[name]
            assert (tuple(tensor.shape), str(tensor.dtype)) == (record.shape, record.dtype)
            assert content_of(tensor) == stored(record)
        return {name: record.shape for name, record in checkpoint.records.items()}


# --- what is tried

_NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**4200]),
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


_AGAIN, _DEEP = "\1", "\2"  # marks, until the text is made


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
        kind = draw(
            st.sampled_from(["drop", "replace", "number", "copy", "double", "key twice", "deep"])
        )
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
        elif kind == "key twice" and isinstance(container, dict):
            container[key + _AGAIN] = draw(st.just(container[key]) | _VALUES)
        elif kind == "deep":
            container[key] = _DEEP
    text = json.dumps(document).replace(json.dumps(_AGAIN)[1:-1], "")
    depth = draw(st.sampled_from([10, 900, 10**5]))
    text = text.replace(json.dumps(_DEEP), "[" * depth + "]" * depth)
    return draw(flipped(text.encode()))


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


_METADATA = {"format": "pt", "relax_inplace.converted": Provenance("f", "L").to_json()}


@given(
    header=mutated({"__metadata__": _METADATA, **HEADER}),
    content=flipped(bytes(range(32))),
    length=st.sampled_from([None] * 20 + [0, 1, 99, 300, 10**8, 10**8 + 1, 2**63, 2**64 - 1]),
)
@example(header=json.dumps(HEADER).encode(), content=bytes(range(32)), length=None)
def test_any_file_of_safetensors(header, content, length):
    """What we load, Hugging Face's reader loads, too, and the same."""
    content = safetensors_bytes(header, content, length)
    loaded = check({"model.safetensors": content})
    if loaded is not None:
        loaded = {name: list(shape) for name, shape in loaded.items()}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(content)
        try:
            with safe_open(Path(folder) / "model.safetensors", "np") as checked:
                theirs = {key: checked.get_slice(key).get_shape() for key in checked.offset_keys()}
        except SafetensorError:
            assert loaded is None
            return
    assert loaded is None or loaded == theirs


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


# --- what is no file, and files that change


def _link(to):
    def put(path):
        path.unlink(missing_ok=True)
        path.symlink_to(to)

    return put


def _made(make):
    def put(path):
        path.unlink(missing_ok=True)
        make(path)

    return put


def _socket(path):
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
        one.bind(path.name)


def _sparse(path):
    with open(path, "r+b") as file:
        file.truncate(1 << 40)


_KINDS = {
    "as it is": lambda path: None,
    "gone": Path.unlink,
    "FIFO": _made(os.mkfifo),
    "socket": _made(_socket),
    "folder": _made(os.mkdir),
    "huge": _sparse,
    "empty": lambda path: os.truncate(path, 0),
    "shorter": lambda path: os.truncate(path, path.stat().st_size - 1),
    "device": _link("/dev/zero"),
    "terminal": _link("/dev/tty"),
    "random": _link("/dev/random"),
    "process": _link("/proc/self/mem"),
    "nothing": _link("nothing"),
    "itself": _link("first.safetensors"),
    "round": _link("round"),
    "outside": _link("../outside.bin"),
    "safetensors outside": _link("../outside.safetensors"),
    "the folder": _link("."),
    "root": _link("/"),
}
_OUTSIDE = ("outside", "safetensors outside", "process", "itself")


@given(
    files=st.sampled_from(
        [
            {"tensor-cache.json": json.dumps(MANIFEST).encode(), "params_shard_0.bin": BYTES},
            {"model.safetensors": safetensors_bytes()},
            {
                "model.safetensors.index.json": json.dumps({"weight_map": _WEIGHT_MAP}).encode(),
                "first.safetensors": safetensors_bytes({"a": _ONE}, b"aaaa"),
                "second.safetensors": safetensors_bytes({"b": _ONE}, b"bbbb"),
            },
        ]
    ),
    kinds=st.lists(st.sampled_from(sorted(_KINDS)), min_size=3, max_size=3),
)
def test_any_kind_of_file(files, kinds):
    def change(folder):
        os.symlink("round", folder / "round")
        for name, kind in zip(files, kinds, strict=False):
            # What is found first may be a link: Hugging Face's are.
            is_found_first = name == next(iter(files)) or kinds[0] == "gone"
            if not (is_found_first and kind in _OUTSIDE):
                _KINDS[kind](folder / name)

    check(files, change)


def _overwritten(path):
    with open(path, "r+b") as file:
        file.write(bytes(range(100, 131)))


def _swapped(path):
    (path.parent / "new").write_bytes(bytes(range(100, 131)))
    os.replace(path.parent / "new", path)


_CHANGES = {name: _KINDS[name] for name in ("gone", "FIFO", "folder", "huge", "empty", "shorter", "device")} | {
    "overwritten": _overwritten,
    "swapped": _swapped,
    "touched": os.utime,
}  # fmt: skip


@given(
    kind=st.sampled_from(sorted(_CHANGES)),
    before=st.integers(0, 25),
    checksum=st.booleans(),
)
def test_a_file_that_changes_at_any_moment(kind, before, checksum):
    """Before, between or while its weights are read: those that were checked, or an error."""
    reading = sys.modules["relax_inplace.runtime.checkpoint.reading"]
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        (folder / "tensor-cache.json").write_text(json.dumps(MANIFEST))
        (folder / "params_shard_0.bin").write_bytes(BYTES)
        checkpoint = open_checkpoint(folder)
        expected = {name: stored(record) for name, record in checkpoint.records.items()}
        left = before
        read_into = reading.read_into

        def changed():
            nonlocal left
            left -= 1
            if left == -1:
                _CHANGES[kind](folder / "params_shard_0.bin")

        def read(descriptor, memory, offset, where):
            half = memory.nbytes // 2
            changed()
            read_into(descriptor, memory[:half], offset, where)
            changed()
            read_into(descriptor, memory[half:], offset + half, where)
            changed()

        changed()
        with mock.patch.object(reading, "read_into", read):
            try:
                params = runtime.load_params(checkpoint, CPU, checksum=checksum, progress=False)
            except CheckpointError:
                event("refused")
                return
        event("loaded")
        assert {name: content_of(tensor) for name, tensor in params.items()} == expected


# --- weights that stay in their files until they are moved

UNREAD = 256, 128


@functools.cache
def unread_transform():
    """Three weights of 128 KB, the first and the last of which are only moved."""
    body = """
first = R.permute_dims(params[0])
second = R.negative(params[1])
third = R.permute_dims(params[2])
return (first, second, third)
"""
    transform = runtime.Transform.of(compiled(tensors(*[UNREAD] * 3), body))
    assert transform.moved == {0, 2}
    return transform


@functools.cache
def unread_files():
    """A file for each of them."""
    transform = unread_transform()
    with tempfile.TemporaryDirectory() as path:
        params = runtime.Params([tvm.runtime.tensor(one) for one in arrays(transform)])
        params._name([one.name for one in transform.weights])
        runtime.save_params(params, path, shard_bytes=1)
        return {one.name: one.read_bytes() for one in Path(path).iterdir()}


@examples(100)
@given(
    kinds=st.lists(st.sampled_from(["as it is", *sorted(_CHANGES)]), min_size=3, max_size=3),
    moment=st.integers(-1, 3),
    is_converted=st.booleans(),
)
def test_a_file_that_changes_before_its_weight_is_moved(kinds, moment, is_converted):
    """At any moment: each weight is the original or the converted one, or named in an error."""
    transform = unread_transform()
    originals = arrays(transform)
    converted = [originals[0].T, -originals[1], originals[2].T]
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        for name, content in unread_files().items():
            (folder / name).write_bytes(content)
            os.utime(folder / name, ns=(0, 0))  # so that a write at once is seen
        files = sorted(folder.glob("params_shard_*"))
        params = runtime.load_params(folder, CPU, transform, progress=False)
        calls = itertools.count()

        def changed(_progress=None):
            if next(calls) == moment + 1:
                for kind, file in zip(kinds, files, strict=True):
                    _CHANGES.get(kind, lambda _: None)(file)

        changed()
        lost, error = (), None
        if is_converted:
            try:
                runtime.transform_params(transform, params, progress=changed)
            except runtime.TransformError as caught:
                error, lost = caught, caught.lost
        done = params.names if error is None and is_converted else getattr(error, "converted", ())
        for index, name in enumerate(params.names):
            try:
                found = params[name]
            except CheckpointError as refused:
                event("not read")
                assert "has changed" in str(refused) or "too early" in str(refused)
                break
            expected = converted[index] if name in done else originals[index]
            if name in lost:
                event("lost")
                assert found is None
            else:
                assert found.numpy().tobytes() == np.ascontiguousarray(expected).tobytes()
        else:
            event("whole" if not lost else "lost")


# --- what lies where a conversion is kept


@examples(30, fuzz=2000)
@given(
    manifest=st.none() | mutated(MANIFEST),
    flip=st.none() | st.tuples(st.integers(0, 1), st.integers(0), st.integers(1, 255)),
    kinds=st.lists(st.sampled_from(["as it is", *sorted(_KINDS)]), min_size=2, max_size=2),
    format=st.sampled_from(["tensor-cache", "safetensors"]),
)
def test_any_cache_of_a_conversion(manifest, flip, kinds, format):
    """The weights are right, whatever lies there, and no file outside is changed."""
    transform = transposes()
    weights = arrays(transform)
    with tempfile.TemporaryDirectory() as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, cache = Path(path) / "weights", Path(path) / "cache"
        tensors = [tvm.runtime.tensor(one) for one in weights]
        runtime.save_params(
            runtime.Params(tensors, [one.name for one in transform.weights]), folder
        )
        outside = [Path(path) / "outside.bin", Path(path) / "outside.safetensors"]
        for one in outside:
            one.write_bytes(BYTES)

        def converted():
            # Of safetensors nothing says that a number is another one than was saved.
            checksum = format == "tensor-cache"
            return runtime.convert_params(
                transform,
                folder,
                CPU,
                cache=cache,
                format=format,
                checksum=checksum,
                progress=False,
            )

        converted()
        found = open_checkpoint(cache)
        victims = [found.path, found.files[0].path]
        if manifest is not None:
            victims[0].write_bytes(manifest)
        if flip is not None:
            content = bytearray(victims[flip[0]].read_bytes())
            end = content.rfind(b"}") + 1 if format == "safetensors" else len(content)
            if end > 0:
                content[flip[1] % end] ^= flip[2]
            victims[flip[0]].write_bytes(content)
        for victim, kind in zip(victims, kinds, strict=True):
            if victim.exists() and victim.stat().st_size:
                _KINDS[kind](victim)
        before = {one: one.read_bytes() for one in [*outside, *folder.iterdir()]}
        for _ in range(2):
            assert all(
                np.array_equal(one.numpy(), array.T)
                for one, array in zip(converted(), weights, strict=True)
            )
        assert all(one.read_bytes() == content for one, content in before.items())
