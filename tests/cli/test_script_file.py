"""TVMScript from a file: what is a module is read as TVM reads it, and nothing is executed."""

import sys
from pathlib import Path

import pytest
import tvm_ffi
from commands import MODEL, TRANSFORM, error, output
from tvm.script import from_source

from relax_inplace.cli.messages import RefusedError
from relax_inplace.cli.module_text import _script
from relax_inplace.cli.script_file import read_script

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import decoder

IMPORTS = "from tvm.script import ir as I, relax as R, tirx as T\n"


def refused(text):
    with pytest.raises(RefusedError) as caught:
        read_script(text, "m.py")
    return str(caught.value).removeprefix("m.py")


def same(one, other):
    return tvm_ffi.structural_equal(one, other, map_free_vars=True)


def relax_function(*body, dimension="4", head=""):
    lines = "".join(f"        {line}\n" for line in body or ["return x"])
    return (
        f"{head}@I.ir_module\nclass M:\n    @R.function\n"
        f'    def f(x: R.Tensor(({dimension},), "float16")):\n{lines}'
    )


def kernel(parameters, *body):
    lines = "".join(f"        {line}\n" for line in body or ["T.evaluate(0)"])
    return f"@I.ir_module\nclass M:\n    @T.prim_func\n    def f({parameters}):\n{lines}"


# -- what is read -------------------------------------------------------------------------------


def test_a_decoder_is_read_as_tvm_reads_it():
    config = decoder.Config(hidden=128, intermediate=192, layers=1, heads=2, kv_heads=1, vocab=128)
    mod = decoder.decoder(config, "kn")
    assert same(read_script(_script(mod), "m.py"), from_source(mod.script()))


def test_the_rest_of_the_file_is_ignored(tmp_path):
    mark = tmp_path / "mark"
    around = f"""
import os, no_such_module
open({str(mark)!r}, "w")
{MODEL}
if __name__ == "__main__":
    os.abort()
"""
    assert same(read_script(around, "m.py"), read_script(MODEL, "m.py"))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("imports", "names"),
    [
        ("from tvm.script import ir as I, relax as R", ("I", "R")),
        ("from tvm.script import ir, relax", ("ir", "relax")),
        ("from tvm.script.parser import ir as J\nimport tvm.script.relax as Relax", ("J", "Relax")),
    ],
)
def test_names_of_the_namespaces(imports, names):
    text = relax_function("return R.add(x, x)").replace("I.", f"{names[0]}.")
    text = text.replace("R.", f"{names[1]}.")
    expected = read_script(relax_function("return R.add(x, x)"), "m.py")
    assert same(read_script(f"{imports}\n{text}", "m.py"), expected)


def test_constants():
    head = "N = 4\nM1, M2 = 1, 2\nK = -N + 3 * (N // 2) + 2\n"
    expected = read_script(relax_function(), "m.py")
    assert same(read_script(relax_function(head=head, dimension="K"), "m.py"), expected)


def test_functions_without_a_class():
    text = '@R.function\ndef f(x: R.Tensor((4,), "float16")):\n    return x\n'
    (gvar,) = read_script(text + text.replace("R.function", "unrelated"), "m.py").get_global_vars()
    assert gvar.name_hint == "f"


def test_variables_may_have_the_names_of_builtins():
    text = relax_function("sum = R.add(x, x)", "input = R.add(sum, x)", "return input")
    plain = text.replace("sum", "a").replace("input", "b")
    assert same(read_script(text, "m.py"), read_script(plain, "m.py"))


def test_reductions_over_threads_are_read():
    read_script(
        kernel(
            'A: T.Buffer((4,), "float32")',
            "reducer = T.meta_var(T.comm_reducer(lambda x, y: x + y, [T.float32(0)]))",
            'with T.attr(reducer, "reduce_scope", T.reinterpret("handle", T.uint64(0))):',
            "    T.evaluate(0)",
        ),
        "m.py",
    )


# -- errors, with the place in the file ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (relax_function("return R.foo(x)"), ":5:16: `R.foo` is not part of TVMScript"),
        (relax_function("return y"), ":5:16: `y` is not defined in the module"),
        (
            relax_function("return R.matmul(x, 1)", head="\n# far down\n"),
            ":7:9: ",
        ),
        ("@I.ir_module\nclass M(:\n", ":2:9: invalid syntax"),
        (
            "x = 1\n",
            ": no module in it: expected a class that is decorated by @I.ir_module, or a @R.function",
        ),
        (
            relax_function() + relax_function().replace("class M", "class N"),
            ": it has 2 modules, `M` (line 2), `N` (line 7); leave one in it",
        ),
        (
            relax_function('y = metadata["ir.GenericConst"][0]', "return y"),
            ":5:13: constants that are printed as metadata[...] are not in the text: use JSON",
        ),
        (
            relax_function(head="N = f()\n", dimension="N"),
            ":1:5: `f()` is no constant that is read from a file",
        ),
        (
            relax_function(head="N = 1 // 0\n", dimension="N"),
            ":1:5: division by zero",
        ),
    ],
)
def test_errors(text, line):
    assert refused(text).startswith(line)


