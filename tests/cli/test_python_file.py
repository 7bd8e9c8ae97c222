"""A module in a file of Python, which is executed."""

import pytest
import tvm_ffi
from commands import TRANSFORM, ended, error, module, output, run

from relax_inplace.cli.messages import Messages, RefusedError
from relax_inplace.cli.python_file import run_file

TWO = f"{TRANSFORM}\n\n{TRANSFORM.replace('class Module', 'class Other')}"


@pytest.fixture
def read(tmp_path):
    def read(text, name=None):
        file = tmp_path / "model.py"
        file.write_text(text)
        try:
            return run_file(str(file), name, Messages())
        except RefusedError as error:
            return str(error).removeprefix(str(file))

    return read


def same(one, other):
    return tvm_ffi.structural_equal(one, other, map_free_vars=True)


# -- which module it is ---------------------------------------------------------------------------


def test_the_only_module(read, tmp_path):
    expected = module(TRANSFORM)
    assert same(read(TRANSFORM), expected)
    assert same(read(TRANSFORM + "\nalso = Module\n"), expected)
    assert same(read(TRANSFORM + "\nexported = (Module, {})\ndel Module\n"), expected)
    assert read(TWO) == (
        ": several modules among its names; name one of Module, Other: "
        f"{tmp_path / 'model.py'}:Module"
    )


MAKERS = f"""
{TRANSFORM}
_kept = [None, Module]
del Module

def plain():
    return _kept[1]

def optional(size=4, *rest, **others):
    return plain(), [size]

def exported():
    return plain(), {{}}, []

def needs(size):
    return plain()

def nothing():
    return 3

number = 3
"""


@pytest.mark.parametrize("name", ["plain", "optional", "exported"])
def test_a_function_that_returns_one(read, name):
    assert same(read(MAKERS, name), module(TRANSFORM))


def test_by_name(read):
    other = read(TWO.replace("(6, 8)", "(7, 8)", 1), "Other")
    assert same(other, module(TRANSFORM))


def test_no_module(read, tmp_path):
    candidates = f"name one of plain, optional, exported, nothing: {tmp_path / 'model.py'}:plain"
    assert read(MAKERS) == f": no module among its names; {candidates}"
    assert read(MAKERS, "nope") == f": no `nope` in it; {candidates}"
    assert read(MAKERS, "nothing") == ": `nothing` is or returns a int, expected an IRModule"
    assert read(MAKERS, "number") == ": `number` is or returns a int, expected an IRModule"
    assert read("x = 1\n") == (
        ": no module among its names; expected an IRModule, or a function without arguments that "
        "returns one"
    )


def test_on_the_command_line(tmp_path):
    (tmp_path / "model.py").write_text(MAKERS)
    assert output("plan", f"{tmp_path}/model.py:exported") == output("plan", "-", text=TRANSFORM)
    assert (
        error("plan", f"{tmp_path}/nope.py:x") == f"{tmp_path}/nope.py: No such file or directory"
    )


# -- as Python executes it ------------------------------------------------------------------------


def test_what_is_beside_it_and_what_it_prints(tmp_path):
    """In a process of its own, as it changes `sys.path`."""
    (tmp_path / "beside.py").write_text("ROWS = 4\n")
    text = f"from beside import ROWS\nprint('executed', __name__)\n{TRANSFORM}"
    text = text.replace("(4, 8)", "(ROWS, 8)") + "\nif __name__ == '__main__':\n    1 / 0\n"
    (tmp_path / "model.py").write_text(text)
    done = ended("plan", tmp_path / "model.py", cwd="/")
    assert (done.exit_code, done.stdout) == (0, output("plan", "-", text=TRANSFORM))
    assert done.stderr == "executed __relax_inplace_file__\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\ny = z\n", ":2: NameError: name 'z' is not defined"),
        ("import json\njson.loads('{')\n", ":2: JSONDecodeError: Expecting property name"),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", ":2: ValueError: a b"),
        ("x = (\n", ":1:5: '(' was never closed"),
        ("import no_such_module\n", ":1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys\nsys.exit(3)\n", ":2: it ends the program (3)"),
        ("def f(): f()\nf()\n", ":1: nested too deeply"),
        ("x = '\0'\n", ": "),
        (
            TRANSFORM.replace("R.permute_dims(params[1])", "R.foo(params[1])"),
            ":9:14: module 'tvm.relax.script' has no attribute 'foo'",
        ),
    ],
)
def test_errors(read, text, line):
    assert read(text).startswith(line)
    assert "\n" not in read(text)


def test_an_error_of_a_function_that_is_called(read):
    assert read("def f():\n    return 1 / 0\n", "f") == ":2: ZeroDivisionError: division by zero"


def test_one_line_and_the_traceback_if_it_is_asked_for(tmp_path):
    (tmp_path / "model.py").write_text(TRANSFORM + "\n1 / 0\n")
    line = f"relax-inplace: error: {tmp_path}/model.py:12: ZeroDivisionError: division by zero\n"
    assert run("plan", tmp_path / "model.py") == ("", line, 1)
    done = ended("plan", tmp_path / "model.py", "--debug")
    assert "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


def test_what_crashes_is_one_line(tmp_path):
    """Statements that nest the rest of a kernel: TVM's visitors use up the stack."""
    nested = "".join(f"        T.attr(0, 'k{i}', 1)\n" for i in range(6000))
    (tmp_path / "model.py").write_text(
        "from tvm.script import ir as I, tirx as T\n@I.ir_module\nclass M:\n    @T.prim_func\n"
        f"    def f(a: T.Buffer((4,), 'float32')):\n{nested}        a[0] = 1.0\n"
    )
    done = ended("plan", "model.py", cwd=tmp_path)
    line = "relax-inplace: error: model.py: executed, it crashes (SIGSEGV)"
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, line)


def test_what_it_registered_for_the_end_is_done(tmp_path):
    text = f"import atexit, sys\natexit.register(print, 'ends', file=sys.stderr)\n{TRANSFORM}"
    (tmp_path / "model.py").write_text(text)
    done = ended("plan", tmp_path / "model.py")
    assert (done.exit_code, done.stderr) == (0, "ends\n")


def test_control_characters_are_shown():
    line = error("plan", "-", text="raise ValueError('\\x1b[31m')")
    assert "\x1b" not in line


def test_text_on_standard_input_is_not_executed(tmp_path):
    mark = tmp_path / "mark"
    done = ended("plan", "-", text=f"open({str(mark)!r}, 'w')\n")
    assert (done.exit_code, done.stderr) == (
        1,
        "relax-inplace: error: <stdin>: no JSON; TVMScript is executed, and only from a .py file\n",
    )
    assert not mark.exists()
