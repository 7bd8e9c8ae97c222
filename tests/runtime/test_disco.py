"""Weights of the workers of a Disco session: threads, processes, and nodes on the loopback."""

import contextlib
import faulthandler
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from importlib import metadata
from pathlib import Path
from unittest.mock import MagicMock, Mock

import disco_functions
import numpy as np
import pytest
import tvm
from compiled_transforms import module, tensors
from disco_functions import DIES, FAILS, WAITS, digest_of
from memory import SANITIZED
from tvm.script import from_source

from relax_inplace import runtime
from relax_inplace.runtime import Params, disco
from relax_inplace.runtime.checkpoint import open_checkpoint
from relax_inplace.runtime.checkpoint.tied_weights import require_equal
from relax_inplace.runtime.disco import nodes
from relax_inplace.runtime.disco.sharding import part_of
from relax_inplace.transform import InplaceTransformParams, LiftInplaceTransformParams

pytestmark = pytest.mark.skipif(SANITIZED, reason="worker processes have no sanitizer")

COUNT, ROWS, COLUMNS = 4, 128, 132  # large enough to be left in their files
FOLDER = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def ends_a_hang():
    """Waiting in C++ cannot be interrupted: it ends the tests, and says where."""
    faulthandler.dump_traceback_later(90, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


# -- what the workers load -------------------------------------------------------------------------


def types(rows=ROWS):
    return tensors(*((rows, COLUMNS) for _ in range(COUNT)))


def body(transposed):
    lines = [f"w{i} = params[{i}]" for i in range(COUNT)]
    lines += [f"t{i} = {transposed.format(f'w{i}')}" for i in range(COUNT)]
    return "\n".join([*lines, f"return ({', '.join(f't{i}' for i in range(COUNT))},)"])


MODEL = """
@I.ir_module
class Model:
    @R.function
    def decode(x: R.Tensor((2, COLUMNS), "float32"), params: R.Tuple(TYPES)):
        w = R.permute_dims(params[0])
        v = R.permute_dims(params[1])
        u = R.permute_dims(params[2])
        t = R.permute_dims(params[3])
        return R.add(R.add(R.matmul(x, w), R.matmul(x, v)), R.add(R.matmul(x, u), R.matmul(x, t)))
"""

MLC = """
@I.ir_module
class Module:
    @R.function
    def _metadata() -> R.Any:
        return R.str(METADATA)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with compiled modules."""
    folder = tmp_path_factory.mktemp("modules")
    model = from_source(MODEL.replace("COLUMNS", str(COLUMNS)).replace("TYPES", types()))
    out = f'R.Tensor(({COLUMNS}, {ROWS}), "float32")'
    kernel = f'R.call_dps_packed("test.disco.transpose", ({{}},), out_ty={out})'
    stock = module(types(), body("R.permute_dims({})"))
    programs = {
        "model": LiftInplaceTransformParams(max_resident=1.0)(model),
        "stock": InplaceTransformParams(reference=True, restore=True)(stock),
        "streamed": InplaceTransformParams(lazy=True)(stock),
        "kernels": InplaceTransformParams()(module(types(), body(kernel))),
    }
    for name, options in (("cut", {}), ("cut_streamed", {"lazy": True})):
        programs[name] = InplaceTransformParams(**options)(stock)
        programs[name].update(from_source(MLC.replace("METADATA", repr(json.dumps(METADATA)))))
    for name, program in programs.items():
        tvm.compile(program, "llvm").export_library(str(folder / f"{name}.so"))
    return folder


def arrays(seed, rows=ROWS):
    generator = np.random.default_rng(seed)
    return [generator.random((rows, COLUMNS), "float32") for _ in range(COUNT)]


def write(folder, weights, names=None):
    names = names or [f"w{i}" for i in range(len(weights))]
    runtime.save_params(Params([tvm.runtime.tensor(one) for one in weights], names), folder)
    return folder


def write_each(folder, weights_of):
    for rank, weights in enumerate(weights_of):
        write(folder / str(rank), weights)
    return folder / "{rank}"


# -- the sessions ----------------------------------------------------------------------------------


def free_port():
    """One that the system gives to nobody else: those from 32768 on are for whoever connects."""
    for port in PORTS:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


# From another place in each process, as several run these tests at once.
PORTS = iter(range(10_000 + os.getpid() * 10 % 20_000, 32_768))


@contextlib.contextmanager
def node(port):
    program = [sys.executable, "-m", "relax_inplace.runtime.disco.node"]
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"}
    with subprocess.Popen(
        [*program, "127.0.0.1", str(port)], env=environment, cwd=FOLDER
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def session_of(kind):
    """Two workers; and what may be killed of worker 1."""
    with contextlib.ExitStack() as stack:
        if kind == "threads":
            session, pid = disco.ThreadedSession(2), None
        elif kind == "processes":
            session = disco.ProcessSession(2)
            pid = session.processes[1].pid
        else:
            port = free_port()
            pid = stack.enter_context(node(port)).pid
            session = disco.SocketSession(2, 1, 1, "127.0.0.1", port)
        session.import_python_module("disco_functions")
        yield session, pid
        session.shutdown()


@pytest.fixture(scope="module", params=["threads", "processes", "nodes"])
def session(request):
    faulthandler.dump_traceback_later(90, exit=True)  # for want of a node
    with session_of(request.param) as (made, _):
        yield made


def ask(session, function, *args):
    """What a function says on each worker; text."""
    said = session.call_packed(session.get_global_func(f"test.disco.{function}"), *args)
    return [str(said.debug_get_from_remote(rank)) for rank in range(session.num_workers)]


def converted(weights):
    return digest_of([np.ascontiguousarray(one.T) for one in weights])


# -- as on one -------------------------------------------------------------------------------------


def test_each_its_own(session, built, tmp_path):
    """Results, the total, the progress, and a model that uses them: as one worker has it."""
    weights = [arrays(rank) for rank in range(2)]
    transform = disco.load_transform(session, built / "model.so")
    for rank, one in enumerate(weights):
        write(tmp_path / str(rank), one, [f"params[{i}]" for i in range(COUNT)])
    loaded, seen = [], []
    params = disco.load_params(session, tmp_path / "{rank}", transform, progress=loaded.append)
    nbytes = COUNT * ROWS * COLUMNS * 4
    assert (len(params), params.nbytes, params.is_converted) == (COUNT, [nbytes, nbytes], False)
    assert disco.transform_params(transform, params, progress=seen.append) is params

    assert ask(session, "digest", params.fields) == [converted(one) for one in weights]
    assert params.is_converted
    assert [one.converted for one in params.reports] == [nbytes, nbytes]
    assert [one.held for one in params.reports] == [[], []]
    assert str(params.reports[1]).startswith("inplace_transform_params: 270 kB converted")
    for told in (loaded, seen):
        assert {one.total for one in told} == {2 * nbytes}
        assert told[-1].done == 2 * nbytes

    x = session.call_packed(session.get_global_func("test.disco.input"), 2, COLUMNS)
    result = transform.module["decode"](x, params.fields)
    alone = runtime.load_transform(built / "model.so", tvm.cpu())
    given = disco_functions.input_of(2, COLUMNS)
    expected = []
    for one in weights:
        field = Params([tvm.runtime.tensor(array) for array in one])
        runtime.transform_params(alone, field)
        expected.append(digest_of([alone.vm["decode"](given, field).numpy()]))
    assert ask(session, "digest", result) == expected


@pytest.mark.parametrize("library", ["stock", "streamed"])
def test_all_the_same(session, built, tmp_path, library):
    """A plain folder: each worker has all of it."""
    weights = arrays(5)
    write(tmp_path / "weights", weights)
    transform = disco.load_transform(session, built / f"{library}.so")
    params = disco.convert_params(transform, tmp_path / "weights", checksum=True)
    assert ask(session, "digest", params.fields) == [converted(weights)] * 2
    assert [one.converted for one in params.reports] == [sum(one.nbytes for one in weights)] * 2


def test_verified(session, built, tmp_path):
    path = write_each(tmp_path, [arrays(0), arrays(1)])
    transform = disco.load_transform(session, built / "stock.so")
    params = disco.convert_params(transform, path, verify=True, strict=True)
    assert [one.verified for one in params.reports] == [True, True]


def test_saved_and_not_converted_again(session, built, tmp_path):
    weights = [arrays(0), arrays(1)]
    transform = disco.load_transform(session, built / "stock.so")
    params = disco.convert_params(transform, write_each(tmp_path, weights))
    with pytest.raises(ValueError, match=r"put \{rank\} into its name"):
        disco.save_params(params, tmp_path / "converted")
    disco.save_params(params, tmp_path / "converted" / "{rank}")
    with pytest.raises(disco.WorkerError, match="has converted, expected weights as they were"):
        disco.transform_params(transform, params)
    again = disco.convert_params(transform, tmp_path / "converted" / "{rank}")
    assert again.is_converted
    assert [one.converted for one in again.reports] == [0, 0]
    assert ask(session, "digest", again.fields) == [converted(one) for one in weights]


def test_restored(session, built, tmp_path):
    weights = [arrays(0), arrays(1)]
    transform = disco.load_transform(session, built / "stock.so")
    params = disco.convert_params(transform, write_each(tmp_path, weights))
    assert disco.restore_params(transform, params) is params
    assert not params.is_converted
    assert ask(session, "digest", params.fields) == [digest_of(one) for one in weights]


# -- sharded weights -------------------------------------------------------------------------------


def halves(array):
    return np.split(array, 2, axis=0)


@pytest.mark.parametrize("form", ["w{i}_shard-{k}", "w{i}_shard-{n}-of-2"])
def test_shards_with_names(session, built, tmp_path, form):
    """As MLC-LLM and TVM write them: shard by shard, and what is not sharded once."""
    whole = arrays(3, rows=2 * ROWS)[:-1]
    shared = arrays(4)[-1]
    names = [form.format(i=i, k=k, n=k + 1) for k in range(2) for i in range(COUNT - 1)]
    parts = [halves(one)[k] for k in range(2) for one in whole]
    write(tmp_path, [*parts, shared], [*names, f"w{COUNT - 1}"])
    transform = disco.load_transform(session, built / "stock.so")
    params = disco.convert_params(transform, tmp_path)
    expected = [converted([*(halves(one)[k] for one in whole), shared]) for k in range(2)]
    assert ask(session, "digest", params.fields) == expected


def test_names_of_a_checkpoint(session, built, tmp_path):
    """Every worker reads the same files, under names that are theirs."""
    weights = arrays(5)
    names = [f"model.{i}" for i in range(COUNT)]
    write(tmp_path, [*weights, np.ones(3, "float32")], [*names, "inv_freq"])
    transform = disco.load_transform(session, built / "stock.so")
    given = {f"w{i}": name for i, name in enumerate(names)}
    with pytest.raises(disco.WorkerError, match="1 too many"):
        disco.load_params(session, tmp_path, transform, names=given)
    params = disco.convert_params(transform, tmp_path, names=given, extra="ignore")
    assert ask(session, "digest", params.fields) == [converted(weights)] * 2
    with pytest.raises(TypeError, match=r"expected str, bytes or os\.PathLike object"):
        disco.load_params(session, tmp_path, transform, names=str.upper)


def test_tvms_loader_reads_the_same(session, built, tmp_path):
    """Pre-sharded weights are what it can read without a communication library."""
    whole = arrays(8, rows=2 * ROWS)
    names = [f"param_{i}_shard-{k + 1}-of-2" for k in range(2) for i in range(COUNT)]
    write(tmp_path, [halves(one)[k] for k in range(2) for one in whole], names)
    manifest = tmp_path / "tensor-cache.json"
    get = session.get_global_func
    loader = get("runtime.disco.ShardLoader")(str(manifest), manifest.read_text(), "{}", None)
    theirs = get("runtime.disco.ShardLoaderLoadAllPresharded")(loader)
    transform = disco.load_transform(session, built / "stock.so")
    given = {f"w{i}": f"param_{i}" for i in range(COUNT)}
    ours = disco.load_params(session, tmp_path, transform, names=given)
    assert ask(session, "digest", ours.fields) == ask(session, "digest", theirs)


def preproc(function, *shape):
    return {"func_name": f"test.disco.{function}", "out_shape": shape, "out_dtype": "float32"}


SPLIT = preproc("split_rows", 2, ROWS, COLUMNS)
PREPROCS = [[SPLIT], [preproc("add_one", 2 * ROWS, COLUMNS), SPLIT], [SPLIT], []]
METADATA = {
    "params": [
        {"name": f"w{i}", "shape": [ROWS, COLUMNS], "dtype": "float32", "preprocs": one}
        for i, one in enumerate(PREPROCS)
    ]
}


@pytest.mark.parametrize("library", ["cut", "cut_streamed"])
def test_whole_weights_are_cut(session, built, tmp_path, library):
    """By the functions that MLC-LLM's loader calls, one after the other."""
    whole = arrays(6, rows=2 * ROWS)[:-1]
    shared = arrays(7)[-1]
    write(tmp_path, [*whole, shared])
    transform = disco.load_transform(session, built / f"{library}.so")
    params = disco.convert_params(transform, tmp_path)
    whole[1] = whole[1] + 1
    expected = [converted([*(halves(one)[k] for one in whole), shared]) for k in range(2)]
    assert ask(session, "digest", params.fields) == expected
    disco.save_params(params, tmp_path / "converted" / "{rank}")
    again = disco.convert_params(transform, tmp_path / "converted" / "{rank}")
    assert ask(session, "digest", again.fields) == expected

    write(
        tmp_path / "shards",
        [halves(one)[k] for k in range(2) for one in whole] + [shared],
        [*(f"w{i}_shard-{k}" for k in range(2) for i in range(COUNT - 1)), "w3"],
    )
    params = disco.convert_params(transform, tmp_path / "shards")
    assert ask(session, "digest", params.fields) == expected


def transform_with(preprocs):
    """Of a module that has these, and no function."""
    transform = Mock()
    described = [{"name": name, "preprocs": one} for name, one in preprocs.items()]
    transform.vm.module = MagicMock(get_function=Mock(side_effect=AttributeError))
    transform.vm.module.__getitem__.return_value = lambda: json.dumps({"params": described})
    return transform


def test_what_is_cut_alike(tmp_path):
    """Tied weights are compared as they are stored, if they are cut alike; or else they differ."""
    write(tmp_path, [arrays(0)[0]] * 3, ["a", "b", "c"])
    other = preproc("add_one", 2, 4, COLUMNS)
    half = preproc("split_rows", 2, ROWS // 2, COLUMNS)
    transform = transform_with({"a": [half], "b": [half], "c": [other]})
    part = part_of(open_checkpoint(tmp_path), 1, 2, transform)
    a, b, c = part.records.values()
    assert a.shape == (ROWS // 2, COLUMNS)
    require_equal(part, [(a, b)])
    with pytest.raises(runtime.CheckpointError, match="'a' and 'c' differ"):
        require_equal(part, [(a, c)])


@pytest.mark.parametrize(
    ("preprocs", "message"),
    [
        ([preproc("split_rows", 3, 4, COLUMNS)], "makes 2 parts, one for each worker"),
        ([preproc("split_rows")], "makes 2 parts"),
        ([{**SPLIT, "out_shape": ["vocab_size", 4]}], "makes 2 parts"),
        ([{"func_name": "f"}], "makes 2 parts"),
        ([preproc("missing", 2, 4, COLUMNS)], "import what registers its functions on each"),
    ],
)
def test_preprocs_that_do_not_fit(tmp_path, preprocs, message):
    write(tmp_path, arrays(0))
    transform = transform_with({"w0": preprocs})
    with pytest.raises(runtime.CheckpointError, match=message):
        part_of(open_checkpoint(tmp_path), 0, 2, transform)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["w0_shard-1-of-3", "w0_shard-2-of-3", "w0_shard-3-of-3"], "shards 0, 1, 2.*of 2 workers"),
        (["w0_shard-0", "w1_shard-0", "w1_shard-1"], "shards 0, counted from 0, expected one for"),
        (["w0_shard-1-of-2", "w0_shard-2-of-2", "w0"], "'w0' is in"),
    ],
)
def test_shards_that_do_not_fit(session, tmp_path, names, message):
    write(tmp_path, arrays(0)[: len(names)], names)
    with pytest.raises(disco.WorkerError, match=message):
        disco.load_params(session, tmp_path)


# -- owners ----------------------------------------------------------------------------------------


def test_what_is_dropped_is_forgotten(session, built, tmp_path):
    path = write_each(tmp_path, [arrays(0), arrays(1)])
    gc.collect()
    transform = disco.load_transform(session, built / "stock.so")
    params = disco.convert_params(transform, path)
    before = [int(one) for one in ranked(session, "kept")]
    assert min(before) >= 2
    del params
    gc.collect()
    assert [int(one) for one in ranked(session, "kept")] == [one - 1 for one in before]
    del transform
    gc.collect()
    assert [int(one) for one in ranked(session, "kept")] == [one - 2 for one in before]


def ranked(session, function):
    return [ask(session, function, rank)[rank] for rank in range(session.num_workers)]


def test_a_reference_is_reported(session, built, tmp_path):
    """A register of the session that holds a tensor is an owner; one that holds the tuple is not."""
    path = write_each(tmp_path, [arrays(0), arrays(1)])
    transform = disco.load_transform(session, built / "stock.so")
    params = disco.load_params(session, path, transform)
    fields = params.fields
    held = session.call_packed(session.get_global_func("test.disco.field"), fields, 1)
    with pytest.raises(disco.WorkerError, match=r"slot 1 `w1` .* Nothing has changed") as caught:
        disco.transform_params(transform, params, strict=True)
    assert [one["status"] for one in caught.value.workers] == ["failed", "failed"]
    disco.transform_params(transform, params)
    assert [[one.name for one in each.held] for each in params.reports] == [["w1"], ["w1"]]
    assert ask(session, "digest", held) == [digest_of([arrays(rank)[1]]) for rank in range(2)]
    assert ask(session, "digest", fields) == [converted(arrays(rank)) for rank in range(2)]


# -- the end of a session ---------------------------------------------------------------------------


def test_after_shutdown(built):
    """TVM would wait for an answer for ever."""
    session = disco.ThreadedSession(2)
    transform = disco.load_transform(session, built / "stock.so")
    session.shutdown()
    session.shutdown()
    for call in (
        lambda: disco.load_transform(session, built / "stock.so"),
        lambda: disco.convert_params(transform, "nowhere"),
    ):
        with pytest.raises(RuntimeError, match="the session has been shut down; make a new one"):
            call()


@pytest.mark.parametrize("kind", ["ThreadedSession(2)", "ProcessSession(2)", "SocketSession"])
@pytest.mark.parametrize("end", ["del session, slow; gc.collect()", "session.shutdown()", ""])
def test_a_program_ends(kind, end):
    """Whatever became of its session: TVM's destructor waits for threads that wait for Python."""
    port = free_port()
    made = f'SocketSession(2, 1, 1, "127.0.0.1", {port})' if kind == "SocketSession" else kind
    program = f"""
    import gc
    from relax_inplace.runtime import disco
    session = disco.{made}
    session.import_python_module("disco_functions")
    slow = session.get_global_func("test.disco.slow")
    session.empty((1,), "float32")  # by a function that the session keeps, which keeps it
    said = [slow() for _ in range(3)]
    {end}
    """
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(node(port)) if kind == "SocketSession" else None
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=FOLDER,
        )
        if other is not None:
            assert other.wait(10) == 0
    assert (done.returncode, done.stderr) == (0, "")