def test_errors_of_the_parser_are_condensed(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(TRANSFORM.replace("R.permute_dims(params[1])", "R.add(params[0], params[1])"))
    line = error("rewrite", path)
    assert line.startswith(f"{path}:9:")
    assert "-->" not in line


# -- what would run code ------------------------------------------------------------------------

RUN = "__import__('os').system('touch MARK')"

HOSTILE = {
    "call": relax_function(dimension=RUN),
    "call in a string": relax_function(dimension=f'"{RUN}"'),
    "string put together": relax_function(
        "s = \"__import__('os').sys\"",
        "t = \"tem('touch MARK')\"",
        'return R.match_cast(x, R.Tensor((s + t,), "float16"))',
    ),
    "string of a constant": relax_function(head=f'N = "{RUN}"\n', dimension="N"),
    "string in a shape": relax_function(f'return R.match_cast(x, R.Shape(["{RUN}"]))'),
    "string in a buffer": kernel(f'A: T.Buffer(("{RUN}",), "float16")'),
    "string in a buffer, by name": kernel(f'A: T.Buffer(dtype="float16", shape=["{RUN}"])'),
    "classes": relax_function(dimension="().__class__.__mro__[1].__subclasses__()"),
    "classes in a string": relax_function(dimension='"().__class__.__mro__[1].__subclasses__()"'),
    "globals of a function": relax_function('y = R.add.__globals__["os"]', "return x"),
    "module of a namespace": relax_function('return R.tvm.runtime.load_module("lib.so")'),
    "module of operators": relax_function('return R.nn.os.system("touch MARK")'),
    "method of a value": relax_function(
        "c = R.const([1.0])", 'd = c.data.numpy().tofile("MARK")', "return x"
    ),
    "method named as a function": relax_function(
        "cls = M", "cls = R.const([1.0]).data", 'cls.tofile("MARK")', "return x"
    ).replace("def f(", "def tofile("),
    "builtin": relax_function(f'y = eval("{RUN}")', "return x"),
    "builtin by a parameter": kernel("eval: T.int32", f'a, b[eval("{RUN}")] = 1, 2'),
    "builtin elsewhere bound": relax_function("open = x", "return x")
    + '    @R.function\n    def g(x: R.Tensor((4,), "float16")):\n        y = open("MARK", "w")\n        return x\n',
    "place to assign to": relax_function(f"x[{RUN}] = x", "return x"),
    "lambda": relax_function(f"y = (lambda: {RUN})()", "return x"),
    "lambda as an argument": relax_function(f"y = R.add(lambda: {RUN}, x)", "return x"),
    "f-string": relax_function(f'y = f"{{{RUN}}}"', "return x"),
    "comprehension": relax_function(f"y = [{RUN} for i in range(1)]", "return x"),
    "generator": relax_function(f"y = R.add(*({RUN} for i in range(1)))", "return x"),
    "walrus": relax_function(f"y = (z := {RUN})", "return x"),
    "import": relax_function("import os", "return x"),
    "decorator": relax_function().replace("@R.function", f"@R.function({RUN})"),
    "another decorator": relax_function().replace("@R.function", f"@({RUN})\n    @R.function"),
    "default": relax_function().replace('"float16")', f'"float16") = {RUN}'),
    "base": relax_function().replace("class M", f"class M({RUN})"),
    "metaclass": relax_function().replace("class M", f"class M(metaclass={RUN})"),
    "Python function": relax_function(RUN)
    .replace("class M", "class M(BasePyModule)")
    .replace("R.function", "I.pyfunc"),
    "statement of the class": relax_function().replace("class M:\n", f"class M:\n    {RUN}\n"),
    "binding of the class": relax_function().replace("class M:\n", f"class M:\n    y = {RUN}\n"),
    "constant": relax_function(head=f"N = {RUN}\n", dimension="N"),
    "macro": kernel("a: T.int32").replace("prim_func", "inline"),
    "kernel of source": kernel("a: T.int32", 'T.call_kernel("MARK", (1, 1))'),
    "kernel of Python": relax_function("return R.emit_te(x)"),
    "function by name": relax_function('return R.match_cast(x, R.Callable(derive_func="x"))'),
    "alias of another module": "import os as R\n"
    + relax_function('R.system("touch MARK")', "return x"),
    "alias of a function": "from os import system as T\n"
    + relax_function('T("touch MARK")', "return x"),
    "end of a line": relax_function("return y") + '# \u2028import os; os.system("touch MARK")\n',
    "keywords": relax_function(f'y = R.add(**{{"a": {RUN}}})', "return x"),
    "namespace bound": relax_function("R = x", "return x"),
    "namespace changed": relax_function("R.function = x", "return x"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_executed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = HOSTILE[name].replace("MARK", str(tmp_path / "mark"))
    line = refused(text)
    assert line.startswith(":")
    assert list(tmp_path.iterdir()) == []


# -- what would take for ever -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (relax_function(dimension="9**9**9"), ":4:24: `**` is not allowed: use T.pow, or R.power"),
        (
            relax_function(dimension="1 << 10000000000"),
            ":4:24: a shift by 10000000000 bits is not allowed",
        ),
        (
            relax_function(dimension="[0] * 10000000000"),
            ":4:24: no arithmetic with strings, tuples or lists",
        ),
        (relax_function(dimension="9" * 50), ":4:24: the number has more than 64 bits"),
        (relax_function(head="N = 9**9**9\n", dimension="N"), ":1:5: `9 ** 9 ** 9` is no constant"),
        (
            relax_function(dimension="(" * 300 + "1" + ")" * 300),
            ":4:221: too many nested parentheses",
        ),
        (relax_function(dimension="-" * 100_000 + "1"), ": nested too deeply"),
        (relax_function(dimension="+".join(["1"] * 20_000)), ": nested too deeply"),
    ],
)
def test_no_hang(text, line):
    assert refused(text).startswith(line)


def test_control_characters_are_shown():
    line = error("plan", "-", text=relax_function('y = "\x1b[31m"\x07', "return x"))
    assert "\x1b" not in line and "\x07" not in line


def test_a_file_that_windows_wrote():
    assert output("plan", "-", text=TRANSFORM.replace("\n", "\r\n")) == output(
        "plan", "-", text=TRANSFORM
    )
