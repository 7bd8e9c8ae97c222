"""Weights from files, as their only owner."""

import gc
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tvm
import tvm_ffi
from memory import extra_mb, in_fresh_process, needs_clear_refs
from tvm.contrib import tvmjs
from weight_files import (
    HEADER,
    content_of,
    references,
    safetensors_bytes,
    tensor_of,
    write_index,
    write_tensor_cache,
)

from relax_inplace import runtime
from relax_inplace.runtime import CheckpointError, Params
from relax_inplace.runtime.checkpoint import CheckpointReader, open_checkpoint, reading
from relax_inplace.runtime.provenance import Provenance
from relax_inplace.runtime.tensor_info import TensorInfo

CPU = tvm.cpu()


def test_tensor_cache(tmp_path):
    params = runtime.load_params(write_tensor_cache(tmp_path), CPU)
    assert params.names == ("codes", "bias", "layers.0.weight")  # the files' order
    assert params["codes"].numpy().tolist() == [1, 2, 3]
    assert params["bias"].numpy().tolist() == [1.0, -2.0]  # bfloat16, at an odd place
    assert params["layers.0.weight"].shape == (3, 4)
    assert content_of(params["layers.0.weight"]) == bytes(range(24))
    assert params.provenance is None
    assert params.source == open_checkpoint(tmp_path).fingerprint


@pytest.mark.parametrize(
    "path", ["", "tensor-cache.json", "ndarray-cache.json", "tensor-cache-b16.json"]
)
def test_paths_of_a_tensor_cache(path, tmp_path):
    """Before TVM 0.22 it had another name; TVM's writer adds one whose name ends in `b16`."""
    write_tensor_cache(tmp_path)
    os.rename(tmp_path / "tensor-cache.json", tmp_path / (path or "tensor-cache.json"))
    assert len(runtime.load_params(tmp_path / path, CPU)) == 3