# -- failures --------------------------------------------------------------------------------------


def works(session, built, tmp_path):
    """The next call does."""
    path = write_each(tmp_path / "next", [arrays(0), arrays(1)])
    transform = disco.load_transform(session, built / "stock.so")
    params = disco.convert_params(transform, path)
    assert ask(session, "digest", params.fields) == [converted(arrays(rank)) for rank in range(2)]


def test_a_worker_without_its_file(session, built, tmp_path):
    path = write_each(tmp_path, [arrays(0)])
    transform = disco.load_transform(session, built / "stock.so")
    with pytest.raises(disco.WorkerError) as caught:
        disco.convert_params(transform, path)
    error = caught.value
    assert error.rank == 1
    assert error.workers[1]["kind"] == "CheckpointError"
    assert str(error).startswith("convert_params: worker 1 failed: CheckpointError: ")
    assert "\n" not in str(error)
    works(session, built, tmp_path)


def test_a_module_that_is_not_there(session, built, tmp_path):
    with pytest.raises(
        disco.WorkerError, match=r"worker 0 failed: FileNotFoundError: .*no such file"
    ):
        disco.load_transform(session, tmp_path / "no.so")
    works(session, built, tmp_path)


def with_first(seed, index, value):
    weights = arrays(seed)
    weights[index][0, 0] = value
    return weights


