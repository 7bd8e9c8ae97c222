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

import disco_functions
import numpy as np
import pytest
import tvm
from compiled_transforms import module, tensors
from disco_functions import DIES, FAILS, WAITS, digest_of
from memory import SANITIZED
from tvm.script import from_source

from relax_inplace import runtime
from relax_inplace.runtime import ModuleError, Params, disco
from relax_inplace.runtime.disco import nodes
from relax_inplace.transform import InplaceTransformParams, LiftInplaceTransformParams

pytestmark = pytest.mark.skipif(SANITIZED, reason="worker processes have no sanitizer")

COUNT, ROWS, COLUMNS = 4, 8, 6
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
        "stock": InplaceTransformParams(reference=True)(stock),
        "streamed": InplaceTransformParams(lazy=True)(stock),
        "kernels": InplaceTransformParams()(module(types(), body(kernel))),
    }
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
def node(port, workers=1):
    program = [sys.executable, "-m", "relax_inplace.runtime.disco.node"]
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"}
    with subprocess.Popen(
        [*program, "127.0.0.1", str(port), str(workers)], env=environment, cwd=FOLDER
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
            pid = session.processes.pids[1]
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
        write(tmp_path / str(rank), one, [f"param_{i}" for i in range(COUNT)])  # TVM's loader's
    loaded, seen = [], []
    params = disco.load_params(session, tmp_path / "{rank}", transform, progress=loaded.append)
    nbytes = COUNT * ROWS * COLUMNS * 4
    assert (len(params), params.nbytes, params.is_converted) == (COUNT, [nbytes, nbytes], False)
    assert disco.transform_params(transform, params, progress=seen.append) is params

    assert ask(session, "digest", params.fields) == [converted(one) for one in weights]
    assert params.is_converted
    assert (params.report.converted, len(params.report.workers)) == (2 * nbytes, 2)
    assert params.report.seconds == max(one.seconds for one in params.report.workers)
    assert params.report.held == {}
    assert json.loads(params.report.to_json())["converted"] == 2 * nbytes
    assert "worker 1: inplace_transform_params" in str(params.report)
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
    assert params.report.converted == 2 * sum(one.nbytes for one in weights)


def test_verified(session, built, tmp_path):
    path = write_each(tmp_path, [arrays(0), arrays(1)])
    transform = disco.load_transform(session, built / "stock.so")
    params = disco.convert_params(transform, path, verify=True, strict=True)
    assert [one.verified for one in params.report.workers] == [True, True]


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
    assert again.report is None
    assert ask(session, "digest", again.fields) == [converted(one) for one in weights]


# -- sharded weights -------------------------------------------------------------------------------


def halves(array):
    return np.split(array, 2, axis=0)


def test_pre_sharded_names(session, built, tmp_path):
    """As MLC-LLM writes them: shard by shard, and what is not sharded once."""
    whole = arrays(3, rows=2 * ROWS)[:-1]
    shared = arrays(4)[-1]
    names = [f"w{i}_shard-{k + 1}-of-2" for k in range(2) for i in range(COUNT - 1)]
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
    with pytest.raises(TypeError, match="names is a callable, expected what can be sent"):
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
    ours = disco.load_params(session, tmp_path, transform)
    assert ask(session, "digest", ours.fields) == ask(session, "digest", theirs)


def test_shard_info(session, built, tmp_path):
    """Cut by the functions that TVM's loader calls, one after the other."""
    whole = arrays(6, rows=2 * ROWS)[:-1]
    shared = arrays(7)[-1]
    write(tmp_path, [*whole, shared])
    split = ["test.disco.split_rows", [[2, ROWS, COLUMNS], "float32"], 2]
    more = ["test.disco.add_one", [[2 * ROWS, COLUMNS], "float32"]]
    info = {"w0": [split], "w1": [more, split], "w2": [split], "w3": []}
    transform = disco.load_transform(session, built / "stock.so")
    params = disco.convert_params(transform, tmp_path, shard_info=info)
    whole[1] = whole[1] + 1
    expected = [converted([*(halves(one)[k] for one in whole), shared]) for k in range(2)]
    assert ask(session, "digest", params.fields) == expected

    refused = {
        "cut into float32": {"w0": [["test.disco.split_rows", [[3, 4, COLUMNS], "float32"], 3]]},
        "a weight that is not there": {"v": [split]},
        "the function 'no.such'": {**info, "w0": [["no.such", [[2, ROWS, COLUMNS], "float32"]]]},
        r"'w1' is float32\[16, 6\], expected float32\[8, 6\]": {"w0": [split]},
        "expected a list of functions": {"w0": 3},
        r"expected \[function": {"w0": [["f", [["a"], "float32"]]]},
    }
    for message, wrong in refused.items():
        with pytest.raises(disco.WorkerError, match=message):
            disco.load_params(session, tmp_path, transform, shard_info=wrong)
    streamed = disco.load_transform(session, built / "streamed.so")
    with pytest.raises(disco.WorkerError, match="one by one, and shard info"):
        disco.convert_params(streamed, tmp_path, shard_info=info)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["w0_shard-1-of-3", "w0_shard-2-of-3", "w0_shard-3-of-3"], "shard 1 of 3.*for 2 workers"),
        (["w0_shard-1-of-2", "w1_shard-1-of-2", "w1_shard-2-of-2"], "no shard 2 of 'w0'"),
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
    assert [one.original for one in caught.value.workers] == [("w0", "w1", "w2", "w3")] * 2
    disco.transform_params(transform, params)
    assert {rank: [one.name for one in held] for rank, held in params.report.held.items()} == {
        0: ["w1"],
        1: ["w1"],
    }
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
    assert error.workers[1].kind == "CheckpointError"
    assert error.workers[1].fields["given"] == "no such file or folder"
    assert str(error).startswith("load_params: worker 1 of 2: CheckpointError: ")
    assert "\n" not in str(error)
    works(session, built, tmp_path)


