"""Weights to files: each format's own readers read them, and a failure leaves what was there."""

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tvm
import tvm_ffi
from memory import extra_mb, in_fresh_process, needs_clear_refs
from safetensors import safe_open
from weight_files import (
    content_of,
    references,
    safetensors_bytes,
    tensor_of,
    write_index,
    write_tensor_cache,
)

from relax_inplace import runtime
from relax_inplace.runtime import Params, SaveError
from relax_inplace.runtime.checkpoint import open_checkpoint
from relax_inplace.runtime.checkpoint.safetensors import DTYPES as SAFETENSORS_DTYPES
from relax_inplace.runtime.checkpoint.tensor_cache import DTYPES as TENSOR_CACHE_DTYPES
from relax_inplace.runtime.provenance import Provenance

CPU = tvm.cpu()
FORMATS = ["tensor-cache", "safetensors"]
MARK = Provenance("inplace_transform_params", "9f0c", "source")


def some(seed=0, provenance=None):
    weights = {
        "a": tensor_of((3, 5), "float16", seed),
        "layers.0.b": tensor_of((7,), "int8", seed + 1),
        "é": tensor_of((), "float32", seed + 2),
        "empty": tensor_of((0, 4), "float32"),
        "c": tensor_of((33,), "bfloat16", seed + 3),
    }
    return Params(weights.values(), weights, provenance=provenance)


def contents(params):
    return {name: (str(one.dtype), one.shape, content_of(one)) for name, one in params.items()}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shard_bytes", [1, 40, 1 << 20])
def test_round_trip(format, shard_bytes, tmp_path):
    params = some(provenance=MARK)
    runtime.save_params(params, tmp_path / "new" / "folder", format, shard_bytes=shard_bytes)
    found = runtime.load_params(tmp_path / "new" / "folder", CPU, params.names)
    assert contents(found) == contents(params)
    assert found.provenance == MARK


@pytest.mark.parametrize(
    ("format", "dtype"),
    [("tensor-cache", dtype) for dtype in sorted(TENSOR_CACHE_DTYPES)]
    + [("safetensors", dtype) for dtype in sorted(SAFETENSORS_DTYPES.values())],
)
def test_every_dtype(format, dtype, tmp_path):
    """Bit for bit; three numbers of four bits take two bytes."""
    params = Params([tensor_of((3,), dtype), tensor_of((2, 2), dtype)], ["w", "v"])
    runtime.save_params(params, tmp_path, format)
    found = runtime.load_params(tmp_path, CPU, ["w", "v"], checksum=format == "tensor-cache")
    assert contents(found) == contents(params)


def test_tvm_reads_it(tmp_path):
    params = some()
    runtime.save_params(params, tmp_path, shard_bytes=40)
    tvm_ffi.get_global_func("vm.builtin.tensor_cache.load")(str(tmp_path), 1, 0)
    get = tvm_ffi.get_global_func("vm.builtin.tensor_cache.get")
    assert {name: content_of(get(name)) for name in params.names} == {
        name: content_of(one) for name, one in params.items()
    }
    tvm_ffi.get_global_func("vm.builtin.tensor_cache.clear")()


def test_hugging_face_reads_it(tmp_path):
    params = some(provenance=MARK)
    runtime.save_params(params, tmp_path, "safetensors", shard_bytes=40)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == params.nbytes
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "np") as checked:
            assert checked.get_tensor(name).tobytes() == content_of(params[name])
            assert checked.metadata()["format"] == "pt"
        # A file on its own is known as converted, too.
        assert runtime.load_params(tmp_path / file, CPU).provenance == MARK


@pytest.mark.parametrize(
    ("shard_bytes", "sizes"), [(12, [12, 12, 20, 4]), (20, [16, 8, 20, 4]), (99, [48])]
)
def test_files(shard_bytes, sizes, tmp_path):
    """A weight that is larger than a file has one of its own."""
    weights = [tensor_of((size,), "uint8") for size in (4, 8, 4, 8, 20, 4)]
    runtime.save_params(Params(weights), tmp_path, shard_bytes=shard_bytes)
    manifest = json.loads((tmp_path / "tensor-cache.json").read_text())
    assert [shard["nbytes"] for shard in manifest["records"]] == sizes


