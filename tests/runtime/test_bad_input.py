"""Every file that is not what it should be: which error, and no memory is taken before it."""

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import tvm
from weight_files import (
    BYTES,
    HEADER,
    MANIFEST,
    content_of,
    safetensors_bytes,
    write_index,
    write_tensor_cache,
)

from relax_inplace import runtime
from relax_inplace.runtime import CheckpointError, Transform
from relax_inplace.runtime.checkpoint import CheckpointReader, open_checkpoint
from relax_inplace.runtime.provenance import Provenance
from relax_inplace.runtime.tensor_info import TensorInfo

CPU = tvm.cpu()


@pytest.fixture
def no_memory(monkeypatch):
    """Taking memory for a tensor fails the test."""

    def taken(shape, *others):
        pytest.fail(f"memory was taken for a tensor {shape}")

    monkeypatch.setattr(tvm.runtime, "empty", taken)


def refused(path, message, names=None, **options):
    with pytest.raises(CheckpointError, match=message) as caught:
        runtime.load_params(path, CPU, names, **options)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1000  # one line, and no control characters
    assert caught.value.remedy
    return caught.value


# --- TVM's tensor cache: what is changed in a good manifest, and what the error says


def shard(**changes):
    return lambda manifest: manifest["records"][0].update(changes)


def first(**changes):
    return lambda manifest: manifest["records"][0]["records"][0].update(changes)


def bias(**changes):
    return lambda manifest: manifest["records"][0]["records"][1].update(changes)


def dropped(key):
    return lambda manifest: manifest["records"][0]["records"][0].pop(key)