def test_a_module_that_is_not_there(session, built, tmp_path):
    with pytest.raises(
        disco.WorkerError, match=r"worker 0 of 2: FileNotFoundError: .*no such file"
    ):
        disco.load_transform(session, tmp_path / "no.so")
    os.symlink(built / "stock.so", tmp_path / "0.so")
    os.symlink(built / "model.so", tmp_path / "1.so")
    with pytest.raises(ModuleError, match=r"on worker 0 and .* on worker 1"):
        disco.load_transform(session, tmp_path / "{rank}.so")
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
    assert (failed.status, failed.kind) == ("failed", "TransformError")
    assert (failed.converted, failed.original, failed.lost) == (("w0", "w1"), ("w2", "w3"), ())
    assert "step 3 of 4 (`t2`): the kernel failed" in str(error)
    assert (stopped.status, stopped.converted) == ("stopped", ("w0",))
    assert (stopped.original, stopped.lost) == (("w1", "w2", "w3"), ())
    assert str(error).endswith("worker 0 stopped (converted: 1, original: 3, lost: 0)")
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
    assert [one.converted for one in caught.value.workers] == [("w0", "w1")] * 2
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
        assert error.workers[1].status == "ended"
        how = "killed by signal 9" if kind == "processes" else "its node does not answer for it"
        assert error.workers[1].message == how
        assert (error.workers[0].status, error.workers[0].converted) == ("stopped", ("w0",))
        with pytest.raises(disco.WorkerError, match=r"worker 1 of 2 has ended .* a new session"):
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
        with pytest.raises(disco.WorkerError, match=r"worker 1 of 2 has ended \(killed by signal"):
            disco.load_transform(session, built / "stock.so")
    with pytest.raises(RuntimeError, match="has been shut down"):
        disco.load_transform(session, built / "stock.so")


# -- other sessions, nodes, and strangers ----------------------------------------------------------


def test_a_session_of_tvms_own(built):
    """Its processes lack the builtins, and what TVM's entry point should have."""
    from tvm.runtime import disco as theirs

    for kind in (theirs.ThreadedSession, theirs.ProcessSession):
        session = kind(2)
        with pytest.raises(ModuleError, match=rf"make the session with .*\.disco\.{kind.__name__}"):
            disco.load_transform(session, built / "stock.so")
        session.shutdown()
    with pytest.raises(TypeError, match="expected a session of TVM's Disco, but got int"):
        disco.load_transform(3, built / "stock.so")


def test_nodes_with_several_workers(built, tmp_path):
    """A rank among all; and on its node, by which `init_ccl` gives each its device."""
    port = free_port()
    with node(port, 2), node(port, 3):
        session = disco.SocketSession(3, 2, 3, "127.0.0.1", port)
        session.import_python_module("disco_functions")
        assert ask(session, "place") == [f"{rank} of 6" for rank in range(6)]
        params = disco.load_params(session, write_each(tmp_path, map(arrays, range(6))))
        assert ask(session, "digest", params.fields) == [digest_of(arrays(i)) for i in range(6)]
        session.shutdown()


def greeting(**changed):
    said = {"version": metadata.version("relax-inplace"), "token": "", "key": None, **changed}
    return json.dumps(said).encode() + b"\n"


STRANGERS = {
    "another program": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "silence": b"",
    "another version": greeting(version="0.0.1"),
    "no token": greeting(),
    "another token": greeting(token="guessed"),
    "another node's worker": greeting(key="guessed", token="secret"),
    "a key that is no text": greeting(key=[1], token="secret"),
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


@pytest.mark.parametrize(
    ("workers", "environment", "said"),
    [
        (1, {}, "node: 1 workers given, expected 2, as the session has\n"),
        (2, {nodes.TOKEN: "wrong"}, "and says in its log why it has dropped one\n"),
    ],
)
def test_a_node_that_does_not_fit(workers, environment, said):
    port = free_port()
    program = f"from relax_inplace.runtime import disco; disco.SocketSession(2, 2, 1, '127.0.0.1', {port})"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=FOLDER, stderr=subprocess.DEVNULL
    ) as other:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "relax_inplace.runtime.disco.node",
                "127.0.0.1",
                *map(str, (port, workers)),
            ],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            cwd=FOLDER,
        )
        other.kill()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("node: ") and done.stderr.endswith(said)


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
