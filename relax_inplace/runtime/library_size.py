"""How many bytes a shared library has to have.

The dynamic linker maps what the headers name without asking whether the file is that long: reading
behind its end is SIGBUS, which ends the process. A copy that was interrupted is such a file.
"""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["expected_bytes"]

_PT_LOAD = 1
_HEADER = 64  # of an ELF file of 64 bits; one of 32 bits has 52, and more follows
_PROGRAM = {1: 32, 2: 56}
# By class: where both tables begin, the sizes and counts of their entries, and in a program header
# where its bytes are in the file, and how many.
_FIELDS = {
    1: {"tables": (28, "II"), "counts": (42, "HHHH"), "offset": (4, "I"), "bytes": (16, "I")},
    2: {"tables": (32, "QQ"), "counts": (54, "HHHH"), "offset": (8, "Q"), "bytes": (32, "Q")},
}


def expected_bytes(path: Path) -> int | None:
    """How long an ELF file is by its headers; None if it has none (System V ABI, chapter 4).

    Raises
    ------
    OSError
        It cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER)
        if len(header) < 6 or header[:4] != b"\x7fELF" or header[4] not in _FIELDS:
            return None
        if len(header) < _HEADER:
            return _HEADER
        bits, order = header[4], ">" if header[5] == 2 else "<"

        def fields(data: bytes, name: str) -> tuple[int, ...]:
            at, form = _FIELDS[bits][name]
            return struct.unpack_from(order + form, data, at)

        programs, sections = fields(header, "tables")
        program_bytes, program_count, section_bytes, section_count = fields(header, "counts")
        ends = [programs + program_bytes * program_count, sections + section_bytes * section_count]
        if max(ends) > path.stat().st_size:
            return max(ends)
        file.seek(programs)
        for _ in range(program_count):
            program = file.read(program_bytes)
            if len(program) < _PROGRAM[bits]:
                break  # a table of something else
            if struct.unpack_from(order + "I", program)[0] == _PT_LOAD:
                (offset,), (count,) = fields(program, "offset"), fields(program, "bytes")
                ends.append(offset + count)
    return max(ends)
