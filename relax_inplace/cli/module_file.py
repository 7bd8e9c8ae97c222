"""A MODULE on the command line: a file with TVMScript or JSON, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .messages import Messages, RefusedError

if TYPE_CHECKING:
    from tvm import ir

__all__ = ["read_module"]

STANDARD_INPUT = "-"
_MOST_BYTES = 256 << 20


def read_module(name: str, said: Messages) -> ir.IRModule:
    """Read a module; nothing in it is executed.

    Parameters
    ----------
    name : str
        A path that ends in ``.py`` (TVMScript) or ``.json`` (of ``tvm.ir.save_json``), or ``-``.
    said : Messages

    Raises
    ------
    RefusedError
        The file cannot be read, or what is in it is no module.
    """
    is_input = name == STANDARD_INPUT
    shown = "<stdin>" if is_input else name
    said.module = shown
    ending = Path(name).suffix.lower()
    if not is_input and ending not in (".py", ".json"):
        raise RefusedError(f"{shown}: expected a file that ends in .py (TVMScript) or .json")
    text = _read(name, shown)
    if not text.strip():
        raise RefusedError(f"{shown}: it is empty")
    is_json = text.lstrip().startswith("{") if is_input else ending == ".json"
    with said.tvm_speaks():
        if is_json:
            from .json_file import read_json

            return read_json(text, shown)
        from .script_file import read_script

        return read_script(text, shown)


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
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{shown}: no text: byte {error.start} is not UTF-8") from None
    if "\0" in text:
        raise RefusedError(f"{shown}: no text: it has null characters")
    return text
