"""`relax-inplace plan` and `explain`."""

import json

from commands import MODEL, SYMBOLIC, TRANSFORM, dedent, error, output, run

NAMED = TRANSFORM.replace("w0 =", "a, b = params[0], params[1]\n        w0 =")
NAMED = NAMED.replace("dims(params[0])", "dims(a)").replace("dims(params[1])", "dims(b)")
PLAN = """
    transform_params: peak 256, before 160, after 160, lower bound 160; order: exact

    step  computes  reads  writes  frees  before  worst  after
       1  w0        a      slot 0  a         160    224    160
       2  w1        b      slot 1  b         160    256    160

    slot  weight  bytes  freed after  because
       0  a          64  step 1       w0 reads it
       1  b          96  step 2       w1 reads it

    out of place: at least 320, the originals and the results; in place: 256, 0.80 of that
    """


def test_transform():
    assert output("plan", "-", text=NAMED) == dedent(PLAN)


IN_PLACE = """
    transform_params: peak 256, before 160, after 160, lower bound 160; order: exact; in place by at most 4,194,304 of scratch

    step  computes  reads  writes  in  frees  before  worst  after
       1  w0        a      slot 0  a   a         160    224    160
       2  w1        b      slot 1  b   b         160    256    160

    slot  weight  bytes  freed after  because
       0  a          64  step 1       w0 reads it
       1  b          96  step 2       w1 reads it

    out of place: at least 320, the originals and the results; in place: 256, 0.80 of that
    """
STORAGE = """
    inplace_transform_params: of 2 new tensors 0 are allocated, 0 reuse a storage, 2 are written in place; peak 160, without donation 256
    slot 0 -> in place of slot 0
    slot 1 -> in place of slot 1
    """


def test_storage():
    text = output("plan", "-", "--target", "llvm", text=NAMED)
    assert text == dedent(IN_PLACE) + "\n" + dedent(STORAGE)
    (plan,) = json.loads(output("plan", "-", "--target", "llvm", "--json", text=NAMED))
    assert [one["takes"] for one in plan["storage"]["storages"]] == ["slot 0", "slot 1"]
    assert "--target nonsense: no such kind" in error(
        "plan", "-", "--target", "nonsense", text=NAMED
    )


def test_model_without_a_transform_is_lifted():
    text = output("plan", "-", "--max-resident", "1.0", text=MODEL)
    assert text.startswith("transform_params: peak 10,240, before 6,144, after 6,144,")
    assert text.endswith("; in place: 10,240, 0.83 of that\n")


def test_json():
    (plan,) = json.loads(output("plan", "-", "--json", text=TRANSFORM))
    assert (plan["function"], plan["peak"], plan["out_of_place"]) == ("transform_params", 256, 320)
    assert [step["worst"] for step in plan["steps"]] == [224, 256]


def test_a_weight_that_stays_is_there_once():
    text = TRANSFORM.replace("w1 = R.permute_dims(params[1])", "w1 = params[1]")
    (plan,) = json.loads(output("plan", "-", "--json", text=text))
    assert plan["out_of_place"] == 64 + 96 + 64


def test_streamed():
    (plan,) = json.loads(output("plan", "-", "--lazy", "--json", text=TRANSFORM))
    assert (plan["before"], plan["out_of_place"]) == (0, 320)


def test_symbolic():
    (plan,) = json.loads(output("plan", "-", "--json", text=SYMBOLIC))
    assert plan["out_of_place"] == "32*n + 192"
    (plan,) = json.loads(output("plan", "-", "--bound", "n=4", "--json", text=SYMBOLIC))
    assert plan["out_of_place"] == 320
    (plan,) = json.loads(output("plan", "-", "--lift", "--bound", "n=4", "--json", text=USER))
    assert plan["out_of_place"] == 128


USER = """
from tvm.script import ir as I, relax as R
@I.ir_module
class M:
    @R.function
    def main(x: R.Tensor((1,), "float16"), params: R.Tuple(R.Tensor(("n", 8), "float16"))):
        return R.permute_dims(params[0])
"""


def test_plot(tmp_path):
    for name in ("plan.svg", "plan.png"):
        output("plan", "-", "--plot", tmp_path / name, text=TRANSFORM)
        assert (tmp_path / name).stat().st_size > 5000
    assert error("plan", "-", "--plot", "plan.bmp", text=TRANSFORM) == (
        "plan.bmp: expected a file that ends in .svg, .png or .pdf"
    )
    assert error("plan", "-", "--plot", tmp_path / "p.svg", text=SYMBOLIC) == (
        "the bytes of `transform_params` are symbolic, 16*n + 96: to draw them, plan with the "
        "largest value of each dimension, as --bound n=4096"
    )


def test_refused():
    assert error("plan", "-", "--function", "f", text=TRANSFORM) == (
        "the module has no Relax function `f`; it has transform_params"
    )
    rewritten = output("rewrite", "-", text=TRANSFORM)
    assert error("plan", "-", text=rewritten) == (
        "`inplace_transform_params` works in place already: plan the module as it was before"
    )
    assert error("plan", "-", "--memory-limit", "1.2.3", text=TRANSFORM, code=2) == (
        "Invalid value for '--memory-limit': '1.2.3' is neither bytes (1073741824) nor a factor "
        "(1.2); see relax-inplace plan --help"
    )