def test_a_kernel_that_fails_on_one(session, built, tmp_path):
    """The other one is in the middle of its first weight: it finishes that, and stops."""
    weights = [with_first(0, 0, WAITS), with_first(1, 2, FAILS)]
    transform = disco.load_transform(session, built / "kernels.so")
    params = disco.load_params(session, write_each(tmp_path, weights), transform)
    with pytest.raises(disco.WorkerError) as caught:
        disco.transform_params(transform, params)
    error = caught.value
    assert error.rank == 1
    failed, stopped = error.workers[1], error.workers[0]
    slots = ("status", "converted", "original", "lost")
    assert [failed[one] for one in slots] == ["failed", ["w0", "w1"], ["w2", "w3"], []]
    assert [stopped[one] for one in slots] == ["stopped", ["w0"], ["w1", "w2", "w3"], []]
    assert (
        "1 failed: TransformError: `inplace_transform_params`, step 3 of 4 (`t2`): the kernel"
        in str(error)
    )
    assert "; worker 0 stopped: " in str(error)
    assert str(error).endswith("converted: 1 (w0); original: 3 (w1, w2, w3); lost: none")
    expected = [
        digest_of([np.ascontiguousarray(one.T if i < done else one) for i, one in enumerate(own)])
        for own, done in zip(weights, [1, 2], strict=True)
    ]
    assert ask(session, "digest", params.fields) == expected
    with pytest.raises(disco.WorkerError, match="has converted in part, and then failed"):
        disco.transform_params(transform, params)
    works(session, built, tmp_path)


