"""Write a module as text: TVMScript in a Python file, or JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .messages import RefusedError
from .output_file import output_file

if TYPE_CHECKING:
    from tvm import ir

__all__ = ["write_module"]

_FUTURE = "from __future__ import annotations\n\n"  # has to be what a file begins with


def write_module(mod: ir.IRModule, output: str | None, as_json: bool) -> None:
    """Write a module to a file, in the format of its ending, or to standard output."""
    if output is None or output == "-":
        click.echo(_json(mod) if as_json else _script(mod), nl=False)
        return
    ending = Path(output).suffix.lower()
    if ending not in (".py", ".json") or (as_json and ending != ".json"):
        wanted = ".json" if as_json else ".py (TVMScript) or .json"
        raise RefusedError(f"{output}: expected a file that ends in {wanted}")
    text = _json(mod) if ending == ".json" else _script(mod)
    with output_file(output) as file:
        file.write_text(text, encoding="utf-8")


def _json(mod: ir.IRModule) -> str:
    import tvm

    return str(tvm.ir.save_json(mod)) + "\n"


def _script(mod: ir.IRModule) -> str:
    """TVM's text, with the imports that TVM prints as comments, and ``import relax_inplace``."""
    text = mod.script()
    if "metadata[" in text:
        raise RefusedError("the module has constants that TVMScript does not print: use JSON")
    # From Python 3.12 on, where symbolic dimensions are parameters of a function: `f[n](...)`.
    future = _FUTURE if text.startswith(_FUTURE) else ""
    head, _, body = text.removeprefix(future).partition("\n\n")
    imports = re.sub(r"^# (?=from |import )", "", head, flags=re.MULTILINE)
    return f"{future}import relax_inplace\n{imports}\n\n{body}\n"
