"""`relax_inplace.runtime` where there is no libtvm_compiler: the same library, the same bits."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = """
    import sys
    import numpy as np
    import tvm
    from relax_inplace import runtime

    assert tvm.base._RUNTIME_ONLY and "tvm_compiler" not in tvm.base._LOADED_LIBS
    transform = runtime.load_transform(sys.argv[1], tvm.cpu())
    params = runtime.load_params(sys.argv[2], tvm.cpu(), transform)
    runtime.transform_params(transform, params)
    assert params.report.reused == 2, params.report
    runtime.save_params(params, "converted")
    x = tvm.runtime.tensor(np.ones((1, 64), "float32"))
    print(transform.vm["decode"](x, params._fields()).numpy().tobytes().hex())
    for one in params:
        print(one.numpy().tobytes().hex())
    with open("/proc/self/maps") as maps:
        assert "libtvm_compiler" not in maps.read()
"""


@pytest.fixture
def packages(tmp_path):
    """The installed packages, by links, without the compiler's library."""
    installed = Path(find_spec("tvm").origin).parent.parent

    def linked(source, target, but):
        target.mkdir()
        for one in source.iterdir():
            if one.name != but:
                (target / one.name).symlink_to(one)
        return source / but, target / but

    packages = tmp_path / "packages"
    library, _ = linked(*linked(*linked(installed, packages, "tvm"), "lib"), "libtvm_compiler.so")
    assert library.is_file() and not list(packages.glob("tvm/lib/libtvm_compiler*"))
    return packages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the names of Linux's libraries")
@pytest.mark.parametrize("module", ["plain", "self_contained"])
def test_converts_and_runs(exported, packages, tmp_path, module):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TVM")}
    environment["PYTHONPATH"] = str(packages)
    paths = [str(exported.modules[module]), str(exported.folder)]
    done = subprocess.run(  # -S: without the packages of this environment
        [sys.executable, "-S", "-c", textwrap.dedent(PROGRAM), *paths],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results = [bytes.fromhex(line) for line in done.stdout.split()]
    assert results == [exported.logits, *(one.tobytes() for one in exported.converted)]
