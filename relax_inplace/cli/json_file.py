"""A file that ``tvm.ir.save_json`` wrote, read as a module of IR.

tvm-ffi takes the fields of a node as they come: JSON that is no module, or that has been changed,
ends the process with a signal, while it is loaded or when the module is looked at first. So that
is done in a child process before it is done here.
"""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import ir, relax

from .messages import RefusedError, one_line

__all__ = ["read_json"]

_SECONDS = 600  # nobody waits longer for a file to be read
_REFUSED = 3
_WRONG = "not as tvm.ir.save_json writes it"


def read_json(text: str, file: str) -> ir.IRModule:
    """Read a module.

    Raises
    ------
    RefusedError
        It is no JSON, or no module, or one that would crash TVM.
    """
    try:
        given = json.loads(text)
    except RecursionError:
        raise RefusedError(f"{file}: nested too deeply") from None
    except ValueError as error:
        raise RefusedError(f"{file}: no JSON: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("nodes"), list):
        raise RefusedError(f"{file}: JSON, but not of tvm.ir.save_json")
    del given
    reason = _in_child(lambda: _load(text))
    if reason is not None:
        raise RefusedError(f"{file}: {reason}")
    return _load(text)


def _load(text: str) -> ir.IRModule:
    """Load a module, and look at all of it."""
    mod = tvm.ir.load_json(text)
    if not isinstance(mod, ir.IRModule):
        raise RefusedError(f"it holds a {type(mod).__name__}, not an IRModule")
    if not relax.analysis.check_well_formed(mod):
        raise RefusedError("the module is not well-formed")
    tvm_ffi.structural_hash(mod)  # visits every field
    return mod


def _in_child(work: Callable[[], object]) -> str | None:
    """Do something in a copy of this process; why it failed, or None."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of other threads: numpy's, which hold nothing that is needed.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            # tvm-ffi's handler of SIGSEGV (src/ffi/backtrace.cc) allocates memory, which may
            # abort: another signal than that of the crash.
            for number in (signal.SIGINT, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
                signal.signal(number, signal.SIG_DFL)
            signal.alarm(_SECONDS)
            work()
            code = 0
        except BaseException as error:
            wrong = "" if isinstance(error, RefusedError) else f"{_WRONG}: "
            os.write(write, f"{wrong}{one_line(error)}".encode()[:4096])
            code = _REFUSED
        finally:
            os._exit(code)
    os.close(write)
    try:
        with open(read, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) == signal.SIGINT:
            raise KeyboardInterrupt
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"{_WRONG}: TVM crashes on it ({name})"
    return said if status else None
