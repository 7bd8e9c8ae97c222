"""Runs commands of the command line; the modules that they are given."""

import textwrap

from click.testing import CliRunner

from relax_inplace.cli import main

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
    """A command, with text on standard input."""
    return CliRunner().invoke(main, [str(one) for one in arguments], input=text)


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
