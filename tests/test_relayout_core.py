"""The runtime's mover by itself, for processors and registers that this machine may not have.

``relayout/check_moves.cc`` makes random moves and compares each with loops over bits: it is compiled
with the mover's sources, by cross compilers, too, and run, by an emulator where it has to be.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    ROOT / "cpp" / f"{name}.cc"
    for name in (
        "exchanged_tile",
        "file_move",
        "file_range",
        "in_place_move",
        "out_of_place_move",
        "passes",
        "processors",
        "unit_permutation",
    )
]
# The compiler, what is said to it, and what runs the program.
MACHINES = {
    "registers of 16 bytes": ("g++", ["-DRELAX_INPLACE_WIDEST=16"], None),
    "registers of 32 bytes": ("g++", ["-DRELAX_INPLACE_WIDEST=32"], None),
    "aarch64": ("aarch64-linux-gnu-g++", ["-static"], "qemu-aarch64"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_moves(name, tmp_path):
    compiler, flags, emulator = MACHINES[name]
    for tool in (compiler, emulator):
        if tool is not None and shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    program = tmp_path / "check_moves"
    command = [compiler, "-std=c++17", "-O1", *flags, f"-I{ROOT / 'cpp'}", *SOURCES]
    subprocess.run(
        [*command, ROOT / "tests/relayout/check_moves.cc", "-pthread", "-o", program], check=True
    )
    run = [program, "1", "400"] if emulator is None else [emulator, program, "1", "150"]
    found = subprocess.run(run, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert found.stdout.endswith(" moves\n")
