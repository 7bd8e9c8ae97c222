"""Saves that are killed, and that run at once: the old or the new weights, and no file for good."""

import fcntl
import os
import shutil
import signal
import sys
import time

import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from safetensors import safe_open
from weight_files import content_of, tensor_of

from relax_inplace import runtime
from relax_inplace.runtime.checkpoint import open_checkpoint

CPU = tvm.cpu()
FORMATS = ["tensor-cache", "safetensors"]


@pytest.fixture(autouse=True, scope="module")
def no_fsync():
    """A process that is killed takes nothing from the system's cache: waiting for the disk is long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def some(seed):
    weights = {f"w{i}": tensor_of((30 + i,), "int8", 10 * seed + i) for i in range(4)}
    return runtime.Params(weights.values(), weights)


def contents(seed):
    return {name: content_of(tensor) for name, tensor in some(seed).items()}


# --- what is in a folder, and what each reader finds there


def put(folder, *names):
    """What each of these names leads a reader to; each to other weights."""
    folder.mkdir()
    for seed, name in enumerate(names, 1):
        made = folder / "made"
        one_file = 1 << 20 if name == "model.safetensors" else 40
        format = "safetensors" if "safetensors" in name else "tensor-cache"
        runtime.save_params(some(seed), made, format, shard_bytes=one_file)
        source = open_checkpoint(made)
        whole = source.files[0].path if name == "model.safetensors" else source.path
        whole.rename(made / name)
        for file in source.files if whole is source.path else ():
            file.path.rename(folder / file.name)
        (made / name).rename(folder / name)
        shutil.rmtree(made)


def loaded(path):
    if not path.exists():
        return None
    return {name: content_of(tensor) for name, tensor in runtime.load_params(path, CPU).items()}


def hugging_face(folder):
    """`transformers` looks for the file first, then for the index."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return loaded(folder / "model.safetensors")
    found = {}
    for file in open_checkpoint(index).files:
        with safe_open(folder / file.name, "np") as opened:
            found |= {name: opened.get_tensor(name).tobytes() for name in opened.keys()}  # noqa: SIM118
    return found


def found(folder):
    """What readers find: ours, TVM's, that of TVM before 0.22, Hugging Face's."""
    return [
        loaded(folder),
        loaded(folder / "tensor-cache.json"),
        loaded(folder / "ndarray-cache.json"),
        hugging_face(folder),
    ]


def require_its_own_files_alone(folder):
    source = open_checkpoint(folder)
    assert set(os.listdir(folder)) == {source.path.name, *(file.name for file in source.files)}


def killed(save, after):
    """Run ``save`` in a process that ``after`` ends."""
    process = os.fork()
    if process == 0:
        try:
            after()
            save()
        finally:
            os._exit(0)
    return process


def ended(process):
    """Whether it was killed."""
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


# --- one is killed


def kill_at(step):
    """End this process before one of the calls that change a folder."""
    left = step

    def counted(call):
        def counted(*args, **options):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counted

    for name in ("open", "write", "fsync", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))


OLD = [
    (),
    ("ndarray-cache.json",),
    ("tensor-cache.json", "ndarray-cache.json"),
    ("model.safetensors",),
    ("model.safetensors", "model.safetensors.index.json"),
    ("model.safetensors.index.json", "ndarray-cache.json", "tensor-cache.json"),
]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("old", OLD, ids="+".join)
def test_killed_at_every_step(format, old, tmp_path):
    put(tmp_path / "old", *old)
    before = found(tmp_path / "old") if old else [None] * 4

    def save(folder):
        runtime.save_params(some(9), folder, format, shard_bytes=40)

    folder = tmp_path / "saved"
    shutil.copytree(tmp_path / "old", folder)
    save(folder)
    after = found(folder)
    new = contents(9)
    assert after == (
        [new, new, None, before[3]] if format == "tensor-cache" else [new, None, None, new]
    )
    was_killed, step = True, 0
    while was_killed:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "old", folder)
        was_killed = ended(killed(lambda: save(folder), lambda at=step: kill_at(at)))
        if not old and not any(one.endswith(".json") for one in os.listdir(folder)):
            with pytest.raises(runtime.CheckpointError, match="and no manifest"):
                open_checkpoint(folder)
        else:
            pairs = zip(before, after, found(folder), strict=True)
            assert all(one in (was, becomes) for was, becomes, one in pairs), step
        save(folder)
        assert found(folder) == after
        if format == "safetensors" or not any("safetensors" in name for name in old):
            require_its_own_files_alone(folder)
        step += 1
    assert step > 10