MANIFESTS = {
    "no records": (lambda m: m.pop("records"), "no 'records' given"),
    "records no list": (lambda m: m.update(records={}), "records: {} given, expected array"),
    "shard no object": (lambda m: m.update(records=[3]), r"records\[0\]: 3 given, expected object"),
    "record no object": (shard(records=["w"]), r"records\[0\].records\[0\]: 'w' given, expected object"),
    "empty": (lambda m: m.update(records=[]), "no weights given, expected at least one"),
    "empty shard": (shard(records=[]), "no weights given"),
    "shard format": (shard(format="npz"), "the format 'npz', expected 'raw-shard'"),
    "shard nbytes": (shard(nbytes=32), "has 31 bytes, expected 32; download it again"),
    "shard negative": (shard(nbytes=-1), "nbytes: -1 given, expected int >= 0"),
    "shard true": (shard(nbytes=True), "nbytes: True given, expected int"),
    "md5 no text": (shard(md5sum=3), "md5sum: 3 given, expected str"),
    "md5 too short": (shard(md5sum="ab"), "md5sum: 'ab' given, expected str matching"),
    "no such file": (shard(dataPath="b.bin"), "the file 'b.bin': no such file"),
    "path no text": (shard(dataPath=3), "dataPath: 3 given, expected str"),
    "path empty": (shard(dataPath=""), "has no name"),
    "path parent": (shard(dataPath="../x/params_shard_0.bin"), "leaves the folder"),
    "path parent inside": (shard(dataPath="a/../params_shard_0.bin"), "leaves the folder"),
    "path absolute": (shard(dataPath="/etc/passwd"), "is absolute"),
    "path NUL": (shard(dataPath="a\0b"), "has a NUL in its name"),
    "path surrogate": (shard(dataPath="\ud800"), "a name that no file can have"),
    "path folder": (shard(dataPath="."), "not a regular file"),
    "path too long": (shard(dataPath="x" * 5000), "file name too long"),
    "path through a file": (shard(dataPath="params_shard_0.bin/x"), "not a directory"),
    "path terminal": (shard(dataPath="\x1b[31m\n"), r"the file '\\x1b\[31m\\n'"),
    "file twice": (
        lambda m: m["records"].append({**m["records"][0], "dataPath": "./params_shard_0.bin"}),
        "is given twice",
    ),
    "name twice": (bias(name="codes"), "the weight 'codes' is in .* and in .*expected each name once"),
    "name no text": (first(name=None), "name: None given, expected str"),
    "name long": (first(name="w" * 10**6, dtype=""), "'www.*www'"),
    "no name": (dropped("name"), "no 'name' given"),
    "no shape": (dropped("shape"), "no 'shape' given"),
    "no offset": (dropped("byteOffset"), "no 'byteOffset' given"),
    "shape no list": (first(shape=3), "shape: 3 given, expected array"),
    "size negative": (first(shape=[-3]), r"shape\[0\]: -3 given"),
    "size true": (first(shape=[True, 3]), r"shape\[0\]: True given"),
    "size float": (first(shape=[3.0]), r"shape\[0\]: 3.0 given"),
    "size text": (first(shape=["3"]), r"shape\[0\]: '3' given"),
    "size huge": (first(shape=[10**4000]), r"shape\[0\]: 1000.*\.\.\..* given"),
    "shape past 64 bits": (first(shape=[2**32, 2**32]), "expected a size that 64 bits can count"),
    "shape times zero": (first(shape=[2**62, 2**62, 0]), "expected a size that 64 bits can count"),
    "dimensions": (first(shape=[1] * 10**5), "100,000 dimensions, expected at most 64"),
    "sizes that are huge": (first(shape=[2**62] * 64), "expected a size that 64 bits can count"),
    "shape and nbytes": (first(shape=[4]), "3 bytes for int8.4. stored as raw, expected 4"),
    "nbytes float": (first(nbytes=3.0), "nbytes: 3.0 given"),
    "nbytes huge": (first(nbytes=2**63), "nbytes: 9223372036854775808 given"),
    "bf16 odd": (bias(nbytes=3), "3 bytes for float32.2. stored as f32-to-bf16, expected 4"),
    "bf16 but raw": (bias(format="raw"), "4 bytes for float32.2. stored as raw, expected 8"),
    "offset negative": (first(byteOffset=-1), "byteOffset: -1 given"),
    "offset outside": (first(byteOffset=29), "bytes 29 to 32, expected bytes of the file"),
    "offset far outside": (first(byteOffset=2**63 - 1), "expected bytes of the file"),
    "overlap": (first(byteOffset=2), "begins at byte 3, expected one that does not overlap"),
    "format unknown": (first(format="gzip"), "the format 'gzip', expected 'raw' or"),
    "dtype unknown": (first(dtype="complex64"), "the dtype 'complex64', expected one that TVM"),
    "dtype of 33 bits": (first(dtype="float33"), "the dtype 'float33'"),
    "dtype of lanes": (first(dtype="float32x4"), "the dtype 'float32x4'"),
    "dtype handle": (first(dtype="handle"), "the dtype 'handle'"),
    "dtype void": (first(dtype="void"), "the dtype 'void'"),
    "dtype empty": (first(dtype=""), "the dtype ''"),
    "dtype no text": (first(dtype=8), "dtype: 8 given, expected str"),
    "mark unreadable": (
        lambda m: m["metadata"].update({"relax_inplace.converted": "?"}),
        "expected the mark of converted weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFESTS)
def test_tensor_cache(case, tmp_path, no_memory):
    change, message = MANIFESTS[case]
    error = refused(write_tensor_cache(tmp_path / "w", change), message)
    assert str(tmp_path) in error.where


MANIFEST_BYTES = {
    "empty": (b"", "not JSON"),
    "not JSON": (b"{'records': []}", "not JSON"),
    "cut off": (json.dumps(MANIFEST).encode()[:-1], "not JSON"),
    "no object": (b"[1]", r"\[1\] given, expected object"),
    "not UTF-8": (b'{"records": "\xff"}', "byte 13 is not UTF-8"),
    "UTF-16": (json.dumps(MANIFEST).encode("utf-16"), "not UTF-8"),
    "nested": (b"[" * 10**6, "JSON nested too deeply"),
    "nested objects": (b'{"a":' * 10**6, "JSON nested too deeply"),
    "NaN": (b'{"records": NaN}', "NaN is no number"),
    "key twice": (b'{"records": [], "records": []}', "the key 'records' is given twice"),
    "digits": (b'{"records": ' + b"9" * 10**5 + b"}", "not JSON"),
}


@pytest.mark.parametrize("case", MANIFEST_BYTES)
@pytest.mark.parametrize("name", ["tensor-cache.json", "model.safetensors.index.json"])
def test_manifest(name, case, tmp_path, no_memory):
    content, message = MANIFEST_BYTES[case]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, message)


def test_manifest_that_is_huge(tmp_path, no_memory):
    with open(tmp_path / "tensor-cache.json", "wb") as file:
        file.truncate(1 << 40)
    refused(tmp_path, "1,099,511,627,776 bytes given, expected a manifest of at most 268,435,456")


# --- safetensors


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


FILES = {
    "empty": (b"", "0 bytes, expected a safetensors file"),
    "seven bytes": (b"\0" * 7, "7 bytes, expected a safetensors file"),
    "no header": (b"\0" * 8, "not JSON"),
    "no weights": (safetensors_bytes({}, b""), "no weights given"),
    "header absurd": (b"\xff" * 8 + b"{}", "a header of 18,446,744,073,709,551,615 bytes"),
    "header longer": (safetensors_bytes(length=10**6), "a header of 1,000,000 bytes"),
    "header cut": (safetensors_bytes(length=20), "not JSON"),
    "not JSON": (safetensors_bytes(b"{"), "not JSON"),
    "nested": (safetensors_bytes(b'{"a":' * 99999), "nested too deeply"),
    "not UTF-8": (safetensors_bytes(b"\xff\xff"), "is not UTF-8"),
    "cut off": (safetensors_bytes()[:-1], "expected bytes of the file"),
    "too long": (safetensors_bytes() + b"x", "as its header says"),
    "overlap": (
        safetensors_bytes(HEADER | entry(shape=[2], offsets=(0, 8)), b"0" * 32),
        "no hole, no overlap",
    ),
    "name terminal": (
        safetensors_bytes({"a": HEADER["a"], "\n\x1b[31m": HEADER["a"]}, b"0" * 24),
        "no hole, no overlap",
    ),
    "offsets turned": (safetensors_bytes(entry(shape=[0], offsets=(8, 0)), b"0" * 8), "no hole"),
    "entry no object": (safetensors_bytes({"a": 3}, b""), "'a': 3 given, expected object"),
    "metadata no text": (safetensors_bytes({"__metadata__": {"a": 3}}, b""), "3.* given, expected str"),
    "offset outside": (safetensors_bytes(entry(offsets=(8, 16)), b"0" * 8), "no hole"),
    "offset negative": (safetensors_bytes(entry(offsets=(-8, 0)), b"0" * 8), r"data_offsets\[0\]: -8 given"),
    "size wrong": (safetensors_bytes(entry(shape=[3]), b"0" * 8), "8 bytes for float32.3. stored as raw, expected 12"),
    "size negative": (safetensors_bytes(entry(shape=[-2]), b"0" * 8), r"shape\[0\]: -2 given"),
    "size true": (safetensors_bytes(entry(shape=[True]), b"0" * 8), r"shape\[0\]: True given"),
    "past 64 bits": (safetensors_bytes(entry(shape=[2**62, 8]), b"0" * 8), "64 bits can count"),
    "dtype": (safetensors_bytes(entry("F33"), b"0" * 8), "the dtype 'F33'"),
    "complex": (safetensors_bytes(entry("C64", [1]), b"0" * 8), "the dtype 'C64', expected one"),
    "four bits": (safetensors_bytes(entry("F4", [16]), b"0" * 8), "the dtype 'F4', expected one"),
    "name twice": (
        safetensors_bytes(b"{" + b", ".join([json.dumps(entry())[1:-1].encode()] * 2) + b"}", b"0" * 8),
        "the key 'a' is given twice",
    ),
    "mark": (
        safetensors_bytes({"__metadata__": {"relax_inplace.converted": "{}"}, **HEADER}),
        "expected the mark of converted weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_safetensors(case, tmp_path, no_memory):
    content, message = FILES[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    error = refused(tmp_path, message)
    assert "model.safetensors" in error.where


INDEXES = {
    "no text": ({"a": 3, "b": "second.safetensors"}, "'a': 3.* given, expected str"),
    "absolute": ({"a": "/etc/passwd"}, "is absolute"),
    "parent": ({"a": "../x.safetensors"}, "leaves the folder"),
    "no file": ({"a": "x.safetensors"}, "no such file"),
    "empty": ({"a": ""}, "has no name"),
    "missing": (
        {"a": "first.safetensors", "c": "first.safetensors", "b": "second.safetensors"},
        r"the file lacks 1 weights \('c'\), expected what the index says",
    ),
    "elsewhere": ({"b": "first.safetensors"}, r"the file lacks 1 weights \('b'\)"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_index(case, tmp_path, no_memory):
    weight_map, message = INDEXES[case]
    refused(write_index(tmp_path, weight_map), message)


def test_index_without_weights(tmp_path, no_memory):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    refused(tmp_path, "no weights given")


@pytest.mark.parametrize(("of_a", "expected"), [("first", b"aaaa"), ("second", b"AAAA")])
def test_a_weight_in_two_files(of_a, expected, tmp_path):
    """A file may hold more than the index takes from it: that of another model, or an older one."""
    one = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    other = {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}
    weight_map = {"a": f"{of_a}.safetensors", "b": "second.safetensors"}
    shard = safetensors_bytes({"a": one, "b": other}, b"AAAAbbbb")
    params = runtime.load_params(write_index(tmp_path, weight_map, second=shard), CPU, ["a", "b"])
    assert [content_of(one) for one in params] == [expected, b"bbbb"]


def test_files_converted_in_different_ways(tmp_path, no_memory):
    marks = [Provenance("f", layout).to_json() for layout in ("1", "2")]
    one = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    first, second = (
        safetensors_bytes({"__metadata__": {"relax_inplace.converted": mark}, name: one}, b"0000")
        for mark, name in zip(marks, "ab", strict=True)
    )
    refused(write_index(tmp_path, first=first, second=second), "one mark of converted weights")


# --- what lies at a path


@pytest.mark.parametrize("name", ["", "w.safetensors", "tensor-cache.json", "w.bin", "a\0b"])
def test_nothing_there(name, tmp_path, no_memory):
    refused(tmp_path / "none" / name, "no such file|null byte")


def test_folder_without_weights(tmp_path, no_memory):
    refused(tmp_path, "0 .safetensors files and no manifest")


def test_folder_with_several_files(tmp_path, no_memory):
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(safetensors_bytes())
    refused(tmp_path, "2 .safetensors files and no manifest.*give the path of the file")


def test_a_part_of_several(tmp_path, no_memory):
    """A save that was killed, or a download: the weights of one file are not all."""
    (tmp_path / "model-00002-of-00003.safetensors").write_bytes(safetensors_bytes())
    refused(tmp_path, "1 .safetensors file and no manifest.*one whole .safetensors file.*give the")


def test_hugging_faces_order(tmp_path):
    """It reads `model.safetensors` where there is one, whatever the index says."""
    write_index(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes())
    assert open_checkpoint(tmp_path).path.name == "model.safetensors"


def test_another_file(tmp_path, no_memory):
    (tmp_path / "weights.pt").write_bytes(b"x")
    refused(tmp_path / "weights.pt", "no weights there, expected a folder with tensor-cache.json")


@pytest.mark.parametrize("name", ["model.safetensors", "tensor-cache.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
def test_no_file(name, make, tmp_path, no_memory):
    """Nobody writes into the FIFO: reading it would wait for ever."""
    make(tmp_path / name)
    refused(tmp_path, "not a regular file given|is a directory|no manifest")


def test_shard_that_is_a_fifo(tmp_path, no_memory):
    write_tensor_cache(tmp_path)
    os.unlink(tmp_path / "params_shard_0.bin")
    os.mkfifo(tmp_path / "params_shard_0.bin")
    refused(tmp_path, "not a regular file given")


def test_unreadable():
    """Root can read every file: so as another user, who cannot reach pytest's folder either."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        write_tensor_cache(Path(folder))
        os.chmod(Path(folder, "params_shard_0.bin"), 0)
        program = f"""
            import os, tvm
            from relax_inplace import runtime
            if os.getuid() == 0:
                os.setuid(65534)
            runtime.load_params({folder!r}, tvm.cpu())
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            cwd="/",
        )
    assert "CheckpointError" in done.stderr and "permission denied" in done.stderr


# --- links


def test_a_link_out_of_the_folder(tmp_path, no_memory):
    folder = write_tensor_cache(tmp_path / "w")
    (folder / "params_shard_0.bin").rename(tmp_path / "secret")
    (folder / "params_shard_0.bin").symlink_to("../secret")
    refused(folder, "is a link to .*secret, expected a file in the manifest's folder")


def test_a_folder_that_is_a_link_out(tmp_path, no_memory):
    folder = write_tensor_cache(tmp_path / "w", shard(dataPath="sub/params_shard_0.bin"))
    (tmp_path / "elsewhere").mkdir()
    (folder / "params_shard_0.bin").rename(tmp_path / "elsewhere" / "params_shard_0.bin")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    refused(folder, "is a link to")


def test_a_link_that_goes_round(tmp_path, no_memory):
    folder = write_tensor_cache(tmp_path / "w")
    os.unlink(folder / "params_shard_0.bin")
    (folder / "params_shard_0.bin").symlink_to("params_shard_0.bin")
    refused(folder, "too many levels of symbolic links")


def as_in_a_cache(folder, tmp_path):
    """Hugging Face's: the files are named by their content, and what has their names are links."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "4f2a"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"{number:x}9ac")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:x}9ac")
    return snapshot


@pytest.mark.parametrize("write", [write_tensor_cache, write_index])
def test_the_links_of_a_cache(write, tmp_path):
    expected = open_checkpoint(write(tmp_path / "w"))
    found = open_checkpoint(as_in_a_cache(tmp_path / "w", tmp_path))
    assert list(found.records) == list(expected.records)
    assert len(runtime.load_params(tmp_path / "snapshots" / "4f2a", CPU)) == len(found.records)


def test_a_link_deeper_into_a_cache(tmp_path, no_memory):
    """The other files that lie where the manifest does are reached, not the folders there."""
    snapshot = as_in_a_cache(write_tensor_cache(tmp_path / "w"), tmp_path)
    (tmp_path / "blobs" / "deeper").mkdir()
    (tmp_path / "blobs" / "deeper" / "file").write_bytes(BYTES)
    os.unlink(snapshot / "params_shard_0.bin")
    (snapshot / "params_shard_0.bin").symlink_to("../../blobs/deeper/file")
    refused(snapshot, "is a link to")


@pytest.mark.parametrize("copied", ["model.safetensors.index.json", "second.safetensors"])
@pytest.mark.parametrize("below", ["", "folder"])
def test_a_cache_with_copies(copied, below, tmp_path):
    """What a program has written itself lies among the links, or is the file that names them."""
    snapshot = as_in_a_cache(write_index(tmp_path / "w"), tmp_path / "models--x--y")
    content = (snapshot / copied).read_bytes()
    (snapshot / copied).unlink()
    (snapshot / copied).write_bytes(content)
    if below:
        (snapshot / below).mkdir()
        for name in os.listdir(snapshot):
            if name != below:
                real = os.path.realpath(snapshot / name)
                (snapshot / below / name).symlink_to(os.path.relpath(real, snapshot / below))
        (snapshot / below / copied).unlink()
        (snapshot / below / copied).write_bytes(content)
    assert len(runtime.load_params(snapshot / below, CPU)) == 2


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "HOME"])
def test_a_folder_with_links_into_the_users_cache(variable, tmp_path, monkeypatch):
    """As `local_dir` of Hugging Face's downloads had it: small files copied, large ones linked."""
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    cache = {"HF_HOME": "hub", "HF_HUB_CACHE": "", "HOME": ".cache/huggingface/hub"}[variable]
    blobs = tmp_path / "home" / cache / "models--x--y" / "blobs"
    blobs.mkdir(parents=True)
    folder = write_tensor_cache(tmp_path / "w")
    (folder / "params_shard_0.bin").rename(blobs / "9ac")
    (folder / "params_shard_0.bin").symlink_to(blobs / "9ac")
    with pytest.raises(CheckpointError, match="is a link to"):
        open_checkpoint(folder)
    monkeypatch.setenv(variable, str(tmp_path / "home"))
    assert len(open_checkpoint(folder).records) == 3


def test_blobs_that_are_a_link(tmp_path, no_memory):
    """Who writes a folder could make any other one its `blobs/`."""
    snapshot = as_in_a_cache(write_index(tmp_path / "w"), tmp_path / "models--x--y")
    index = snapshot / "model.safetensors.index.json"
    content = index.read_bytes()
    index.unlink()
    index.write_bytes(content)
    blobs = tmp_path / "models--x--y" / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    refused(snapshot, "is a link to .*elsewhere")


# --- while they are read


def test_a_file_that_changes_before_it_is_read(tmp_path):
    source = open_checkpoint(write_tensor_cache(tmp_path))
    (tmp_path / "params_shard_0.bin").write_bytes(BYTES[:5])
    with (
        CheckpointReader(source, CPU) as reader,
        pytest.raises(CheckpointError, match="has changed"),
    ):
        reader.read("bias")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    source = open_checkpoint(write_tensor_cache(tmp_path))
    with CheckpointReader(source, CPU) as reader:
        reader.read("codes")
        os.truncate(tmp_path / "params_shard_0.bin", 5)
        with pytest.raises(
            CheckpointError, match="the file ends 2 bytes too early, expected 4 bytes"
        ):
            reader.read("bias")


def test_md5_mismatch(tmp_path):
    write_tensor_cache(tmp_path, content=BYTES[:-1] + b"?")
    refused(tmp_path, "md5 .* expected .*; download the file again", checksum=True)
    assert len(runtime.load_params(tmp_path, CPU)) == 3  # nobody asked


def test_no_md5(tmp_path, no_memory):
    write_tensor_cache(tmp_path, lambda m: m["records"][0].pop("md5sum"))
    refused(tmp_path, "no checksum for 'params_shard_0.bin'", checksum=True)


def test_no_md5_in_safetensors(tmp_path, no_memory):
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes())
    refused(tmp_path, "no checksum .*; load with checksum=False", checksum=True)


# --- against the module


def transform(*weights, params=(), layout="L"):
    """A transform of a compiled module that is not here."""

    def described(types):
        return [
            TensorInfo(name, shape, dtype, str(slot))
            for slot, (name, shape, dtype) in enumerate(types)
        ]

    return Transform(
        function=None,
        name="inplace_transform_params",
        layout=layout,
        weights=described(weights),
        params=described(params),
    )


GOOD = [
    ("codes", (3,), "int8"),
    ("bias", (2,), "float32"),
    ("layers.0.weight", (3, 4), "float16"),
]


def test_everything_that_does_not_fit(tmp_path, no_memory):
    error = refused(
        write_tensor_cache(tmp_path),
        "1 missing .'gone'. and 1 too many .'codes'. and 2 of another type .'bias' is float32.2., "
        "expected float16.2., 'layers.0.weight' is float16.3, 4., expected float16.4, 3..",
        transform(
            ("gone", (1,), "int8"), ("bias", (2,), "float16"), ("layers.0.weight", (4, 3), "float16")
        ),
    )  # fmt: skip
    assert error.missing == ("gone",)
    assert error.unexpected == ("codes",)
    assert len(error.mismatched) == 2


def test_many_that_do_not_fit(tmp_path, no_memory):
    wanted = [(f"w{index}", (1,), "int8") for index in range(1000)]
    error = refused(write_tensor_cache(tmp_path), "1000 missing .*, ...", transform(*wanted))
    assert len(error.missing) == 1000


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([("n",), (2,), ("n", "m")], None),
        ([("n",), ("n",), (3, 4)], r"'bias' is float32\[2\], expected float32\[n\] with n = 3"),
        ([("n", "m"), (2,), (3, 4)], r"'codes' is int8\[3\], expected int8\[n, m\]"),
    ],
)
def test_symbolic_sizes(shapes, message, tmp_path):
    weights = [(name, shape, dtype) for (name, _, dtype), shape in zip(GOOD, shapes, strict=True)]
    write_tensor_cache(tmp_path)
    if message:
        refused(tmp_path, message, transform(*weights))
    else:
        assert len(runtime.load_params(tmp_path, CPU, transform(*weights))) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["codes", "codes"], "the name 'codes' twice"),
        (["codes", "none"], "1 missing .'none'., expected the names given"),
    ],
)
def test_names(names, message, tmp_path, no_memory):
    refused(write_tensor_cache(tmp_path), message, names)


def test_names_that_are_printed_the_same(tmp_path, no_memory):
    """Both could be `a_b`: neither is."""

    def ambiguous(manifest):
        records = manifest["records"][0]["records"]
        records[0]["name"], records[1]["name"] = "a.b", "a-b"

    refused(write_tensor_cache(tmp_path, ambiguous), "1 missing .'a_b'.", ["a_b"])


@pytest.mark.parametrize(("layout", "given"), [("other", "'other'"), ("", "''")])
def test_converted_already(layout, given, tmp_path, no_memory):
    mark = Provenance("inplace_transform_params", layout).to_json()
    write_tensor_cache(tmp_path, lambda m: m.update(metadata={"relax_inplace.converted": mark}))
    refused(tmp_path, f"has converted, layout {given}, expected weights as", transform(*GOOD))


def test_more_bytes_than_are_free(tmp_path, no_memory, monkeypatch):
    module = sys.modules["relax_inplace.runtime.checkpoint.loading"]  # the package has the function
    monkeypatch.setattr(module, "available_bytes", lambda device: 34)
    refused(write_tensor_cache(tmp_path), "weights that take 35 bytes, expected at most the 34")


def test_types_say_their_size():
    assert TensorInfo("w", (3, 3), "int4").nbytes == 5  # packed


def test_messages_do_not_carry_control_characters(tmp_path, no_memory):
    folder = tmp_path / "a\nb\x1b[31m"
    error = refused(write_tensor_cache(folder, first(dtype="\u202e\n\x07")), "the dtype")
    assert re.search(r"'\\u202e\\n\\x07'", str(error))
