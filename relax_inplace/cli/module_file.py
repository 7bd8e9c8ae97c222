"""A MODULE on the command line: a ``.py`` file, which is executed, or JSON, which is data."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .child_process import go_on_in_child
from .messages import Messages, RefusedError

if TYPE_CHECKING:
    from tvm import ir

__all__ = ["read_module"]

STANDARD_INPUT = "-"
_MOST_BYTES = 256 << 20
_EXPECTED = "expected model.py, model.py:NAME, or a file of tvm.ir.save_json that ends in .json"


def read_module(name: str, said: Messages) -> ir.IRModule:
    """Read a module.

    Parameters
    ----------
    name : str
        ``FILE.py`` or ``FILE.py:NAME``, which is executed; ``FILE.json``, or ``-`` for JSON on
        standard input.
    said : Messages

    Raises
    ------
    RefusedError
        The file cannot be read, or holds no module.
    """
    script = re.fullmatch(r"(.*\.py)(?::(\w+))?", name, re.IGNORECASE | re.DOTALL)
    if script is not None:
        if said.is_program:
            go_on_in_child(f"{script[1]}: executed, it crashes", said)
        from .python_file import run_file

        return run_file(script[1], script[2], said)
    shown = "<stdin>" if name == STANDARD_INPUT else name
    if name != STANDARD_INPUT and Path(name).suffix.lower() != ".json":
        raise RefusedError(f"{shown}: {_EXPECTED}")
    text = _read(name, shown)
    if not text.strip():
        raise RefusedError(f"{shown}: it is empty")
    if name == STANDARD_INPUT and not text.lstrip().startswith("{"):
        raise RefusedError(f"{shown}: no JSON; TVMScript is executed, and only from a .py file")
    from .json_file import read_json

    return read_json(text, shown, said)


def _read(name: str, shown: str) -> str:
    try:
        if name == STANDARD_INPUT:
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise RefusedError(f"{shown}: {error.strerror}") from None
    except ValueError as error:  # a null character in the name
        raise RefusedError(f"{shown}: {error}") from None
    if len(data) > _MOST_BYTES:
        raise RefusedError(f"{shown}: more than {_MOST_BYTES >> 20} MB, which is no module")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{shown}: no text: byte {error.start} is not UTF-8") from None