@pytest.mark.parametrize("raises", [KeyboardInterrupt, ZeroDivisionError])
def test_a_caller_that_stops(session, built, tmp_path, raises):
    """Ctrl-C, or its progress raises: the workers stop at their next weight."""
    weights = [with_first(0, 1, WAITS), with_first(1, 1, WAITS)]
    transform = disco.load_transform(session, built / "kernels.so")
    params = disco.load_params(session, write_each(tmp_path, weights), transform)

    def progress(one):
        raise raises("no more")

    is_interrupt = raises is KeyboardInterrupt
    kind = disco.WorkersInterrupted if is_interrupt else disco.WorkerError
    message = "interrupted" if is_interrupt else "no more"
    with pytest.raises(kind, match=f"transform_params: {message}; worker 0 stopped") as caught:
        disco.transform_params(transform, params, progress=progress)
    assert caught.value.rank is None
    assert isinstance(caught.value.__cause__, raises)
    for one in caught.value.workers:  # a slow one may be told before its second kernel begins
        assert one["converted"] in (["w0"], ["w0", "w1"])
    works(session, built, tmp_path)


@pytest.mark.parametrize("kind", ["processes", "nodes"])
def test_a_worker_that_dies(kind, built, tmp_path):
    """It is killed in its third kernel: an error with its rank, and this process goes on."""
    weights = [with_first(0, 0, WAITS), with_first(1, 2, DIES)]
    with session_of(kind) as (session, _):
        transform = disco.load_transform(session, built / "kernels.so")
        params = disco.load_params(session, write_each(tmp_path, weights), transform)
        with pytest.raises(disco.WorkerError) as caught:
            disco.transform_params(transform, params)
        error = caught.value
        assert error.rank == 1
        how = "killed by signal 9" if kind == "processes" else "its node does not answer for it"
        assert error.workers[1] == {"status": "ended", "message": how}
        assert error.workers[0]["status"] == "stopped"
        assert error.workers[0]["converted"] == ["w0"]
        with pytest.raises(disco.WorkerError, match=r"worker 1 ended: .*; make a new session"):
            disco.load_params(session, tmp_path / "{rank}")
        for _ in range(2000):  # more than a pipe holds, which nobody reads
            session.get_global_func("test.disco.digest")
        del transform, params
    works_alone = disco.ThreadedSession(2)
    works(works_alone, built, tmp_path)