@examples(8, fuzz=300)
@given(
    kills=st.lists(st.tuples(st.sampled_from(FORMATS), st.floats(0, 1.2)), min_size=1, max_size=4)
)
def test_killed_at_random_moments(kills, tmp_path_factory):
    """One after the other, and at moments that no call marks."""
    folder = tmp_path_factory.mktemp("killed")
    runtime.save_params(some(0), folder, shard_bytes=40)
    start = time.perf_counter()
    ended(killed(lambda: runtime.save_params(some(0), folder, shard_bytes=40), lambda: None))
    seconds = time.perf_counter() - start
    was = contents(0)
    for seed, (format, part) in enumerate(kills, 1):
        process = killed(
            lambda one=seed, way=format: runtime.save_params(
                some(one), folder, way, shard_bytes=40
            ),
            lambda: None,
        )
        time.sleep(seconds * part)
        os.kill(process, signal.SIGKILL)
        ended(process)
        now = loaded(folder)
        assert now in (was, contents(seed))
        was = now
    runtime.save_params(some(9), folder, "safetensors")
    assert loaded(folder) == contents(9)
    require_its_own_files_alone(folder)
    shutil.rmtree(folder)


# --- some at once


@pytest.mark.parametrize("format", FORMATS)
def test_savers_at_once(format, tmp_path):
    """Each has a name of its own for its files, and the last one to end removes the others'."""

    def save(seed):
        for _ in range(5):
            runtime.save_params(some(seed), tmp_path, format, shard_bytes=40)

    processes = [killed(lambda one=seed: save(one), lambda: None) for seed in range(3)]
    assert not any(map(ended, processes))
    assert loaded(tmp_path) in [contents(seed) for seed in range(3)]
    require_its_own_files_alone(tmp_path)


def test_files_of_a_saver_that_is_alive_stay(tmp_path, monkeypatch):
    """Another one begins and ends while this one writes."""
    module = sys.modules["relax_inplace.runtime.checkpoint.shard"]
    write = module._write
    others = [lambda: runtime.save_params(some(2), tmp_path, shard_bytes=40)]

    def written(*args):
        write(*args)
        if others:
            others.pop()()

    monkeypatch.setattr(module, "_write", written)
    runtime.save_params(some(1), tmp_path, shard_bytes=40)
    assert loaded(tmp_path) == contents(1)
    require_its_own_files_alone(tmp_path)


def test_a_process_that_was_forked_meanwhile(tmp_path, monkeypatch):
    """It has the lock open, too, and may live for long."""
    module = sys.modules["relax_inplace.runtime.checkpoint.shard"]
    write, forked = module._write, []

    def written(*args):
        write(*args)
        forked.append(killed(lambda: None, signal.pause))
        monkeypatch.undo()

    monkeypatch.setattr(module, "_write", written)
    runtime.save_params(some(1), tmp_path)
    (tmp_path / "params_shard_0123456789ab_0.bin").write_bytes(b"x")
    runtime.save_params(some(2), tmp_path)
    os.kill(forked[0], signal.SIGKILL)
    assert ended(forked[0])
    require_its_own_files_alone(tmp_path)


def test_a_lock_that_never_ends(tmp_path, monkeypatch):
    """Of one that removes files, held by a process that it forked: an error, no wait for ever."""
    module = sys.modules["relax_inplace.runtime.checkpoint.folder_update"]
    monkeypatch.setattr(module, "_TRIES", 2)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(runtime.SaveError, match="another process has locked the folder"):
        runtime.save_params(some(1), tmp_path)
    os.close(descriptor)
    runtime.save_params(some(1), tmp_path)
    require_its_own_files_alone(tmp_path)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Nobody knows who is alive: what others left stays, and all else is as it is."""
    module = sys.modules["relax_inplace.runtime.checkpoint.folder_update"]

    def unsupported(descriptor, operation):
        raise OSError("no locks available")

    left = tmp_path / "params_shard_0123456789ab_0.bin"
    left.write_bytes(b"x")
    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    runtime.save_params(some(1), tmp_path)
    runtime.save_params(some(2), tmp_path)
    assert loaded(tmp_path) == contents(2)
    assert len(os.listdir(tmp_path)) == 3
    monkeypatch.undo()
    runtime.save_params(some(3), tmp_path)
    require_its_own_files_alone(tmp_path)


def test_names_that_others_use_stay(tmp_path):
    """A manifest under another name, and names that are only like those of a save."""
    runtime.save_params(some(1), tmp_path, shard_bytes=40)
    os.rename(tmp_path / "tensor-cache.json", tmp_path / "kept.json")
    for name in ("params_shard_0.bin", ".other.0123456789ab.tmp", "model-0123456789ab.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    before = set(os.listdir(tmp_path))
    runtime.save_params(some(2), tmp_path)
    assert before < set(os.listdir(tmp_path))
    assert loaded(tmp_path / "kept.json") == contents(1)
