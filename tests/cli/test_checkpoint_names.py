"""Checkpoints with names of their own, from the command line."""

import json

import numpy as np
import pytest
from commands import TRANSFORM, error, output, run
from safetensors.numpy import save_file

from relax_inplace.runtime.checkpoint import open_checkpoint

# As torch.export and TVM's front end call the parameters of a Linear and a BatchNorm.
MODULE = """\
from tvm.script import ir as I
from tvm.script import relax as R

@I.ir_module
class Module:
    @R.function
    def main(
        x: R.Tensor((2, 64), "float32"),
        p_fc_weight: R.Tensor((32, 64), "float32"),
        p_fc_bias: R.Tensor((32,), "float32"),
        b_norm_running_mean: R.Tensor((32,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        t = R.permute_dims(p_fc_weight)
        y = R.add(R.matmul(x, t), p_fc_bias)
        return R.subtract(y, b_norm_running_mean)
"""
WEIGHT = np.arange(2048, dtype="float32").reshape(32, 64)
STATE = {
    "fc.weight": WEIGHT,
    "fc.bias": np.ones(32, "float32"),
    "norm.running_mean": np.zeros(32, "float32"),
    "norm.num_batches_tracked": np.zeros(1, "int64"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    output("build", "-", "-o", folder / "lib.so", text=MODULE)
    (folder / "weights").mkdir()
    save_file(STATE, folder / "weights" / "model.safetensors")
    return folder


def test_a_state_dict_with_ignore_extra_and_nothing_else(folder, tmp_path):
    arguments = "run", folder / "lib.so", "--params", folder / "weights"
    assert error(*arguments).endswith(
        "1 too many ('norm.num_batches_tracked'), expected the weights of inplace_transform_params; "
        "load with --ignore-extra if the module does not need them"
    )
    done = run(*arguments, "--ignore-extra", "--save", tmp_path)
    assert (done.exit_code, done.stdout.startswith("inplace_transform_params: ")) == (0, True)
    assert "not used, and not read: norm.num_batches_tracked" in done.stderr
    saved = open_checkpoint(tmp_path)
    assert set(saved.records) == {"fc.weight", "fc.bias", "norm.running_mean"}
    assert saved.records["fc.weight"].shape == (64, 32)
    assert "nothing to convert" in output("run", folder / "lib.so", "--params", tmp_path)


def test_explained(folder):
    said = output("explain", "-", "--params", folder / "weights", text=MODULE)
    lines = [line.split() for line in said.splitlines()]
    for ours, theirs in (
        ("p_fc_weight", "fc.weight"),
        ("b_norm_running_mean", "norm.running_mean"),
    ):
        assert any(line[:2] == [ours, theirs] and "torch.export's" in line for line in lines)
    assert "not used (1): norm.num_batches_tracked" in said
    arguments = "explain", "-", "--json", "--params", folder / "weights"
    (report,) = json.loads(output(*arguments, text=MODULE))
    assert report["checkpoint"]["p_fc_bias"] == "fc.bias"


def test_the_help_has_the_rules():
    from relax_inplace.weight_names import RULES

    said = output("explain", "--help")
    assert all(f"{number}. {rule}" in said for number, rule in enumerate(RULES, 1))


NAMES = {"p_fc_weight": "w", "p_fc_bias": "b", "b_norm_running_mean": "m"}


@pytest.mark.parametrize("at", ["build", "run", "both"])
@pytest.mark.parametrize("form", ["object", "list"])
def test_given_once_is_enough(at, form, folder, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps(NAMES if form == "object" else list(NAMES.values())))
    save_file({"w": WEIGHT, "b": STATE["fc.bias"], "m": STATE["norm.running_mean"]}, tmp_path / "w.safetensors")  # fmt: skip
    library = folder / "lib.so"
    if at != "run":
        library = tmp_path / "lib.so"
        output("build", "-", "--names", names, "-o", library, text=MODULE)
    given = ["--names", names] if at != "build" else []
    output(
        "run", library, "--params", tmp_path / "w.safetensors", *given, "--save", tmp_path / "new"
    )
    assert set(open_checkpoint(tmp_path / "new").records) == {"w", "b", "m"}


def test_a_transform_takes_names_without_a_lift(tmp_path):
    names = tmp_path / "names.json"
    names.write_text('["up", "down"]')
    assert "down" in output("plan", "-", "--names", names, text=TRANSFORM)
    output("build", "-", "--names", names, "-o", tmp_path / "lib.so", text=TRANSFORM)
    weights = {"down": np.ones((6, 8), "float16"), "up": np.ones((4, 8), "float16")}
    save_file(weights, tmp_path / "w.safetensors")
    assert "converted" in output("run", tmp_path / "lib.so", "--params", tmp_path / "w.safetensors")


def test_ties(tmp_path):
    save_file({"w0": np.ones((4, 8), "float16")}, tmp_path / "w.safetensors", {"w1": "w0"})
    module = TRANSFORM.replace("(6, 8)", "(4, 8)")
    names = tmp_path / "names.json"
    names.write_text('["w0", "w1"]')
    output("build", "-", "-o", tmp_path / "lib.so", "--names", names, text=module)
    arguments = "run", tmp_path / "lib.so", "--params", tmp_path / "w.safetensors"
    assert "1 missing ('w1')" in error(*arguments)
    assert "converted" in output(*arguments, "--ties")
