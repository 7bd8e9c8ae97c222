"""Weights that load_params leaves in their files: moved from there, or read when one is asked for."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import tvm
import tvm_ffi
from compiled_transforms import arrays, compiled, module, tensors
from memory import extra_mb, in_fresh_process, needs_clear_refs
from tvm import relax
from tvm.script import from_source

from relax_inplace.runtime import (
    CheckpointError,
    Params,
    Transform,
    TransformError,
    TransformInterrupted,
    load_params,
    load_transform,
    save_params,
    transform_params,
)
from relax_inplace.runtime.checkpoint import reading
from relax_inplace.runtime.checkpoint.reading import UnreadWeights
from relax_inplace.transform import InplaceTransformParams, LiftInplaceTransformParams

CPU = tvm.cpu()
FORMATS = ("tensor-cache", "safetensors")
SHAPES = (256, 128), (256, 130), (256, 132)
BODY = """
moved = R.permute_dims(params[0])
computed = R.multiply(params[1], R.const(2, "float32"))
last = R.permute_dims(params[2])
return (moved, computed, last)
"""


@pytest.fixture(scope="module")
def transform():
    """Three weights of 128 KB and more: the first and the last are only moved."""
    found = Transform.of(compiled(tensors(*SHAPES), BODY, reference=True, restore=False))
    assert found.moved == {0, 2}
    return found


def expected_of(transform):
    a, b, c = arrays(transform)
    return [a.T, b * 2, c.T]


def saved(transform, folder, format="safetensors", **options):
    names = [one.name for one in transform.weights]
    params = Params([tvm.runtime.tensor(one) for one in arrays(transform)], names)
    save_params(params, folder, format, **options)
    return folder


@pytest.fixture
def folder(transform, tmp_path):
    return saved(transform, tmp_path)


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.numpy().tobytes() == np.ascontiguousarray(other).tobytes()


def unread(params):
    return set() if params._unread is None else set(params._unread.slots)


# -- moved from their files ------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_they_are_moved_from_their_files(transform, tmp_path, format):
    params = load_params(saved(transform, tmp_path, format), CPU, transform)
    assert unread(params) == {"0", "2"}
    transform_params(transform, params)
    assert unread(params) == set()
    assert_equal(params, expected_of(transform))
    report = params.report
    sizes = [array.nbytes for array in arrays(transform)]
    assert (report.weights_before, report.originals) == (sizes[1], sum(sizes))
    assert report.weights_after == sum(sizes)
    assert report.reused == 3  # in their own memory


def test_the_files_may_be_removed_before(transform, folder):
    params = load_params(folder, CPU, transform)
    for path in folder.iterdir():
        path.unlink()
    assert_equal(transform_params(transform, params), expected_of(transform))


def test_a_new_file_in_its_place_is_another(transform, folder):
    params = load_params(folder, CPU, transform)
    (path,) = folder.glob("*.safetensors")
    new = path.with_suffix(".new")
    new.write_bytes(bytes(path.stat().st_size))
    new.replace(path)
    assert_equal(transform_params(transform, params), expected_of(transform))


@pytest.mark.parametrize("change", ["cut", "written"])
def test_a_file_that_has_changed(transform, tmp_path, change):
    """The weight is lost, and named; those of the other files are as they were."""
    folder = saved(transform, tmp_path, shard_bytes=1)
    params = load_params(folder, CPU, transform)
    path = next(one for one in folder.glob("*.safetensors") if "00003-of" in one.name)
    if change == "cut":
        os.truncate(path, 200)
    else:
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(b"other")
    with pytest.raises(TransformError, match=r"`?'params\[2\]': the file ") as caught:
        transform_params(transform, params)
    error = caught.value
    assert error.lost == ["params[2]"]
    assert sorted(error.converted + error.original) == ["params[0]", "params[1]"]
    originals, converted = arrays(transform), expected_of(transform)
    for index, found in enumerate(params):
        if index != 2:
            name = f"params[{index}]"
            expected = converted if name in error.converted else originals
            assert_equal([found], [expected[index]])


def test_a_stop_leaves_the_others_in_their_files(transform, folder):
    """They are read when they are asked for."""
    params = load_params(folder, CPU, transform)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(TransformInterrupted) as caught:
        transform_params(transform, params, progress=stop)
    error = caught.value
    assert error.lost == [] and error.original
    originals, converted = arrays(transform), expected_of(transform)
    for index, found in enumerate(error.params):
        expected = converted if f"params[{index}]" in error.converted else originals
        assert_equal([found], [expected[index]])


def _extra_of_both(folder):
    """In a fresh process: of loading, and of converting, in MB above what was resident before."""
    large = load_transform(f"{folder}/lib.so", CPU)
    loaded = []
    load = extra_mb(lambda: loaded.append(load_params(folder, CPU, large)))
    return load, extra_mb(lambda: transform_params(large, loaded[0]))


@needs_clear_refs
def test_they_pass_through_memory_once(tmp_path):
    """64 MB, which are resident when they are converted, and not before."""
    types = tensors(*[(2048, 2048)] * 4)
    body = "".join(f"t{i} = R.permute_dims(params[{i}])\n" for i in range(4))
    mod = InplaceTransformParams()(module(types, body + "return (t0, t1, t2, t3)"))
    executable = tvm.compile(mod, "llvm")
    executable.export_library(str(tmp_path / "lib.so"))
    saved(Transform.of(relax.VirtualMachine(executable, CPU)), tmp_path)
    load, convert = in_fresh_process(_extra_of_both, tmp_path)
    assert load < 4
    assert 64 <= convert < 64 + 8


# -- read when one is asked for --------------------------------------------------------------------

WAYS = {
    "name": lambda params: [params[name] for name in params.names],
    "index": lambda params: [params[i] for i in range(3)],
    "slice": lambda params: params[:],
    "iteration": list,
    "values": lambda params: params.values(),
    "items": lambda params: [tensor for _, tensor in params.items()],
    "get": lambda params: [params.get(name) for name in params.names],
    "mapping": lambda params: list(dict(params).values()),
    "fields": lambda params: list(params.fields),
    "argument": lambda params: [
        tvm_ffi.get_global_func("ffi.ArrayGetItem")(params, i) for i in range(3)
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_who_asks_finds_them_read(transform, folder, way):
    params = load_params(folder, CPU, transform)
    assert_equal(WAYS[way](params), arrays(transform))
    assert unread(params) == set()
    assert_equal(transform_params(transform, params), expected_of(transform))


def test_what_they_are_is_known_before(transform, folder):
    params = load_params(folder, CPU, transform)
    assert [one.shape for one in params.types] == list(SHAPES)
    assert params.nbytes == sum(array.nbytes for array in arrays(transform))
    assert (len(params), "params[2]" in params) == (3, True)
    assert repr(params) == "<Params: 3 weights, as stored>"
    assert unread(params) == {"0", "2"}


def test_saved(transform, folder, tmp_path):
    save_params(load_params(folder, CPU, transform), tmp_path / "copy")
    assert_equal(load_params(tmp_path / "copy", CPU), arrays(transform))


def test_converted_by_another_transform(transform, folder):
    """It computes with what the first one moves."""
    body = BODY.replace("R.permute_dims(params[0])", "R.negative(params[0])")
    other = Transform.of(compiled(tensors(*SHAPES), body))
    assert other.moved == {2}
    params = load_params(folder, CPU, transform)
    transform_params(other, params)
    a, b, c = arrays(transform)
    assert_equal(params, [-a, b * 2, c.T])


def test_converted_by_a_function_without_its_module(transform, folder):
    params = load_params(folder, CPU, transform)
    assert_equal(transform_params(transform.function, params), expected_of(transform))


def test_verified(transform, folder):
    params = load_params(folder, CPU, transform)
    assert transform_params(transform, params, verify=True).report.verified
    assert_equal(params, expected_of(transform))


@pytest.mark.parametrize("change", ["cut", "written"])
def test_a_file_that_has_changed_before_they_are_read(transform, folder, change):
    params = load_params(folder, CPU, transform)
    (path,) = folder.glob("*.safetensors")
    if change == "cut":
        os.truncate(path, 200)
        given = "the file ends too early"
    else:
        os.utime(path, ns=(0, 0))
        given = "the file has changed while it was read"
    for _ in range(2):  # it is not taken for read
        with pytest.raises(CheckpointError) as caught:
            params["params[0]"]
        error = caught.value
        assert (error.where, error.given) == (f"{path}, 'params[0]'", given)
        assert error.expected == f"to read the {256 * 128 * 4} bytes of the weight"
        assert error.remedy == "download or write the weights again"


def test_several_threads(transform, folder, monkeypatch):
    """The first one reads; the others wait until it has."""
    params = load_params(folder, CPU, transform)
    begin, found = threading.Barrier(8), [None] * 8

    def ask(index):
        begin.wait()
        found[index] = [one.numpy().copy() for one in params]

    threads = [threading.Thread(target=ask, args=[index]) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        assert all(map(np.array_equal, one, arrays(transform)))


def test_a_conversion_waits_for_a_thread_that_reads(transform, folder, monkeypatch):
    params = load_params(folder, CPU, transform)
    reads, may_end = threading.Event(), threading.Event()
    order = []
    get = tvm_ffi.get_global_func

    def slow(name, *rest):
        function = get(name, *rest)

        def read(tensor):
            reads.set()
            may_end.wait(60)
            order.append("read")
            return function(tensor)

        return read if name == "relax_inplace.ReadNow" else function

    monkeypatch.setattr(reading.tvm_ffi, "get_global_func", slow)
    asking = threading.Thread(target=lambda: params.fields)
    asking.start()
    reads.wait(60)
    threading.Timer(0.2, may_end.set).start()
    transform_params(transform, params, progress=lambda _: order.append("converted"))
    asking.join()
    assert order[:3] == ["read", "read", "converted"]
    assert_equal(params, expected_of(transform))


def test_who_comes_while_they_are_converted_is_refused(transform, folder, monkeypatch):
    """Also who had looked before, and reads then: what it finds is nowhere."""
    params = load_params(folder, CPU, transform)
    looked, converts, errors = threading.Event(), threading.Event(), []
    stock = UnreadWeights.read

    def read(self, *args, **options):
        if threading.current_thread() is asking:
            looked.set()
            converts.wait(60)
        return stock(self, *args, **options)

    monkeypatch.setattr(UnreadWeights, "read", read)

    def ask():
        with pytest.raises(
            RuntimeError, match="are being converted by thread `MainThread`"
        ) as caught:
            params.values()
        errors.append(caught.value)

    def told(_progress):
        converts.set()
        asking.join()

    asking = threading.Thread(target=ask)
    asking.start()
    looked.wait(60)
    transform_params(transform, params, progress=told)
    assert len(errors) == 1
    assert_equal(params, expected_of(transform))


# -- read at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", [True, False])
def test_those_whose_checksum_is_compared(transform, tmp_path, checksum):
    folder = saved(transform, tmp_path, "tensor-cache")
    params = load_params(folder, CPU, transform, checksum=checksum)
    assert unread(params) == (set() if checksum else {"0", "2"})
    assert_equal(transform_params(transform, params), expected_of(transform))


def test_without_a_transform_all(transform, folder):
    assert unread(load_params(folder, CPU)) == set()
    assert unread(load_params(folder, CPU, [f"params[{i}]" for i in range(3)])) == set()


def test_tied_weights(tmp_path):
    """They are one tensor in two slots; the transform reads one of these."""
    mod = from_source("""