def test_explain():
    assert output("explain", "-", "--max-resident", "1.0", text=MODEL) == dedent("""
        decode, prefill: weights 2 -> 2, bytes 6,144 -> 6,144, steps 2

        slot  weight     what is done to it       new slot  bytes   then  used by
           0  params[0]  permute_dims(params[0])         0  4,096  4,096  decode, prefill
           1  params[1]  permute_dims(params[1])         1  2,048  2,048  prefill

        not lifted                       because
        astype(permute_dims(params[1]))  storing it would take 2,048 bytes more; --max-resident 1.0
        """)


def test_only_and_skip():
    """What is left is named by the rule; --max-resident none lifts what makes the weights larger."""
    chosen = "--skip", "relax.permute_dims", "--only", "params[1]"
    assert output("explain", "-", *chosen, text=MODEL) == dedent("""
        decode, prefill: weights 2 -> 2, bytes 6,144 -> 6,144, steps 0

        slot  weight     what is done to it  new slot  bytes   then  used by
           0  params[0]  stays                      0  4,096  4,096  decode, prefill
           1  params[1]  stays                      1  2,048  2,048  prefill

        not lifted                       because
        permute_dims(params[0])          --skip relax.permute_dims
        permute_dims(params[1])          --skip relax.permute_dims
        astype(permute_dims(params[1]))  it is made from what --skip relax.permute_dims leaves
        """)
    assert output("explain", "-", "--max-resident", "none", text=MODEL).startswith(
        "decode, prefill: weights 2 -> 2, bytes 6,144 -> 8,192, steps 3"
    )
    assert json.loads(output("explain", "-", "--only", "params[1]", "--json", text=MODEL))[0][
        "left"
    ][0] == {
        "done": "permute_dims(params[0])",
        "because": "only='params[1]' does not ask for it",
        "rule": "only",
    }


def test_nothing_is_lifted(tmp_path):
    """No plan, and a module as it was."""
    done = run("plan", "-", "--skip", "*", text=MODEL)
    assert (done.stdout, done.exit_code) == ("", 0)
    assert done.stderr == "relax-inplace: nothing is lifted: `relax-inplace explain` says why\n"
    done = run("rewrite", "-", "--lift", "--skip", "*", text=MODEL)
    assert "inplace_transform_params" not in done.stdout
    assert "nothing is lifted, the module is as it was" in done.stderr
    done = run("build", "-", "--skip", "*", "-o", tmp_path / "lib.so", text=MODEL)
    assert "no weights are converted" in done.stderr
    assert error("rewrite", "-", "--skip", "*", text=TRANSFORM, code=2).startswith(
        "--skip needs a lifted transform: add --lift"
    )


MANY = """\
from tvm.script import ir as I
from tvm.script import relax as R


@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((4, 4), "float32"), params: R.Tuple({types})):
{body}
        return x20
"""


def many():
    """Of 20 weights two are transposed."""
    lines = ["x0 = x"]
    for i in range(20):
        weight = f"params[{i}]"
        if i in (3, 7):
            lines.append(f"t{i} = R.permute_dims({weight})")
            weight = f"t{i}"
        lines.append(f"x{i + 1} = R.add(x{i}, {weight})")
    types = ", ".join(['R.Tensor((4, 4), "float32")'] * 20)
    return MANY.format(types=types, body="\n".join(f"        {line}" for line in lines))


def test_many_weights():
    """A summary, and what changes; --all shows each weight."""
    summary = dedent("""
        main: weights 20 -> 20, bytes 1,280 -> 1,280, steps 2

        weights  bytes  slots   then  what is done to them
              2    128      2    128  permute_dims
             18  1,152     18  1,152  stays
        """)
    for command in ("explain", "plan"):
        text = output(command, "-", text=many())
        assert text.startswith(summary)
        assert "params[3]" in text
        assert "params[4]" not in text
        assert "params[4]" in output(command, "-", "--all", text=many())


def test_explain_with_names(tmp_path):
    names = tmp_path / "names.json"
    names.write_text('["up", "down"]')
    arguments = "explain", "-", "--json", "--names", names, "--function", "prefill"
    (report,) = json.loads(output(*arguments, text=MODEL))
    assert (report["functions"], report["names"]) == (["prefill"], ["up", "down"])
    names.write_text('{"params[1]": "down"}')
    (report,) = json.loads(output(*arguments, text=MODEL))
    assert report["names"] == ["params[0]", "down"]
    names.write_text('{"up": 1}')
    assert error(*arguments, text=MODEL, code=2) == (
        f"Invalid value for '--names': {names}: expected JSON, an object from the module's "
        "names to others, or a list of names in the order of the tuple; see relax-inplace explain "
        "--help"
    )


def test_nothing_to_explain():
    assert error("explain", "-", text=TRANSFORM) == (
        "the weight transforms of the module cannot be lifted: none of its functions has weights: "
        "parameters after `num_input` others, or a tuple as its last parameter"
    )
