"""explain_lift: what a person reads, what a program reads, and that the module stays as it is."""

import json
import textwrap

import pytest
from tvm.script import from_source

from relax_inplace.analysis import LiftError, explain_lift


def module(body, types='R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32")'):
    return from_source(
        f"""
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((2, 8), "float32"), params: R.Tuple({types})):
{textwrap.indent(textwrap.dedent(body).strip(), " " * 8)}
"""
    )


TRANSPOSED = """
    a = params[0]
    t = R.permute_dims(a)
    y = R.matmul(x, t)
    return y
"""


def test_printed():
    report = explain_lift(module(TRANSPOSED))
    assert str(report) == textwrap.dedent(
        """\
        main: weights 2 -> 1, bytes 256 -> 128, steps 1

        slot  weight     what is done to it  new slot  bytes  then  used by
           0  a          permute_dims(a)            0    128   128  main
           1  params[1]  nothing needs it           -    128     -  -
        """
    )
    assert str(report.plan).startswith("transform_params: peak 256, before 256, after 128")


def test_json_holds_all_of_it():
    report = explain_lift(module(TRANSPOSED), max_resident=1.0)
    loaded = json.loads(report.to_json())
    assert loaded["functions"] == ["main"]
    assert (loaded["before"], loaded["after"], loaded["steps"]) == (256, 128, 1)
    assert loaded["weights"][0] == {
        "name": "a",
        "slot": "0",
        "done": "permute_dims(a)",
        "kind": "permute_dims",
        "new_slot": "0",
        "new_name": "a",
        "before": 128,
        "after": 128,
        "used_by": ["main"],
    }
    assert loaded["plan"]["peak"] == 256


def test_symbolic_sizes_are_text():
    body = """
        t = R.exp(params[0])
        return R.matmul(x, R.permute_dims(t))
    """
    report = explain_lift(module(body, 'R.Tensor(("n", 8), "float32")'))
    assert str(report).startswith("main: weights 1 -> 1, bytes 32*n -> 32*n, steps 2")
    assert json.loads(report.to_json())["plan"]["peak"] == "64*n"


def test_long_computations_are_cut():
    lines = ["t0 = params[0]", *(f"t{i + 1} = R.add(t{i}, params[1])" for i in range(9))]
    report = explain_lift(module("\n".join([*lines, "return R.add(x, R.sum(t9))"])))
    assert report.weights[0].done == "sum(add(add(...), params[1]))"


def test_one_of_several_results():
    body = """
        halves = R.split(params[0], 2)
        return (R.add(halves[1], R.sum(x)), params[1])
    """
    report = explain_lift(module(body))
    assert [(one.name, one.done, one.new_slot) for one in report.weights] == [
        ("params[0]", "split(params[0])[1]", "0"),
        ("params[1]", "", "1"),
    ]


def test_limits_are_those_of_the_pass():
    mod = module(TRANSPOSED)
    assert explain_lift(mod, lazy=True).plan.before == 0
    with pytest.raises(LiftError, match=r"max_resident=0\.1 is 25 bytes"):
        explain_lift(mod, max_resident=0.1)


def test_the_module_stays_as_it_is():
    mod = module(TRANSPOSED)
    before = mod.script()
    explain_lift(mod, max_resident=1.0)
    assert mod.script() == before
