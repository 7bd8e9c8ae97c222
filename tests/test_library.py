"""What the shared library needs: tvm-ffi, and what every system has (PEP 600)."""

import re
import shutil
import subprocess
import sys

import pytest

from relax_inplace.libinfo import find_library

SYSTEM = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "libpthread.so.0"}


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("readelf") is None,
    reason="readelf reads Linux's libraries",
)
def test_it_needs_tvm_ffi_and_the_system():
    listed = subprocess.check_output(["readelf", "--dynamic", find_library()], text=True)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", listed))
    assert "libtvm_ffi.so" in needed
    # The dynamic linker's name has the processor's in it.
    rest = {one for one in needed - SYSTEM - {"libtvm_ffi.so"} if not one.startswith("ld-linux")}
    assert not rest


NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}  # of manylinux_2_28


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("readelf") is None,
    reason="readelf reads Linux's libraries",
)
def test_it_runs_on_older_systems():
    """What a newer compiler's headers refer to is in cpp/older_systems.cc: `make wheel` needs it."""
    by = subprocess.check_output(["readelf", "-p", ".comment", find_library()], text=True)
    compilers = [int(major) for major in re.findall(r"GCC: .* (\d+)\.\d+\.\d+", by)]
    if not compilers or max(compilers) > 12:
        pytest.skip("the file was made for GCC up to 12; auditwheel says what others lack")
    needed = subprocess.check_output(["readelf", "--version-info", find_library()], text=True)
    versions = re.findall(r"Name: (GLIBC|GLIBCXX|CXXABI)_([\d.]+)", needed)
    assert versions
    newer = {
        f"{library}_{version}"
        for library, version in versions
        if tuple(map(int, version.split("."))) > NEWEST[library]
    }
    assert not newer
