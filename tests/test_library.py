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
