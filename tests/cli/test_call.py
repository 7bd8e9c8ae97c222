"""`relax-inplace run --call`: one call with the converted weights."""

import json

import numpy as np
import pytest
import tvm
from commands import MODEL, error, output

from relax_inplace.runtime import Params, load_transform, save_params

DYNAMIC = MODEL.replace('x: R.Tensor((1, 64), "float16")', 'x: R.Tensor(("n", 64), "float16")')


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """What runs a library: `prefill` has fixed shapes, `decode` a symbolic one."""
    folder = tmp_path_factory.mktemp("call")
    output("build", "-", "-o", folder / "lib.so", text=DYNAMIC)
    wanted = load_transform(folder / "lib.so", tvm.cpu()).weights
    weights = [tvm.runtime.tensor(np.ones(one.shape, one.dtype)) for one in wanted]
    save_params(Params(weights, [one.name for one in wanted]), folder / "weights")
    return "run", folder / "lib.so", "--params", folder / "weights"


def test_zeros_of_the_shapes_that_the_library_says(arguments):
    said = output(*arguments, "--call", "prefill").splitlines()[-1]
    assert said.startswith(
        "prefill(x (16, 64) float16 of zeros, the weights) returned (16, 32) float16 in "
    )


def test_arrays_where_it_does_not_say_them(arguments, tmp_path):
    assert error(*arguments, "--call", "decode") == (
        '--call decode: the library does not say the shape of x (R.Tensor((n, 64), dtype="float16"'
        ")); give it with --npz FILE, as the array 'x'"
    )
    for key in ("x", "arr_0"):
        np.savez(tmp_path / "x.npz", **{key: np.ones((3, 64), "float16")})
        called = "--call", "decode", "--npz", tmp_path / "x.npz"
        said = json.loads(output(*arguments, *called, "--json"))["call"]
        assert said["inputs"] == ["x (3, 64) float16"]
        assert said["returned"] == ["(3, 32) float16"]


def test_refused(arguments, tmp_path):
    assert error(*arguments, "--call", "f") == "--call f: the library has no such function"
    assert "takes nothing, expected one that takes the 2 converted weights last" in error(
        *arguments, "--call", "inplace_param_map"
    )
    np.savez(tmp_path / "y.npz", y=np.ones(3))
    assert "it has 'y', expected arrays named x" in error(
        *arguments, "--call", "decode", "--npz", tmp_path / "y.npz"
    )
    (tmp_path / "no.npz").write_text("no")
    assert "expected what numpy.savez writes" in error(
        *arguments, "--call", "decode", "--npz", tmp_path / "no.npz"
    )
    assert "No such file" in error(*arguments, "--call", "decode", "--npz", tmp_path / "nope.npz")
    assert "--npz is for --call" in error(*arguments, "--npz", tmp_path / "y.npz", code=2)


def test_weights_one_by_one(tmp_path):
    """A function that takes them as parameters, as the one that nothing is lifted from."""
    text = MODEL.split("    @R.function\n    def decode")[0]
    for old, new in (
        (
            'params: R.Tuple(R.Tensor((32, 64), "float16"), R.Tensor((32, 64), "int8")),',
            'a: R.Tensor((32, 64), "float16"), b: R.Tensor((32, 64), "int8"),',
        ),
        ("    ):\n        w", '    ):\n        R.func_attr({"num_input": 1})\n        w'),
        ("params[0]", "a"),
        ("params[1]", "b"),
    ):
        assert old in text
        text = text.replace(old, new)
    output("build", "-", "-o", tmp_path / "lib.so", text=text)
    weights = [tvm.runtime.tensor(np.ones((32, 64), dtype)) for dtype in ("float16", "int8")]
    save_params(Params(weights, ["a", "b"]), tmp_path / "weights")
    said = output(
        *("run", tmp_path / "lib.so", "--params", tmp_path / "weights", "--call", "prefill")
    )
    assert "returned (16, 32) float16" in said
