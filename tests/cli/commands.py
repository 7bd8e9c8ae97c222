"""Runs commands of the command line; the modules that they are given."""

import subprocess
import sysconfig
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from relax_inplace.cli import main
from relax_inplace.cli.messages import Messages
from relax_inplace.cli.python_file import run_file

PROGRAM = [str(Path(sysconfig.get_path("scripts")) / "relax-inplace")]


class Ended(NamedTuple):
    """What a command has said."""

    stdout: str
    stderr: str
    exit_code: int


TRANSFORM = """\
from tvm.script import ir as I
from tvm.script import relax as R

@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float16"), R.Tensor((6, 8), "float16"))):
        w0 = R.permute_dims(params[0])
        w1 = R.permute_dims(params[1])
        return (w0, w1)
"""

MODEL = """\
from tvm.script import ir as I
from tvm.script import relax as R

N = 16

@I.ir_module
class Model:
    @R.function
    def prefill(
        x: R.Tensor((N, 64), "float16"),
        params: R.Tuple(R.Tensor((32, 64), "float16"), R.Tensor((32, 64), "int8")),
    ):
        w = R.permute_dims(params[0])
        codes = R.permute_dims(params[1])
        v = R.astype(codes, "float16")
        return R.add(R.matmul(x, w), R.matmul(x, v))

    @R.function
    def decode(
        x: R.Tensor((1, 64), "float16"),
        params: R.Tuple(R.Tensor((32, 64), "float16"), R.Tensor((32, 64), "int8")),
    ):
        w = R.permute_dims(params[0])
        return R.matmul(x, w)
"""

SYMBOLIC = TRANSFORM.replace("(4, 8)", '("n", 8)')


def run(*arguments, text=None):
    """A command, with a module as text in the place of `-`: JSON, or else in a file of Python."""
    arguments = [str(one) for one in arguments]
    if (text or "").startswith("{") or (arguments[1:] and arguments[1].endswith(".json")):
        return ended(*arguments, text=text)  # it goes on in a child process
    with tempfile.TemporaryDirectory() as folder:
        if text is not None:
            file = Path(folder, "module.py")
            file.write_text(text)
            arguments = [str(file) if one == "-" else one for one in arguments]
        done = CliRunner().invoke(main, arguments)
        return Ended(
            *(one.replace(folder, "FOLDER") for one in (done.stdout, done.stderr)), done.exit_code
        )


def ended(*arguments, text=None, **how):
    """A command in a process of its own."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)], input=text, capture_output=True, text=True, **how
    )
    return Ended(done.stdout, done.stderr, done.returncode)


def module(text):
    """The module of a text."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "module.py")
        file.write_text(text)
        return run_file(str(file), None, Messages())


def output(*arguments, text=None):
    """What a command that succeeds prints."""
    done = run(*arguments, text=text)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def error(*arguments, text=None, code=1):
    """The line of a command that fails, and prints nothing else."""
    done = run(*arguments, text=text)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith("relax-inplace: error: ") and done.stderr.count("\n") == 1
    return done.stderr.removeprefix("relax-inplace: error: ").rstrip("\n")


def dedent(text):
    return textwrap.dedent(text).lstrip("\n")
