"""stream_params and convert_params: from files to converted weights."""

import json
import os
import threading
import warnings

import numpy as np
import pytest
import tvm
from compiled_transforms import arrays, compiled, scaled, tensors, transposes

from relax_inplace.runtime import (
    CheckpointError,
    ConvertedError,
    MismatchError,
    ModuleError,
    Params,
    Transform,
    TransformError,
    convert_params,
    load_params,
    save_params,
    stream_params,
    transform_params,
)
from relax_inplace.runtime.checkpoint import open_checkpoint, reading

CPU = tvm.cpu()
FORMATS = ["tensor-cache", "safetensors"]


def saved(transform, folder, format="tensor-cache", seed=0):
    """Weights for a transform in a folder, in another order than its own."""
    named = list(zip((one.name for one in transform.weights), arrays(transform, seed), strict=True))
    named.reverse()
    params = Params([tvm.runtime.tensor(array) for _, array in named], [name for name, _ in named])
    save_params(params, folder, format, shard_bytes=200)
    return folder


def is_converted(params, transform, seed=0):
    return params.names == tuple(one.name for one in transform.params) and all(
        np.array_equal(one.numpy(), array.T)
        for one, array in zip(params, arrays(transform, seed), strict=True)
    )


# -- streamed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_streamed(tmp_path, format):
    transform = transposes(5, lazy=True)
    seen = []
    params = stream_params(transform, saved(transform, tmp_path, format), CPU, progress=seen.append)
    assert is_converted(params, transform)
    assert (params.provenance.transform, params.provenance.layout) == (
        transform.name,
        transform.layout,
    )
    assert params.provenance.source == open_checkpoint(tmp_path).fingerprint
    assert params.report.weights_before == 0
    assert params.report.weights_after == params.report.converted == params.nbytes
    # The plan takes the largest first: its original is gone when most of the results are there.
    assert [one.name for one in seen] == ["w4", "w3", "w2", "w1", "w0"]
    assert seen[-1].done == seen[-1].total


def test_streamed_into_nested_slots(tmp_path):
    types = f"{tensors((2, 3))}, R.Tuple({tensors((4, 5), (6, 7))})"
    body = "a = params[1]\nt = R.permute_dims(a[1])\nu = R.permute_dims(params[0])\nreturn (u, (a[0], t))"
    transform = Transform.of(compiled(types, body, lazy=True))
    params = stream_params(transform, saved(transform, tmp_path), CPU)
    first, second, third = arrays(transform)
    assert np.array_equal(params["a[0]"].numpy(), second)
    assert np.array_equal(params.fields[1][1].numpy(), third.T)
    assert np.array_equal(params[0].numpy(), first.T)


def test_a_resident_transform_is_refused(tmp_path):
    with pytest.raises(ModuleError, match=r"takes its weights all at once.*call transform_params"):
        stream_params(transposes(), tmp_path, CPU)


@pytest.mark.parametrize("step", range(3))
def test_a_reader_that_fails(tmp_path, step, monkeypatch):
    """The fields that are finished stay; the originals are in the files."""
    from relax_inplace.runtime.checkpoint.reading import CheckpointReader

    transform = transposes(3, lazy=True)
    stock = CheckpointReader.read

    def read(self, name, **options):
        if name == f"w{2 - step}":
            raise OSError("the disk is gone")
        return stock(self, name, **options)

    monkeypatch.setattr(CheckpointReader, "read", read)
    with pytest.raises(TransformError, match=r"the disk is gone") as caught:
        stream_params(transform, saved(transform, tmp_path), CPU)
    error = caught.value
    assert error.converted == [f"w{i}" for i in range(3 - step, 3)]
    assert error.original == [f"w{i}" for i in range(3 - step)]
    assert error.lost == []
    assert [one is not None for one in error.params] == [i >= 3 - step for i in range(3)]


def large(**options):
    """Three weights of 128 KB and more: moved, computed with, and moved as well as read."""
    types = tensors((256, 128), (256, 130), (256, 132))
    body = """
moved = R.permute_dims(params[0])
computed = R.multiply(params[1], R.const(2, "float32"))
third = params[2]
turned = R.permute_dims(third)
flipped = R.flip(third, 0)
return (moved, computed, turned, flipped)
"""
    return Transform.of(compiled(types, body, **options))