@I.ir_module
class Module:
    @R.function
    def main(
        x: R.Tensor((1, 256), "float32"),
        embed: R.Tensor((128, 256), "float32"),
        head: R.Tensor((128, 256), "float32"),
    ):
        R.func_attr({"num_input": 1})
        return R.matmul(x, R.permute_dims(embed)), R.matmul(x, R.permute_dims(head))
""")
    mod = LiftInplaceTransformParams(tied=[("embed", "head")], only="*")(mod)
    tied = Transform.of(relax.VirtualMachine(tvm.compile(mod, "llvm"), CPU))
    embed = np.random.default_rng(0).random((128, 256), "float32")
    save_params(Params([tvm.runtime.tensor(embed)], ["embed"]), tmp_path)
    params = load_params(tmp_path, CPU, tied)
    assert unread(params) == set()
    for found in transform_params(tied, params):
        assert np.array_equal(found.numpy(), embed.T)


def test_converted_ones(folder, tmp_path):
    """They are given as they are: nothing will move them."""
    types, body = tensors(*SHAPES), BODY.replace("multiply", "add")
    both = Transform.of(
        compiled(types, body.replace('R.const(2, "float32")', "params[1]"), restore=False)
    )
    params = transform_params(both, load_params(folder, CPU, both))
    save_params(params, tmp_path / "converted")
    again = load_params(tmp_path / "converted", CPU, both)
    assert unread(again) == set()
    assert again.provenance is not None


def test_those_of_more_files_than_may_be_open(transform, tmp_path):
    """A quarter of them: the process needs others."""
    folder = saved(transform, tmp_path, shard_bytes=1)
    script = """
