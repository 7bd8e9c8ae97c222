"""Installing from a checkout: it writes nothing into it, so any number of installs go at once."""

import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT_FROM = [
    *("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"),
    *("cmake", "cpp", "examples", "relax_inplace"),
]


@pytest.mark.skipif(find_spec("scikit_build_core") is None, reason="builds without a network")
def test_two_builds_at_once_leave_it_as_it_was(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    for code in source.glob("cpp/*.cc"):
        code.write_text("")  # in seconds

    def state():
        return {path: path.lstat().st_mtime_ns for path in source.rglob("*")}

    before = state()
    builds = [
        subprocess.Popen(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
             "--wheel-dir", tmp_path / wheels, source],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for wheels in ("first", "second")
    ]  # fmt: skip
    said = [build.communicate(timeout=600)[0] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], "\n".join(said)
    assert state() == before
    for wheels in ("first", "second"):
        (wheel,) = (tmp_path / wheels).glob("*.whl")
        assert "relax_inplace/lib/librelax_inplace.so" in zipfile.ZipFile(wheel).namelist()