def expected_of_large(transform):
    moved, computed, both = arrays(transform)
    return [moved.T, computed * 2, both.T, np.flip(both, 0)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("checksum", [False, True])
def test_a_weight_that_is_only_moved_is_read_on_its_way(tmp_path, format, checksum, monkeypatch):
    transform = large(lazy=True)
    assert transform.moved == {0}
    left = []
    stock = reading._OpenFile.read_later
    monkeypatch.setattr(
        reading._OpenFile,
        "read_later",
        lambda self, tensor, *where: (
            left.append(tuple(tensor.shape)) or stock(self, tensor, *where)
        ),
    )
    folder = saved(transform, tmp_path, format)
    if checksum and format == "safetensors":
        return  # it has none
    params = stream_params(transform, folder, CPU, checksum=checksum)
    assert left == ([] if checksum else [(256, 128)])
    for found, expected in zip(params, expected_of_large(transform), strict=True):
        assert np.array_equal(found.numpy(), expected)


def test_a_moved_weight_that_is_stored_as_another_type(tmp_path):
    """float32 that a tensor cache holds as bfloat16 is made float32 before it is moved."""
    types = tensors((256, 128))
    transform = Transform.of(compiled(types, "return (R.permute_dims(params[0]),)", lazy=True))
    weight = np.random.default_rng(0).integers(0, 1 << 16, (256, 128)).astype("uint16")
    (tmp_path / "params_shard_0.bin").write_bytes(weight.tobytes())
    record = {
        "name": "params[0]",
        "shape": [256, 128],
        "dtype": "float32",
        "format": "f32-to-bf16",
        "nbytes": weight.nbytes,
        "byteOffset": 0,
    }
    shard = {
        "dataPath": "params_shard_0.bin",
        "format": "raw-shard",
        "nbytes": weight.nbytes,
        "records": [record],
    }
    manifest = {"metadata": {"ParamSize": 1}, "records": [shard]}
    (tmp_path / "tensor-cache.json").write_text(json.dumps(manifest))
    (found,) = stream_params(transform, tmp_path, CPU)
    expected = (weight.T.astype("uint32") << 16).copy()
    assert found.numpy().tobytes() == expected.tobytes()


def test_a_file_that_is_cut_while_a_weight_is_in_it(tmp_path, monkeypatch):
    """What is finished stays, and the error names the weight that is not."""
    types = tensors((256, 128), (256, 130))
    body = "a = R.permute_dims(params[0])\nb = R.permute_dims(params[1])\nreturn (a, b)"
    transform = Transform.of(compiled(types, body, lazy=True))
    assert transform.moved == {0, 1}
    folder = saved(transform, tmp_path, "safetensors")

    both = threading.Barrier(2, timeout=60)
    stock = reading._OpenFile.read_later

    def read_later(self, tensor, *where):
        is_left = stock(self, tensor, *where)
        if tensor.shape[1] == 128:  # it comes last
            both.wait()
        return is_left

    monkeypatch.setattr(reading._OpenFile, "read_later", read_later)

    def cut(progress):  # when one is finished: the next one is open, and not read
        both.wait()
        for path in folder.glob("*.safetensors"):
            os.truncate(path, 200)

    with pytest.raises(TransformError, match=r"'params\[0\]': the file ends too early") as caught:
        stream_params(transform, folder, CPU, progress=cut)
    error = caught.value
    assert (error.converted, error.original, error.lost) == (
        ["params[1]"],
        ["params[0]"],
        [],
    )
    assert np.array_equal(error.params[1].numpy(), arrays(transform)[1].T)


def test_a_file_that_is_written_before_a_weight_is_left_in_it(tmp_path, monkeypatch):
    """The library compares the file with what it was then: before, it is for the reader to look."""
    types = tensors((256, 128), (256, 130))
    body = "a = R.permute_dims(params[0])\nb = R.permute_dims(params[1])\nreturn (a, b)"
    transform = Transform.of(compiled(types, body, lazy=True))
    named = list(zip((one.name for one in transform.weights), arrays(transform), strict=True))
    params = Params([tvm.runtime.tensor(array) for _, array in named], [name for name, _ in named])
    save_params(params, tmp_path, "safetensors")  # in one file
    (path,) = tmp_path.glob("*.safetensors")
    is_converted = threading.Event()
    stock = reading._OpenFile.read_later

    def read_later(self, tensor, *where):
        if tensor.shape[1] == 128:  # it comes last
            assert is_converted.wait(60)
            content = path.read_bytes()
            path.write_bytes(content[:-9] + bytes(9))
            os.utime(path, ns=(0, 0))
        return stock(self, tensor, *where)

    monkeypatch.setattr(reading._OpenFile, "read_later", read_later)
    with pytest.raises(TransformError, match="has changed since it was opened") as caught:
        stream_params(transform, tmp_path, CPU, progress=lambda _: is_converted.set())
    assert caught.value.converted == ["params[1]"]


def test_a_file_that_shrinks(tmp_path):
    transform = transposes(3, lazy=True)
    saved(transform, tmp_path)
    shards = sorted(tmp_path.glob("*.bin"))

    def cut(_progress):
        for shard in shards:
            os.truncate(shard, 1)

    with pytest.raises(TransformError) as caught:
        stream_params(transform, tmp_path, CPU, progress=cut)
    assert isinstance(caught.value.__cause__, (CheckpointError, RuntimeError))
    assert "w2" in caught.value.converted
    assert "w0" in caught.value.original


def test_more_than_there_is(tmp_path, monkeypatch):
    from relax_inplace.runtime.convert import observe

    transform = transposes(3, lazy=True)
    saved(transform, tmp_path)
    monkeypatch.setattr(observe, "available_bytes", lambda device: 100)
    with pytest.raises(MemoryError, match=r"but 100 are free"):
        stream_params(transform, tmp_path, CPU)


# -- with a cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("lazy", [False, True])
def test_the_second_time_nothing_is_converted(tmp_path, format, lazy):
    transform = transposes(lazy=lazy)
    weights, cache = saved(transform, tmp_path / "weights", format), tmp_path / "cache"
    first = convert_params(transform, weights, CPU, cache=cache, format=format)
    assert is_converted(first, transform)
    assert first.report.read_from is None
    assert first.report.converted > 0
    second = convert_params(transform, weights, CPU, cache=cache, format=format)
    assert is_converted(second, transform)
    assert second.report.read_from == str(cache)
    assert second.report.converted == 0
    assert second.provenance == open_checkpoint(cache).provenance
    assert "nothing to convert" in str(second.report)
    assert json.loads(second.report.to_json())["read_from"] == str(cache)


def test_a_cache_of_something_else_is_replaced(tmp_path):
    transform, cache = transposes(), tmp_path / "cache"
    weights = saved(transform, tmp_path / "weights")
    convert_params(transform, weights, CPU, cache=cache)

    saved(transform, weights, seed=1)  # other weights
    params = convert_params(transform, weights, CPU, cache=cache)
    assert params.report.read_from is None
    assert is_converted(params, transform, seed=1)
    assert convert_params(transform, weights, CPU, cache=cache).report.read_from is not None

    body = "\n".join(f"w{i} = params[{i}]" for i in range(3))
    body += "\nt0 = R.permute_dims(w0)\nt1 = R.permute_dims(w1)\nt2 = R.negative(w2)\nreturn (t0, t1, t2)"
    other = Transform.of(compiled(tensors(*((4, 8 + i) for i in range(3))), body))
    params = convert_params(other, weights, CPU, cache=cache)
    assert params.report.read_from is None
    assert params["w2"].shape == (4, 10)


def test_a_cache_of_other_inputs_is_replaced(tmp_path):
    vm = scaled()
    weights, cache = tmp_path / "weights", tmp_path / "cache"
    save_params(Params([tvm.runtime.tensor(np.ones((2, 3), "float32"))], ["a"]), weights)

    def converted(scale):
        inputs = [tvm.runtime.tensor(np.array(scale, "float32"))]
        return convert_params(vm, weights, CPU, cache=cache, inputs=inputs)

    for scale, cached in ((3, False), (3, True), (4, False), (3, False)):
        params = converted(scale)
        assert (params["a"].numpy() == scale).all()
        assert (params.report.read_from is not None) == cached
    with pytest.raises(TypeError, match="an input is of type list"):
        convert_params(vm, weights, CPU, cache=cache, inputs=[[1]])
    with pytest.raises(ConvertedError, match="maybe with other inputs"):
        convert_params(vm, cache, CPU, inputs=[tvm.runtime.tensor(np.array(5, "float32"))])


def test_streamed_weights_are_not_verified(tmp_path):
    with pytest.raises(ModuleError, match="whose weights are never resident"):
        convert_params(transposes(lazy=True), tmp_path, CPU, verify=True)


def test_a_damaged_cache_is_replaced(tmp_path):
    transform, cache = transposes(), tmp_path / "cache"
    weights = saved(transform, tmp_path / "weights")
    convert_params(transform, weights, CPU, cache=cache)
    shard = next(cache.glob("*.bin"))
    shard.write_bytes(b"")
    params = convert_params(transform, weights, CPU, cache=cache)
    assert is_converted(params, transform)
    assert convert_params(transform, weights, CPU, cache=cache).report.read_from == str(cache)


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path):
    transform = transposes()
    weights = saved(transform, tmp_path / "weights")
    (tmp_path / "cache").write_text("in the way")
    with pytest.warns(UserWarning, match="the converted weights were not saved"):
        params = convert_params(transform, weights, CPU, cache=tmp_path / "cache")
    assert is_converted(params, transform)