import json, resource, sys
import tvm
from relax_inplace import runtime
from compiled_transforms import compiled, tensors
from test_unread_weights import BODY, SHAPES, arrays, assert_equal, expected_of, unread
transform = runtime.Transform.of(compiled(tensors(*SHAPES), BODY))
for limit, expected in ((7, {"0"}), (3, set()), (8, {"0", "2"})):
    stock = resource.getrlimit
    resource.getrlimit = lambda which: (limit, limit)
    params = runtime.load_params(sys.argv[1], "cpu", transform)
    resource.getrlimit = stock
    assert unread(params) == expected, (limit, unread(params))
    assert_equal(runtime.transform_params(transform, params), expected_of(transform))
"""
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, [here, here.parent, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-c", script, str(folder)]
    subprocess.run(command, check=True, cwd=here, env={**os.environ, "PYTHONPATH": path})


def test_files_are_closed_when_they_are_converted(transform, tmp_path):
    """One descriptor for each file, not for each weight; none is left."""
    folder = saved(transform, tmp_path)
    process = psutil.Process()
    before = process.num_fds()
    params = load_params(folder, CPU, transform)
    assert process.num_fds() == before + 1
    transform_params(transform, params)
    assert process.num_fds() == before
    params = load_params(folder, CPU, transform)
    del params
    assert process.num_fds() == before
