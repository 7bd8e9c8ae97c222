"""How the program ends: exit codes, standard output and error, in a process of its own."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import tvm
from commands import MODEL, PROGRAM, TRANSFORM, ended, error, module, output, run

from relax_inplace import runtime

runtime_save = runtime.save_params


def test_entry_point():
    done = subprocess.run(
        [sys.executable, "-m", "relax_inplace", "--version"],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.stdout == ended("--version").stdout == output("--version")


def test_help_imports_no_tvm():
    program = "import sys, relax_inplace.cli; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd="/").returncode == 0


@pytest.mark.parametrize("command", ["rewrite", "plan", "explain", "build"])
def test_each_help_has_invocations(command):
    text = output(command, "--help")
    assert text.count(f"\n    relax-inplace {command} ") >= 2
    assert max(map(len, text.splitlines())) <= 100


def test_version():
    assert output("--version").startswith("relax-inplace, version ")


def completed(shell, what, **words):
    environment = {**os.environ, "_RELAX_INPLACE_COMPLETE": f"{shell}_{what}", **words}
    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    assert f"_RELAX_INPLACE_COMPLETE={shell}_complete" in completed(shell, "source")


def test_what_is_completed():
    words = {"COMP_WORDS": "relax-inplace build model.py --self", "COMP_CWORD": "3"}
    assert completed("bash", "complete", **words) == "plain,--self-contained\n"


def test_done():
    done = ended("plan", "-", text=tvm.ir.save_json(module(TRANSFORM)))
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["plan", "nope.py"], 1, "nope.py: No such file or directory"),
        (
            ["plan", "/"],
            1,
            "/: expected model.py, model.py:NAME, or a file of tvm.ir.save_json that ends in .json",
        ),
        (["plan", "-"], 1, "<stdin>: it is empty"),
        (["plan", "\x1b[31m.py"], 1, "\\x1b[31m.py: No such file or directory"),
        ([], 2, "Missing command; see relax-inplace --help"),
        (["frob"], 2, "No such command 'frob'; see relax-inplace --help"),
        (["plan"], 2, "Missing argument 'MODULE'; see relax-inplace plan --help"),
    ],
)
def test_one_line(arguments, code, line):
    assert error(*arguments, code=code) == line


def test_files(tmp_path):
    def refused(name, data):
        (tmp_path / name).write_bytes(data)
        return error("plan", tmp_path / name).removeprefix(f"{tmp_path / name}")

    assert refused("binary.json", b"\x7fELF\xff") == ": no text: byte 4 is not UTF-8"
    assert refused("empty.json", b" \n") == ": it is empty"
    (tmp_path / "folder.py").mkdir()
    assert error("plan", tmp_path / "folder.py").endswith("folder.py: Is a directory")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate((256 << 20) + 1)
    assert error("plan", tmp_path / "huge.json").endswith("more than 256 MB, which is no module")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    path.chmod(0)
    assert error("plan", path) == f"{path}: Permission denied"


def test_errors_of_tvm_are_one_line_and_nothing_of_its_cpp(tmp_path):
    text = MODEL.replace("R.matmul(x, v)", "R.matmul(v, x)")
    (tmp_path / "model.py").write_text(text)
    done = ended("plan", "model.py", cwd=tmp_path)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("relax-inplace: error: model.py:16:")
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path):
    (tmp_path / "model.py").write_text(TRANSFORM.replace("permute_dims(", "permute("))
    done = ended("plan", tmp_path / "model.py", "--debug")
    assert done.exit_code == 1
    assert "Traceback (most recent call last)" in done.stderr


def test_output_that_nobody_reads(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(TRANSFORM)
    process = subprocess.Popen(
        [*PROGRAM, "plan", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), said) == (141, b"")


INTERRUPTED = "relax-inplace: error: interrupted"


def test_interrupted_while_it_reads():
    process = subprocess.Popen(
        [*PROGRAM, "plan", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdin.write(" " * (1 << 20))  # more than a pipe holds: it has begun to read
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said.strip()) == (130, INTERRUPTED)  # after the line of the ^C


@pytest.mark.parametrize("busy", ["time.sleep(60)", "signal.pause()"])
def test_interrupted_while_a_child_works(busy, tmp_path):
    """The child ends, by itself or killed; one of the two speaks."""
    (tmp_path / "m.json").write_text('{"nodes": []}')
    program = f"""
import signal, time
from relax_inplace.cli import child_process, json_file, main
child_process._PATIENCE = 1
def load(given):
    if {busy == "signal.pause()"}:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as long as C++ runs
    print("works", flush=True)
    {busy}
json_file._load = load
main(["plan", "m.json"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    assert process.stdout.readline() == "works\n"
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said.strip()) == (130, INTERRUPTED)


@pytest.mark.parametrize("step", ["convert_params", "save_params"])
def test_interrupted_while_it_loads_or_saves(step, tmp_path, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, step, interrupted)
    output("build", "-", "-o", tmp_path / "lib.so", text=TRANSFORM)
    weights = [tvm.runtime.empty(shape, "float16") for shape in ((4, 8), (6, 8))]
    names = ["params[0]", "params[1]"]
    runtime_save(runtime.Params(weights, names), tmp_path / "weights")
    done = run(
        *("run", tmp_path / "lib.so", "--params", tmp_path / "weights"),
        *("--save", tmp_path / "saved", "--quiet"),
    )
    assert (done.exit_code, done.stderr.strip()) == (130, INTERRUPTED)


def test_interrupted_demo():
    process = subprocess.Popen(
        [*PROGRAM, "demo", "--small"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said.splitlines()[-1]) == (130, "interrupted")
    assert said.startswith("1 of 3: TVM, out of place\n") and "Traceback" not in said


def test_progress_is_for_a_terminal(tmp_path):
    (tmp_path / "model.py").write_text(TRANSFORM)
    command = [*PROGRAM, "build", str(tmp_path / "model.py"), "-o", str(tmp_path / "lib.so")]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    assert process.wait() == 0
    os.close(theirs)
    assert b"relax-inplace: compiling for llvm" in os.read(ours, 4096)
    os.close(ours)
    assert b"compiling" not in subprocess.run(command, capture_output=True).stderr


def test_commands_in_a_pipe():
    rewritten = output("rewrite", "-", "--json", text=TRANSFORM)
    assert json.loads(rewritten)["nodes"]
    assert run("rewrite", "-", text=rewritten).exit_code == 0


def test_matplotlib_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert error("plan", "-", "--plot", "plan.svg", text=TRANSFORM) == (
        "pictures need matplotlib: pip install 'relax_inplace[plot]'"
    )


def test_demo():
    done = ended("demo", "--small", "--explain", cwd="/")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("decode, prefill: weights 37 -> 37, bytes 40,929,280")
    assert ended("demo", "--nope").exit_code == 2