def test_a_worker_that_was_killed_before(built):
    with session_of("processes") as (session, pid):
        session._sync_all()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(disco.WorkerError, match=r"worker 1 ended: killed by signal"):
            disco.load_transform(session, built / "stock.so")
    with pytest.raises(RuntimeError, match="has been shut down"):
        disco.load_transform(session, built / "stock.so")


# -- other sessions, nodes, and strangers ----------------------------------------------------------


def test_a_session_of_tvms_own(built):
    """Its processes lack the builtins, and what TVM's entry point should have."""
    from tvm.runtime import disco as theirs

    for kind in (theirs.ThreadedSession, theirs.ProcessSession):
        session = kind(2)
        with pytest.raises(TypeError, match=rf"but got a tvm\.runtime.*\.{kind.__name__}: TVM's"):
            disco.load_transform(session, built / "stock.so")
        session.shutdown()
    with pytest.raises(
        TypeError, match=r"expected a session of relax_inplace.*, but got a builtins\.int"
    ):
        disco.load_transform(3, built / "stock.so")


def test_nodes_with_several_workers(built, tmp_path):
    """A rank among all; and on its node, by which `init_ccl` gives each its device."""
    port = free_port()
    with node(port), node(port):
        session = disco.SocketSession(3, 2, 3, "127.0.0.1", port)
        session.import_python_module("disco_functions")
        assert ask(session, "place") == [f"{rank} of 6" for rank in range(6)]
        params = disco.load_params(session, write_each(tmp_path, map(arrays, range(6))))
        assert ask(session, "digest", params.fields) == [digest_of(arrays(i)) for i in range(6)]
        session.shutdown()


