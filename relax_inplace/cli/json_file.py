"""A file that ``tvm.ir.save_json`` wrote, read as a module of IR.

tvm-ffi takes the fields of a node as they come: JSON that has been changed may end the process with
a signal, while it is loaded, looked at or compiled. So all that a command does with such a module
is done in a child process (`child_process.py`).
"""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

from .child_process import go_on_in_child
from .messages import Messages, RefusedError, one_line

if TYPE_CHECKING:
    from tvm import ir

__all__ = ["read_json"]

_SECONDS = 600  # nobody waits longer for a file to be read


def read_json(text: str, file: str, said: Messages) -> ir.IRModule:
    """Read a module, in a child process, which goes on from here.

    Raises
    ------
    RefusedError
        The text is not JSON, not a module, or could run code while it is compiled.
    """
    try:
        given = json.loads(text)
    except RecursionError:
        raise RefusedError(f"{file}: nested too deeply") from None
    except ValueError as error:
        raise RefusedError(f"{file}: no JSON: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("nodes"), list):
        raise RefusedError(f"{file}: JSON, but not of tvm.ir.save_json")
    go_on_in_child(f"{file}: not as tvm.ir.save_json writes it: TVM crashes on it", said)
    signal.alarm(_SECONDS)
    with said.tvm_speaks():
        try:
            mod = _load(given)
        except RefusedError as error:
            raise RefusedError(f"{file}: {error}") from None
        except Exception as error:
            wrong = f"not as tvm.ir.save_json writes it: {one_line(error)}"
            raise RefusedError(f"{file}: {wrong}") from None
    signal.alarm(0)
    return mod


def _load(given: dict[str, object]) -> ir.IRModule:
    """Check, load, and look at all of it."""
    import tvm
    import tvm_ffi
    from tvm import ir, relax

    from .json_check import check_module, check_types

    check_types(given["nodes"])
    mod = tvm.ir.load_json(json.dumps(given))  # what was checked: of two equal keys, the last
    if not isinstance(mod, ir.IRModule):
        raise RefusedError(f"it holds a {type(mod).__name__}, not an IRModule")
    check_module(mod)
    if not relax.analysis.check_well_formed(mod):
        raise RefusedError("the module is not well-formed")
    tvm_ffi.structural_hash(mod)  # visits every field
    return mod
