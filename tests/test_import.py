"""What importing the package does, and does not do."""

import re
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import relax_inplace
from relax_inplace.versions import check_version

CHANGELOG = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()


def run(program, **environment):
    """A fresh interpreter, with nothing of the current folder on its path."""
    import os

    return subprocess.run(
        [
            sys.executable,
            "-P" if sys.version_info >= (3, 11) else "-s",
            "-c",
            textwrap.dedent(program),
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd="/",
    )


def succeeds(program, **environment):
    done = run(program, **environment)
    assert done.returncode == 0, done.stderr


WRITES_THE_OP = """
    from tvm.script import relax as R
    @R.function(pure=False)
    def f(p: R.Tuple(R.Tensor((2,), "float32")), x: R.Tensor((2,), "float32")):
        q = R.inplace_update_tuple(p, 0, x)
        return q
    import tvm
    tvm.compile(tvm.IRModule({"f": f}), "llvm")
"""


def test_version():
    assert relax_inplace.__version__ == metadata.version("relax-inplace")
    assert (
        re.match(r"## (\S+)", CHANGELOG[CHANGELOG.index("## ") :])[1] == relax_inplace.__version__
    )


@pytest.mark.parametrize(
    "imports",
    [
        "import relax_inplace",
        "import tvm, relax_inplace",
        "import relax_inplace, tvm",
        "import tvm.relax, relax_inplace, relax_inplace",
        "import relax_inplace.libinfo",
        "import relax_inplace.analysis",
        "import relax_inplace.layout",
        "import relax_inplace.transform",
        "from relax_inplace.transform import InplaceTransformParams",
        "from relax_inplace import inplace_update_tuple",
        "from relax_inplace import lift_param",
        "import relax_inplace.marker",
        "import relax_inplace.op",
        "import relax_inplace.lower.spare_storage",
        "import relax_inplace, importlib; importlib.reload(relax_inplace)",
        "import tvm, relax_inplace, importlib; importlib.reload(relax_inplace)",
    ],
)
def test_any_order(imports, tmp_path):
    script = tmp_path / "script.py"  # TVMScript is read from its file
    script.write_text(imports + "\n" + textwrap.dedent(WRITES_THE_OP))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_any_module_first():
    """Each of those that the registration imports, where it is what imports ``tvm``.

    In one process: ``tvm`` is executed once, and found as it is from then on.
    """
    succeeds(
        """
        import importlib, sys
        from importlib.machinery import ModuleSpec
        import relax_inplace, tvm

        class AsItIs:
            def find_spec(self, name, path, target=None):
                return ModuleSpec(name, self) if name == "tvm" else None
            def create_module(self, spec):
                return tvm
            def exec_module(self, module):
                pass

        def imported():
            return {name for name in sys.modules if name.partition(".")[0] == "relax_inplace"}

        every = imported()
        assert len(every) > 30
        sys.meta_path.insert(0, AsItIs())
        for name in sorted(every):
            for other in imported():
                del sys.modules[other]
            del sys.modules["tvm"]
            module = importlib.import_module(name)
            assert module is sys.modules[name]
            parent, _, last = name.rpartition(".")
            assert not parent or getattr(sys.modules[parent], last) is module
            import tvm
            assert imported() == every
        """
    )


def test_does_not_import_tvm():
    succeeds(
        """
        import sys, relax_inplace, relax_inplace.libinfo
        assert relax_inplace.libinfo.find_library().endswith(("so", "dylib", "dll"))
        assert "tvm" not in sys.modules
        assert "libtvm_compiler" not in open("/proc/self/maps").read()
        """
    )


def test_leaves_a_tvm_without_compiler_alone():
    succeeds(
        """
        import relax_inplace, tvm, tvm_ffi
        assert tvm.base._RUNTIME_ONLY
        assert tvm_ffi.get_global_func("vm.builtin.inplace_update_tuple") is not None
        """,
        TVM_USE_RUNTIME_LIB="1",
    )


def test_tvm_is_as_before_but_for_what_it_gains():
    """Same public names, same ops, same passes: the op and its name in TVMScript apart."""
    snapshot = """
        import json, sys, tvm, tvm_ffi
        from tvm import relax
        from tvm.relax import script
        json.dump([
            sorted(tvm_ffi.get_global_func("ir.ListOpNames")()),
            sorted(dir(tvm)), sorted(dir(relax)), sorted(dir(relax.transform)),
            sorted(dir(relax.op)), sorted(dir(script)), sorted(dir(script.parser)),
            repr(sys.excepthook), len(sys.meta_path),
        ], sys.stdout)
    """
    import json

    stock = json.loads(run(snapshot).stdout)
    ours = json.loads(run("import relax_inplace\n" + textwrap.dedent(snapshot)).stdout)
    gained = [
        set(b) - set(a) if isinstance(a, list) else set() for a, b in zip(stock, ours, strict=True)
    ]
    name = {"inplace_update_tuple", "lift_param"}
    assert gained == [
        {"relax.inplace_update_tuple", "relax.lift_param"},
        set(),
        set(),
        set(),
        set(),
        name,
        name,
        set(),
        set(),
    ]
    assert stock[-1] == ours[-1]  # no finder is left behind


def test_a_failed_import_of_tvm_can_be_repeated(tmp_path):
    """The first attempt fails inside tvm; the second one succeeds and registers."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, relax_inplace
            sys.modules["tvm_ffi.libinfo"] = None
            try:
                import tvm
            except ImportError:
                pass
            else:
                raise AssertionError
            del sys.modules["tvm_ffi.libinfo"]
            for name in [name for name in sys.modules if name.startswith("tvm") ]:
                if not name.startswith("tvm_ffi"):
                    del sys.modules[name]
            """
        )
        + textwrap.dedent(WRITES_THE_OP)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("distribution", "found"),
    [
        ("apache-tvm", "0.26.0"),
        ("apache-tvm", "0.28.0"),
        ("apache-tvm", "0.27.0"),
        ("apache-tvm-ffi", "0.1.13"),
        ("apache-tvm-ffi", "0.1.15"),
    ],
)
def test_a_version_outside_the_bounds(distribution, found, tmp_path):
    """A distribution of that version comes first on the path."""
    info = tmp_path / f"{distribution.replace('-', '_')}-{found}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {found}\n"
    )
    done = run("import relax_inplace", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: relax_inplace needs " + distribution)
    assert f"but {found} is installed" in last


@pytest.mark.parametrize("found", ["0.27.0.post1", "0.27.0.post2", "0.27.1"])
def test_a_version_within_the_bounds(found):
    check_version(Requirement("apache-tvm>=0.27.0.post1,<0.28"), found)