@pytest.mark.parametrize("format", FORMATS)
def test_saving_again(format, tmp_path):
    """The old files go, and nothing else does."""
    (tmp_path / "params_shard_9.bin").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    for seed in (1, 2):
        runtime.save_params(some(seed), tmp_path, format, shard_bytes=40)
        names = set(os.listdir(tmp_path))
        source = open_checkpoint(tmp_path)
        assert names == {
            "notes.txt",
            "params_shard_9.bin",
            source.path.name,
            *(file.name for file in source.files),
        }
    assert contents(runtime.load_params(tmp_path, CPU, some().names)) == contents(some(2))


def test_a_manifest_that_would_be_found_first_goes(tmp_path):
    runtime.save_params(some(1), tmp_path, "tensor-cache")
    runtime.save_params(some(2), tmp_path, "safetensors")
    assert sorted(name.split("-")[0] for name in os.listdir(tmp_path)) == [
        "model",
        "model.safetensors.index.json",
    ]
    assert open_checkpoint(tmp_path).format == "safetensors"


def test_one_that_would_be_found_later_stays(tmp_path):
    """Hugging Face's files, in the folder in which the converted ones are put."""
    write_index(tmp_path)
    before = set(os.listdir(tmp_path))
    runtime.save_params(some(), tmp_path)
    assert before < set(os.listdir(tmp_path))
    assert open_checkpoint(tmp_path).format == "tensor-cache"


def test_files_that_another_manifest_names_stay(tmp_path):
    write_tensor_cache(tmp_path)
    (tmp_path / "mine.json").write_bytes((tmp_path / "tensor-cache.json").read_bytes())
    runtime.save_params(some(), tmp_path)
    assert len(runtime.load_params(tmp_path / "mine.json", CPU)) == 3


@pytest.mark.parametrize(
    "path",
    [
        "../victim.bin",
        "sub/victim.bin",
        "..",
        "notes.txt",
        "tensor-cache.json",
        "a\0.bin",
        "\ud800.bin",
    ],
    ids=ascii,
)
def test_an_old_manifest_cannot_have_anything_removed(path, tmp_path):
    folder = tmp_path / "w"
    (folder / "sub").mkdir(parents=True)
    victims = [tmp_path / "victim.bin", folder / "sub" / "victim.bin", folder / "notes.txt"]
    for victim in victims:
        victim.write_bytes(b"x")
    (folder / "tensor-cache.json").write_text(json.dumps({"records": [{"dataPath": path}]}))
    runtime.save_params(some(), folder)
    assert all(victim.exists() for victim in victims)
    assert len(runtime.load_params(folder, CPU)) == 5


@pytest.mark.parametrize("format", FORMATS)
def test_an_old_manifest_that_is_damaged(format, tmp_path):
    (tmp_path / "tensor-cache.json").write_bytes(b"{")
    runtime.save_params(some(), tmp_path, format)
    assert len(runtime.load_params(tmp_path, CPU)) == 5


def test_a_key(tmp_path):
    runtime.save_params(some(provenance=MARK), tmp_path, key="k")
    assert runtime.load_params(tmp_path, CPU).provenance == Provenance(
        "inplace_transform_params", "9f0c", "source", "k"
    )


# --- what is refused


LOST = tvm_ffi.Array([tensor_of((1,), "int8"), None])


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (Params(LOST), {}, "weight '1' is lost, expected tensors that tensor-cache can hold"),
        (Params([]), {}, "no weights"),
        (Params([tvm_ffi.Shape([1])]), {}, "weight '0' is Shape, not a tensor"),
        (Params([tensor_of((4,), "float32x4")]), {}, "weight '0' is float32x4"),
        (Params([tensor_of((4,), "int4")]), {"format": "safetensors"}, "weight '0' is int4"),
        (
            Params([tensor_of((4,), "int8")], ["__metadata__"]),
            {"format": "safetensors"},
            "has the name of the header's metadata",
        ),
        (Params([tensor_of((4,), "int8")], ["a\ud800"]), {}, "has half a letter in its name"),
        (some(), {"format": "npz"}, "format='npz', expected 'tensor-cache' or 'safetensors'"),
        (some(), {"key": "k"}, "a key and weights without a mark"),
    ],
)
def test_refused(params, options, message, tmp_path):
    with pytest.raises(SaveError, match=message):
        runtime.save_params(params, tmp_path, **options)
    assert os.listdir(tmp_path) == []


def test_a_view_that_is_not_contiguous(tmp_path):
    array = np.zeros((4, 4), "int8").T[:, :2]
    with pytest.raises(SaveError, match="not contiguous"):
        runtime.save_params(Params([tvm_ffi.from_dlpack(array)]), tmp_path)


