"""`relax-inplace run`: weights in, weights converted."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from commands import MODEL, error, output, run

from relax_inplace.runtime import Params, save_params
from relax_inplace.runtime.checkpoint import open_checkpoint

MODULE = MODEL.replace(
    'params: R.Tuple(R.Tensor((32, 64), "float16"), R.Tensor((32, 64), "int8"))',
    'w: R.Tensor((32, 64), "float16"), c: R.Tensor((32, 64), "int8")',
)
for old, new in (
    ("    ):\n        w = ", '    ):\n        R.func_attr({"num_input": 1})\n        w = '),
    ("params[0]", "w"),
    ("params[1]", "c"),
    ("        w = R.permute_dims(w)", "        t = R.permute_dims(w)"),
    ("R.matmul(x, w)", "R.matmul(x, t)"),
):
    MODULE = MODULE.replace(old, new)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A library and its weights."""
    folder = tmp_path_factory.mktemp("run")
    options = ["--max-resident", "1.0", "--verify"]
    output("build", "-", *options, "-o", folder / "lib.so", text=MODULE)
    generator = np.random.default_rng(0)
    weights = {
        "c": generator.integers(-9, 9, (32, 64)).astype("int8"),
        "w": generator.random((32, 64)).astype("float16"),
    }
    params = Params([tvm.runtime.tensor(array) for array in weights.values()], weights)
    save_params(params, folder / "weights")
    return folder


def test_convert_save_and_use_again(folder, tmp_path):
    arguments = "run", folder / "lib.so", "--params", folder / "weights"
    said = output(*arguments, "--save", tmp_path / "new", "--plot", tmp_path / "memory.svg")
    assert said.startswith("inplace_transform_params: 6,144 bytes converted in ")
    assert open_checkpoint(tmp_path / "new").provenance.transform == "inplace_transform_params"
    assert (tmp_path / "memory.svg").read_text().startswith("<?xml")
    again = output("run", folder / "lib.so", "--params", tmp_path / "new")
    assert "nothing to convert" in again


def test_json(folder):
    said = json.loads(
        output("run", folder / "lib.so", "--params", folder / "weights", "--json", "--verify")
    )
    assert (said["converted"], said["verified"], said["read_from"]) == (6144, True, None)


def test_cache(folder, tmp_path):
    arguments = "run", folder / "lib.so", "--params", folder / "weights", "--cache", tmp_path
    assert "converted in" in output(*arguments, "--format", "safetensors")
    assert f"read from {tmp_path}" in output(*arguments)
    assert output(*arguments, "--quiet") == ""


def test_the_originals_are_not_replaced(folder):
    arguments = "run", folder / "lib.so", "--params", folder / "weights"
    weights = folder / "weights"
    assert error(*arguments, "--save", weights) == (
        f"--save {weights}: the original weights are there; give another folder"
    )
    assert "holds the original weights" in error(*arguments, "--cache", weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{lib}", "--params", "nowhere"], "nowhere: no such file or folder, expected a folder"),
        (["nowhere.so", "--params", "{weights}"], "^nowhere.so: no such file, expected a library"),
        (["{weights}/tensor-cache.json", "--params", "{weights}"], "not loadable"),
        (["{lib}", "--params", "{weights}", "--device", "cuda:7"], "there is no such device"),
        (
            ["{lib}", "--params", "{weights}", "--device", "gpu?"],
            "--device: device 'gpu?': expected",
        ),
        (["{lib}", "--params", "{weights}", "--function", "f"], "expected `f`; name one of them"),
        (["{lib}", "--params", "{lib}"], "no such file or folder|no weights there"),
        (["{lib}", "--params", "{weights}", "--save", "{lib}"], "is no folder; give another path"),
        (
            ["{lib}", "--params", "{weights}", "--plot", "nowhere/x.svg"],
            "--plot .*: no such folder",
        ),
    ],
)
def test_refused(folder, arguments, message):
    places = {"lib": folder / "lib.so", "weights": folder / "weights"}
    assert re.search(
        message.replace("?", r"\?"), error("run", *(a.format(**places) for a in arguments))
    )


def test_no_room_is_found_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    monkeypatch.setattr("relax_inplace.runtime.convert_params", None)  # is not called
    said = error(
        *("run", folder / "lib.so", "--params", folder / "weights", "--save", tmp_path / "a" / "b")
    )
    assert "0 bytes are free, expected 6,144; make room" in said
    assert not (tmp_path / "a").exists()


def test_usage(folder):
    assert "Missing option '--params'" in error("run", folder / "lib.so", code=2)
    plot = "run", folder / "lib.so", "--params", folder / "weights", "--plot", "memory.gif"
    assert "expected .svg, .png or .pdf" in error(*plot, code=2)


def in_terminal(folder, *arguments):
    """What a command writes to standard error, if that is a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    done = subprocess.Popen(
        [sys.executable, "-m", "relax_inplace", *map(str, arguments)],
        stderr=theirs,
        stdout=subprocess.PIPE,
        cwd=folder,
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    done.stdout.read()
    assert done.wait() == 0
    os.close(ours)
    return text.decode()


def test_a_bar_on_a_terminal_and_nothing_on_a_pipe(folder):
    arguments = "run", folder / "lib.so", "--params", folder / "weights"
    shown = in_terminal(folder, *arguments)
    assert "load: 100%" in shown and "convert: 100%" in shown
    assert "B/s" in shown
    done = subprocess.run(
        [sys.executable, "-m", "relax_inplace", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    assert done.stderr == ""
    done = run(*arguments, "--quiet")
    assert (done.stdout, done.stderr) == ("", "")


def test_ctrl_c_says_what_is_left(folder, monkeypatch):
    from relax_inplace.runtime import TransformInterrupted

    def interrupted(*_args, **_kwargs):
        raise TransformInterrupted("`f`, step 1 of 2 (`t`): interrupted. converted: none")

    monkeypatch.setattr(
        sys.modules["relax_inplace.runtime.transform_params"], "convert", interrupted
    )
    done = run("run", folder / "lib.so", "--params", folder / "weights", "--quiet")
    assert done.exit_code == 130
    assert done.stderr.endswith("error: `f`, step 1 of 2 (`t`): interrupted. converted: none\n")