@pytest.mark.parametrize("path", ["", "w.safetensors"])
def test_safetensors(path, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(safetensors_bytes(HEADER))
    params = runtime.load_params(tmp_path / path, CPU)
    assert [str(one) for one in params.types] == ["float32[2, 3]", "bfloat16[4]"]
    assert content_of(params["b"]) == bytes(range(24, 32))


@pytest.mark.parametrize("path", ["", "model.safetensors.index.json"])
def test_sharded_safetensors(path, tmp_path):
    params = runtime.load_params(write_index(tmp_path) / path, CPU)
    assert {name: content_of(one) for name, one in params.items()} == {"a": b"aaaa", "b": b"bbbb"}


@pytest.mark.parametrize("encoding", ["f32-to-bf16", "raw"])
def test_what_tvm_writes(encoding, tmp_path):
    """Every record is read as TVM's own loader reads it."""
    arrays = {
        "w": np.linspace(-3, 3, 1001, dtype="float32"),
        "h": np.arange(7, dtype="float16").reshape(7, 1),
        "codes": np.arange(5, dtype="uint32"),
        "odd": np.arange(3, dtype="int8"),
        "scalar": np.array(2.5, "float32"),
        "empty": np.zeros((0, 3), "float16"),  # TVM's loader cannot decode an empty float32
    }
    tvmjs.dump_tensor_cache(arrays, str(tmp_path), encode_format=encoding, show_progress=False)
    tvm_ffi.get_global_func("vm.builtin.tensor_cache.load")(str(tmp_path), 1, 0)
    get = tvm_ffi.get_global_func("vm.builtin.tensor_cache.get")
    params = runtime.load_params(tmp_path, CPU, checksum=True)
    assert set(params.names) == set(arrays)
    for name, tensor in params.items():
        assert content_of(tensor) == content_of(get(name))
    tvm_ffi.get_global_func("vm.builtin.tensor_cache.clear")()
    assert get("w") is None


def test_a_decoded_weight_of_many_parts(tmp_path):
    """float32 numbers are decoded some at a time: none is left out between two parts."""
    array = np.random.default_rng(0).standard_normal((1 << 17) * 2 + 3).astype("float32")
    tvmjs.dump_tensor_cache({"w": array}, str(tmp_path), show_progress=False)
    (tensor,) = runtime.load_params(tmp_path, CPU)
    expected = tvmjs.load_tensor_cache(str(tmp_path), CPU)[0]["w"].numpy()
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("write", [write_tensor_cache, write_index])
def test_the_only_owner(write, tmp_path):
    params = runtime.load_params(write(tmp_path), CPU)
    for index in range(len(params)):
        tensor = params.fields[index]
        assert references(tensor) == 2  # the tuple, and this variable


def test_a_failure_keeps_nothing(tmp_path, monkeypatch):
    """Not even the error, through the variables of the functions that it has left."""
    write_tensor_cache(tmp_path)
    made = []
    empty = reading.empty

    def counted(*args):
        made.append(empty(*args))
        return made[-1]

    def interrupted(progress):
        if progress.name == "bias":
            os.truncate(tmp_path / "params_shard_0.bin", 8)

    monkeypatch.setattr(reading, "empty", counted)
    gc.disable()  # what only a collection would free is kept
    try:
        with pytest.raises(CheckpointError, match="too early") as caught:
            runtime.load_params(tmp_path, CPU, progress=interrupted)
        assert len(made) == 3
        assert [references(tensor) for tensor in made] == [1, 1, 1]
        assert caught.value.__traceback__ is not None
    finally:
        gc.enable()


def test_an_interrupt_keeps_nothing(tmp_path):
    def interrupted(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runtime.load_params(write_tensor_cache(tmp_path), CPU, progress=interrupted)


@pytest.mark.parametrize("name", ["layers.0.weight", "layers_0_weight"])
def test_names(name, tmp_path):
    """TVM's script printer has replaced what cannot be in a Python name."""
    params = runtime.load_params(write_tensor_cache(tmp_path), CPU, [name, "codes"])
    assert params.names == (name, "codes")
    assert params[0].shape == (3, 4)


def described(*types_of_weights, params=(), layout="L"):
    def as_objects(weights):
        return [TensorInfo(name, shape, dtype, slot) for name, shape, dtype, slot in weights]

    return runtime.Transform(
        function=None,
        name="inplace_transform_params",
        layout=layout,
        weights=as_objects(types_of_weights),
        params=as_objects(params),
    )


STORED = [
    ("layers_0_weight", (3, "n"), "float16", "0"),
    ("bias", ("m",), "float32", "1.0"),
    ("codes", (3,), "int8", "1.1"),
]


def test_a_module_says_order_names_and_nesting(tmp_path):
    params = runtime.load_params(write_tensor_cache(tmp_path), CPU, described(*STORED))
    assert params.names == ("layers.0.weight", "bias", "codes")  # as they are called there
    assert [len(field) for field in params.fields if isinstance(field, tvm_ffi.Array)] == [2]
    assert params.fields[1][1].numpy().tolist() == [1, 2, 3]


def test_converted_weights_are_what_the_transform_makes(tmp_path):
    mark = Provenance("inplace_transform_params", "L", "from", "key")
    write_tensor_cache(
        tmp_path, lambda m: m.update(metadata={"relax_inplace.converted": mark.to_json()})
    )
    module = described(("w", (9,), "int8", "0"), params=STORED)
    params = runtime.load_params(tmp_path, CPU, module)
    assert params.provenance == mark
    assert runtime.load_params(tmp_path, CPU).provenance == mark  # it is not lost without a module


def test_the_mark_of_one_file_is_that_of_all(tmp_path):
    mark = Provenance("f", "L")
    one = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    first = safetensors_bytes(
        {"__metadata__": {"relax_inplace.converted": mark.to_json()}, "a": one}, b"aaaa"
    )
    assert runtime.load_params(write_index(tmp_path, first=first), CPU).provenance == mark


def test_the_fingerprint_is_of_the_files(tmp_path):
    folder = write_tensor_cache(tmp_path / "w")
    first = open_checkpoint(folder).fingerprint
    assert open_checkpoint(folder).fingerprint == first
    os.rename(folder, tmp_path / "moved")
    assert open_checkpoint(tmp_path / "moved").fingerprint == first
    os.utime(tmp_path / "moved" / "params_shard_0.bin", ns=(1, 1))
    second = open_checkpoint(tmp_path / "moved").fingerprint
    assert second != first
    manifest = tmp_path / "moved" / "tensor-cache.json"
    manifest.write_text(manifest.read_text() + " ")
    assert open_checkpoint(tmp_path / "moved").fingerprint not in (first, second)


def test_opening_reads_no_weight(tmp_path):
    def large(manifest):
        manifest["records"][0]["nbytes"] = 1 << 40
        manifest["records"][0]["records"] = [
            {**manifest["records"][0]["records"][0], "shape": [1 << 40], "nbytes": 1 << 40}
        ]

    write_tensor_cache(tmp_path / "w", large)
    with open(tmp_path / "w" / "params_shard_0.bin", "r+b") as file:
        file.truncate(1 << 40)  # a terabyte, none of it on the disk
    assert open_checkpoint(tmp_path / "w").nbytes == 1 << 40
    with pytest.raises(CheckpointError, match="weights that take 1,099,511,627,776 bytes"):
        runtime.load_params(tmp_path / "w", CPU)


def test_the_way_to_another_device(tmp_path, monkeypatch):
    """Through host memory for one weight: here the other device is the host."""
    expected = runtime.load_params(write_tensor_cache(tmp_path), CPU)
    monkeypatch.setattr(
        sys.modules["relax_inplace.runtime.checkpoint.reading"], "is_host", lambda device: False
    )
    found = runtime.load_params(tmp_path, CPU)
    assert [content_of(one) for one in found] == [content_of(one) for one in expected]


def test_without_a_compiler(tmp_path):
    program = f"""
        import tvm
        from relax_inplace import runtime
        assert tvm.base._RUNTIME_ONLY
        params = runtime.load_params({str(write_tensor_cache(tmp_path))!r}, tvm.cpu())
        runtime.save_params(params, {str(tmp_path / "new")!r}, "safetensors")
        runtime.load_params({str(tmp_path / "new")!r}, tvm.cpu(), params.names)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr


def test_tvms_own_cache_is_not_used(tmp_path):
    update = tvm_ffi.get_global_func("vm.builtin.tensor_cache.update")
    get = tvm_ffi.get_global_func("vm.builtin.tensor_cache.get")
    update("codes", tensor_of((1,), "int8"), True)
    runtime.load_params(write_tensor_cache(tmp_path), CPU)
    assert get("codes").shape == (1,) and get("bias") is None
    tvm_ffi.get_global_func("vm.builtin.tensor_cache.clear")()
    assert get("codes") is None


def test_the_reader_closes_its_files(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with CheckpointReader(open_checkpoint(write_index(tmp_path)), CPU) as reader:
        for name in "abab":
            reader.read(name)
    assert len(os.listdir("/proc/self/fd")) == before


MB = 1 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Eight files of 32 MB, two weights in each."""
    folder = tmp_path_factory.mktemp("large") / "w"
    weight = np.ones(16 * MB, "uint8")
    params = Params([tvm.runtime.tensor(weight) for _ in range(16)])
    runtime.save_params(params, folder, shard_bytes=32 * MB)
    return folder


def extra_of_load(folder, options):
    warm = write_tensor_cache(type(folder)(folder.parent / "warm"))
    runtime.load_params(warm, CPU, **options)  # what is imported when it is used
    kept = []
    return extra_mb(lambda: kept.append(runtime.load_params(folder, CPU, **options)))


@needs_clear_refs
@pytest.mark.parametrize(("options", "files"), [({}, 0), ({"checksum": True}, 1)])
def test_peak_memory(options, files, large):
    """The weights, and nothing else; with checksums, one file of host memory."""
    extra = in_fresh_process(extra_of_load, large, options)
    assert 255 + 32 * files <= extra < 256 + 32 * files + 1.5


def write_decoded(folder):
    array = np.zeros(16 * MB, "float32")
    tvmjs.dump_tensor_cache({"w": array}, str(folder), show_progress=False)


@needs_clear_refs
def test_peak_memory_of_decoded_weights(tmp_path):
    in_fresh_process(write_decoded, tmp_path / "w")
    assert 63 <= in_fresh_process(extra_of_load, tmp_path / "w", {}) < 64 + 1.5


def test_a_device_by_its_name(tmp_path):
    runtime.save_params(Params([tvm.runtime.tensor(np.ones(2, "int8"))], ["a"]), tmp_path)
    assert runtime.load_params(tmp_path, "cpu")["a"].device == tvm.cpu()
    with pytest.raises(
        ValueError, match=r"device 'gpu': expected a device .* or its name: cpu, cuda"
    ):
        runtime.load_params(tmp_path, "gpu")