def test_a_cache_does_not_replace_the_originals(tmp_path):
    transform = transposes()
    weights = saved(transform, tmp_path / "weights")
    (tmp_path / "link").symlink_to(weights)
    with pytest.raises(ValueError, match="holds the original weights"):
        convert_params(transform, weights, CPU, cache=tmp_path / "link")
    assert open_checkpoint(weights).provenance is None


def test_converted_files_are_not_converted_again(tmp_path):
    transform = transposes()
    weights, folder = saved(transform, tmp_path / "weights"), tmp_path / "converted"
    params = load_params(weights, CPU, transform)
    save_params(transform_params(transform, params), folder)

    again = convert_params(transform, folder, CPU)
    assert is_converted(again, transform)
    assert again.report.read_from == str(folder)
    with pytest.raises(ConvertedError):
        transform_params(transform, load_params(folder, CPU, transform))
    with pytest.raises(ConvertedError):
        stream_params(transposes(lazy=True), folder, CPU)
    other = transposes(2)
    with pytest.raises(CheckpointError, match=r"has converted, layout"):
        load_params(folder, CPU, other)


def test_weights_of_another_model(tmp_path):
    weights = saved(transposes(2), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MismatchError, match=r"1 missing"):
            convert_params(transposes(3), weights, CPU, cache=tmp_path / "cache")
