"""The library without Python and TVM, called by a program of C++; for aarch64 under an emulator.

``AARCH64_PACKAGES`` is a folder with what the wheels of this package and of tvm-ffi for that machine
hold: ``make wheel`` builds the one, and fetches the other.
"""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import tvm_ffi.libinfo

SOURCE = Path(__file__).with_name("check_builtins.cc")
HERE = Path(find_spec("relax_inplace").origin).parent.parent
# The compiler, what runs the program, and the packages.
MACHINES = {
    "this": ("g++", [], HERE),
    "aarch64": (
        "aarch64-linux-gnu-g++",
        ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"],
        os.environ.get("AARCH64_PACKAGES"),
    ),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_builtins(machine, tmp_path):
    compiler, emulator, packages = MACHINES[machine]
    if packages is None:
        pytest.skip("there are no packages for it: AARCH64_PACKAGES, by make wheel")
    for tool in (compiler, *emulator[:1]):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    tvm_ffi_folder = Path(packages).resolve() / "tvm_ffi/lib"
    program = tmp_path / "check_builtins"
    headers = [tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()]
    subprocess.run(
        [compiler, "-std=c++17", "-O1", *[f"-I{one}" for one in headers], SOURCE, "-o", program,
         f"-L{tvm_ffi_folder}", "-ltvm_ffi", f"-Wl,-rpath,{tvm_ffi_folder}", "-ldl", "-pthread"],
        check=True,
    )  # fmt: skip
    library = Path(packages).resolve() / "relax_inplace/lib/librelax_inplace.so"
    found = subprocess.run([*emulator, program, library], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    print(found.stdout)
    assert [line.split(":")[0] for line in found.stdout.splitlines()[1:]] == [
        "update",
        "donate",
        "relayout",
    ]