# --- failures


class Failing:
    """The operating system, from some call on."""

    def __init__(self, monkeypatch, after, error):
        self.left = after
        for name in ("write", "fsync", "replace"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name), error))

    def counted(self, call, error):
        def counted(*args):
            self.left -= 1
            if self.left < 0:
                raise error
            return call(*args)

        return counted


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=str
)
def test_a_failure_at_every_step(format, error, tmp_path):
    """Old or new, never a mixture; and nothing is left behind."""
    runtime.save_params(some(1), tmp_path, format, shard_bytes=40)
    old = contents(runtime.load_params(tmp_path, CPU))
    new = contents(some(2))
    steps = 0
    while True:
        with pytest.MonkeyPatch.context() as monkeypatch:
            failing = Failing(monkeypatch, steps, error)
            try:
                runtime.save_params(some(2), tmp_path, format, shard_bytes=40)
            except SaveError as caught:
                assert "no space left on device" in str(caught)
                assert f"expected to write {some(2).nbytes:,} bytes" in str(caught)
                assert "bytes free" in str(caught)
            except KeyboardInterrupt:
                pass
        found = contents(runtime.load_params(tmp_path, CPU))
        if failing.left >= 0:
            assert found == new
            break
        assert found in (old, new)
        if found == old:
            source = open_checkpoint(tmp_path)
            assert set(os.listdir(tmp_path)) == {source.path.name} | {
                file.name for file in source.files
            }
        steps += 1
    assert steps > 8


def test_a_failure_is_no_owner(tmp_path, monkeypatch):
    params = some()
    Failing(monkeypatch, 2, OSError(errno.EIO, "Input/output error"))
    gc.disable()
    try:
        with pytest.raises(SaveError, match="input/output error"):
            runtime.save_params(params, tmp_path)
        assert all(references(params.fields[index]) == 2 for index in range(len(params)))
    finally:
        gc.enable()


def test_no_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(SaveError, match="the disk has 10 bytes free, expected to write 107 bytes"):
        runtime.save_params(some(), tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_is_full(format, tmp_path):
    """A limit on the size of files does what a full disk does, in the writers' own code."""
    program = f"""
        import resource, tvm
        from relax_inplace import runtime
        params = runtime.Params([tvm.runtime.empty((1 << 20,), "int8")], ["w"])
        runtime.save_params(params, {str(tmp_path)!r}, {format!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))
        try:
            runtime.save_params(params, {str(tmp_path)!r}, {format!r})
        except runtime.SaveError as error:
            print(error)
        assert len(runtime.load_params({str(tmp_path)!r}, tvm.cpu())) == 1
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert "file too large" in done.stdout
    assert "expected to write 1,048,576 bytes" in done.stdout
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_in_the_way(format, tmp_path):
    (tmp_path / "tensor-cache.json").mkdir()  # safetensors would not be found
    with pytest.raises(SaveError, match=r"tensor-cache\.json is a directory"):
        runtime.save_params(some(), tmp_path, format)
    assert os.listdir(tmp_path) == ["tensor-cache.json"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "w").write_bytes(b"x")
    with pytest.raises(SaveError, match="file exists"):
        runtime.save_params(some(), tmp_path / "w")
    with pytest.raises(SaveError, match="not a directory"):
        runtime.save_params(some(), tmp_path / "w" / "below")


def test_a_link_is_replaced_and_not_followed(tmp_path):
    """In Hugging Face's cache the manifest is a link to a file that others use."""
    blob = tmp_path / "blob"
    blob.write_bytes(safetensors_bytes())
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "tensor-cache.json").symlink_to(blob)
    runtime.save_params(some(), tmp_path / "w")
    assert blob.read_bytes() == safetensors_bytes()
    assert len(runtime.load_params(tmp_path / "w", CPU)) == 5


def extra_of_save(folder, format):
    runtime.save_params(some(), folder, format)
    weight = np.ones(32 << 20, "uint8")
    params = Params([tvm.runtime.tensor(weight) for _ in range(4)])
    return extra_mb(lambda: runtime.save_params(params, folder, format))


@needs_clear_refs
@pytest.mark.parametrize("format", FORMATS)
def test_peak_memory(format, tmp_path):
    """Weights on the host are written from where they are."""
    assert in_fresh_process(extra_of_save, tmp_path, format) < 1.5
