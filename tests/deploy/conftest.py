"""A model, exported in the ways in which one is shipped; its weights; what they become."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tvm
from click.testing import CliRunner
from tvm import relax

from relax_inplace import runtime
from relax_inplace.cli import main
from relax_inplace.cli.messages import Messages
from relax_inplace.cli.python_file import run_file
from relax_inplace.libinfo import self_contained_options
from relax_inplace.transform import LiftInplaceTransformParams

MODEL = """\
from tvm.script import ir as I
from tvm.script import relax as R

@I.ir_module
class Model:
    @R.function
    def decode(
        x: R.Tensor((1, 64), "float32"),
        params: R.Tuple(R.Tensor((32, 64), "float32"), R.Tensor((16, 64), "float32")),
    ):
        w = R.permute_dims(params[0])
        v = R.permute_dims(params[1])
        return R.concat((R.matmul(x, w), R.matmul(x, v)), axis=1)
"""


@dataclasses.dataclass
class Exported:
    """What was exported, and what Python makes of it.

    Attributes
    ----------
    modules : dict of str to Path
        ``plain``, ``streamed`` and ``compiled`` need the library beside them, ``self_contained``
        and ``self_contained_compiled`` do not.
    folder : Path
        The weights, as a tensor cache.
    weights, converted : list of np.ndarray
    logits : bytes
        Of ``decode`` on ones.
    """

    modules: dict
    folder: Path
    weights: list
    converted: list
    logits: bytes


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    modules = {
        name: folder / f"{name}.so"
        for name in ("plain", "streamed", "compiled", "self_contained", "self_contained_compiled")
    }

    model = folder / "model.py"
    model.write_text(MODEL)

    def build(name, *options):
        arguments = ["build", str(model), *options, "-o", str(modules[name])]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.stderr

    build("plain")
    build("streamed", "--lazy")
    build("self_contained", "--self-contained")
    mod = LiftInplaceTransformParams()(run_file(str(model), None, Messages()))
    executable = relax.build(mod, "llvm", exec_mode="compiled")
    executable.export_library(str(modules["compiled"]))
    executable.export_library(
        str(modules["self_contained_compiled"]), options=self_contained_options()
    )
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal(shape, "float32") for shape in ((32, 64), (16, 64))]
    transform = runtime.load_transform(modules["plain"], tvm.cpu())
    params = runtime.Params(
        [tvm.runtime.tensor(weight) for weight in weights], [one.name for one in transform.weights]
    )
    runtime.save_params(params, folder / "weights", "tensor-cache")
    runtime.transform_params(transform, params)
    converted = [field.numpy() for field in params]
    ones = tvm.runtime.tensor(np.ones((1, 64), "float32"))
    logits = transform.vm["decode"](ones, params._fields()).numpy().tobytes()
    assert [one.tobytes() for one in converted] == [one.T.tobytes() for one in weights]
    return Exported(modules, folder / "weights", weights, converted, logits)


@pytest.fixture
def fresh_process(tmp_path):
    """Run a program in a process that has nothing of this one, and return what it prints.

    TVM's runtime alone is loaded, unless ``compiler``: in a third of the time.
    """

    def run(program, *arguments, fails=False, compiler=False):
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(program))
        done = subprocess.run(
            [sys.executable, str(script), *map(str, arguments)],
            env={**os.environ, "TVM_USE_RUNTIME_LIB": str(int(not compiler))},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run