def greeting(**changed):
    said = {"version": metadata.version("relax-inplace"), "token": "", "key": "a", **changed}
    return json.dumps(said).encode() + b"\n"


STRANGERS = {
    "another program": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "silence": b"",
    "another version": greeting(version="0.0.1", token="secret"),
    "no token": greeting(),
    "another token": greeting(token="guessed"),
    "tokens": greeting(token=["secret"]),
    "no object": b"[]\n",
    "nested": b"[" * 4000 + b"\n",
    "no text": b"\xff\n",
    "no end": b"x" * 5000,
}


def test_strangers_are_dropped(monkeypatch, caplog, built, tmp_path):
    """While they are there, and before the node comes."""
    monkeypatch.setenv(nodes.TOKEN, "secret")
    monkeypatch.setattr(nodes, "_GREETED_WITHIN", 2.0)
    port = free_port()
    connections = []

    def connect():
        for said in STRANGERS.values():
            for _ in range(200):
                with contextlib.suppress(OSError):
                    connections.append(socket.create_connection(("127.0.0.1", port)))
                    break
                time.sleep(0.05)
            with contextlib.suppress(OSError):
                connections[-1].sendall(said)
        for _ in range(30):  # a byte at a time, for longer than a greeting may take
            with contextlib.suppress(OSError):
                connections[1].sendall(b" ")
            time.sleep(0.1)

    thread = threading.Thread(target=connect)
    thread.start()
    with contextlib.ExitStack() as stack:
        threading.Timer(3.0, lambda: stack.enter_context(node(port))).start()
        session = disco.SocketSession(2, 1, 1, "127.0.0.1", port)
        thread.join()
        assert caplog.text.count("dropped a connection from") == len(STRANGERS)
        for one in connections:
            one.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""
            one.close()
        session.import_python_module("disco_functions")
        works(session, built, tmp_path)
        session.shutdown()


