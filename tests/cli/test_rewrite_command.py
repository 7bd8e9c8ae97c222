"""`relax-inplace rewrite`: TVMScript or JSON in, TVMScript or JSON out."""

import re
import sys

import tvm
import tvm_ffi
from commands import MODEL, SYMBOLIC, TRANSFORM, dedent, error, output, run

REWRITTEN = """
    import relax_inplace
    from tvm.script import ir as I
    from tvm.script import relax as R

    @I.ir_module
    class Module:
        I.module_attrs({"relax_inplace.param_map": ...})
        @R.function(pure=False)
        def inplace_transform_params(params: R.Tuple(R.Tensor((4, 8), dtype="float16"), R.Tensor((6, 8), dtype="float16"))) -> R.Tuple(R.Tensor((8, 4), dtype="float16"), R.Tensor((8, 6), dtype="float16")):
            params_0: R.Tensor((4, 8), dtype="float16") = params[0]
            w0: R.Tensor((8, 4), dtype="float16") = R.permute_dims(params_0, axes=None)
            p0: R.Tuple(R.Tensor((8, 4), dtype="float16"), R.Tensor((6, 8), dtype="float16")) = R.inplace_update_tuple(params, 0, w0)
            p0_1: R.Tensor((6, 8), dtype="float16") = p0[1]
            w1: R.Tensor((8, 6), dtype="float16") = R.permute_dims(p0_1, axes=None)
            p1: R.Tuple(R.Tensor((8, 4), dtype="float16"), R.Tensor((8, 6), dtype="float16")) = R.inplace_update_tuple(p0, 1, w1)
            return p1
    """


def test_transform():
    printed = output("rewrite", "-", text=TRANSFORM)
    assert re.sub(r'(param_map": )".*"', r"\1...", printed) == dedent(REWRITTEN)


def test_rewritten_again_is_the_same():
    once = output("rewrite", "-", text=TRANSFORM)
    assert output("rewrite", "-", text=once) == once


def test_model_is_lifted():
    script = output("rewrite", "-", "--lift", "--max-resident", "1.0", text=MODEL)
    assert "def inplace_transform_params(" in script
    assert "R.permute_dims" not in script.split("def prefill(")[1]


def test_formats_agree(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    arguments = "rewrite", "--lift", "--max-resident", "1.0"
    assert output(*arguments, tmp_path / "model.py", "-o", tmp_path / "new.json") == ""
    printed = output(*arguments, tmp_path / "model.py", "--json")
    assert (tmp_path / "new.json").read_text() == printed
    assert output(*arguments, tmp_path / "model.py", "-o", tmp_path / "new.py") == ""
    from_text = output("rewrite", tmp_path / "new.py", "--json")
    from_json = output("rewrite", tmp_path / "new.json", "--json")
    tvm_ffi_json = [tvm.ir.load_json(one) for one in (printed, from_text, from_json)]
    for one in tvm_ffi_json[1:]:
        assert tvm_ffi.structural_equal(tvm_ffi_json[0], one, map_free_vars=True)


def test_symbolic_dimensions_are_read_back():
    once = output("rewrite", "-", text=SYMBOLIC)
    assert ('n = TypeVar("n")' in once) == (sys.version_info < (3, 12))
    assert ("transform_params[n](" in once) == (sys.version_info >= (3, 12))
    compile(once, "module.py", "exec")
    assert output("rewrite", "-", text=once) == once


def test_what_is_not_rewritten_is_said():
    done = run("rewrite", "-", text=MODEL)
    assert done.exit_code == 0
    assert done.stderr == (
        "relax-inplace: nothing to rewrite: no function *transform_params; --lift makes one of a "
        "model\n"
    )
    assert run("rewrite", "-", "--quiet", text=MODEL).stderr == ""


def test_warnings_are_lines():
    done = run("rewrite", "-", "--lift", text=MODEL)
    assert done.stderr.startswith(
        "relax-inplace: warning: the transpositions are lifted of a "
        "weight (params[0]) that only matmul reads."
    )
    assert done.stderr.count("\n") == 1


def test_refused():
    assert error("rewrite", "-", "--memory-limit", "100", text=TRANSFORM) == (
        "function `transform_params` does not fit into --memory-limit 100 bytes: the least that "
        "would do is 256 bytes, 1.6 times the weights, for step `w1`; raise the limit, or read the "
        "weights one by one (--lazy)"
    )
    assert error("rewrite", "-", "--lift", "--tied", "a=b", text=MODEL) == (
        "the weight transforms of `decode`, `prefill` cannot be lifted: --tied a=b: there is "
        "no weight 'a'; expected an index below 2, or one of the names ['params[0]', 'params[1]']"
    )
    assert error("rewrite", "-", "--tied", "a=b", text=MODEL, code=2) == (
        "--tied needs a lifted transform: add --lift; see relax-inplace rewrite --help"
    )
    assert error("rewrite", "-", "-o", "x.txt", text=TRANSFORM) == (
        "x.txt: expected a file that ends in .py (TVMScript) or .json"
    )


def test_ownership_errors_name_the_file(tmp_path):
    stale = output("rewrite", "-", text=TRANSFORM).replace("= p0[1]", "= params[1]")
    path = tmp_path / "stale.py"
    path.write_text(stale)
    line = error("build", path, "-o", tmp_path / "lib.so")
    assert "`params` is used by `p0_1 = params[1]`" in line
    assert "<str>" not in line and f"({path}:" in line