def test_a_node_with_another_token():
    port = free_port()
    program = f"from relax_inplace.runtime import disco; disco.SocketSession(2, 2, 1, '127.0.0.1', {port})"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=FOLDER, stderr=subprocess.DEVNULL
    ) as other:
        done = subprocess.run(
            [sys.executable, "-m", "relax_inplace.runtime.disco.node", "127.0.0.1", str(port)],
            env={**os.environ, nodes.TOKEN: "wrong"},
            capture_output=True,
            text=True,
            cwd=FOLDER,
        )
        other.kill()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("node: ")
    assert done.stderr.endswith("and says in its log why it has dropped one\n")


@pytest.mark.parametrize(("library", "shutdown"), [("0", ""), ("1", "session.shutdown()")])
def test_in_a_program(built, tmp_path, library, shutdown):
    """After `import tvm`, with and without the compiler; what does not use Disco has none of it."""
    write_each(tmp_path, [arrays(0), arrays(1)])
    program = f"""
    import sys, tvm
    from relax_inplace import runtime
    def libraries():
        return open("/proc/self/maps").read() if sys.platform == "linux" else ""
    assert not any(name.startswith("relax_inplace.runtime.disco") for name in sys.modules)
    assert tvm.base._RUNTIME_ONLY == {library == "1"}
    if tvm.base._RUNTIME_ONLY:
        assert "libtvm_runtime_extra" not in libraries()
    else:
        assert tvm.runtime.disco is None
    from relax_inplace.runtime import disco
    session = disco.ThreadedSession(2)
    transform = disco.load_transform(session, {str(built / "stock.so")!r})
    params = disco.convert_params(transform, {str(tmp_path / "{rank}")!r})
    fields = params.fields
    assert isinstance(fields, tvm.runtime.disco.DRef)
    {shutdown}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": library},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
