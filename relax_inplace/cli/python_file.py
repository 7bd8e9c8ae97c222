"""A ``.py`` file, executed as Python would import it, and the module of IR that it makes.

NAME is a module in the file, or a function without arguments that returns one. Without a NAME, the
module is the only one in the file. A tuple that begins with a module, such as the result of
``nn.Module.export_tvm``, stands for that module.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tvm import ir
from tvm.error import DiagnosticError

from .messages import Messages, RefusedError, condensed

__all__ = ["run_file"]

# As a program would: `__main__` is the command line's own.
_MODULE_NAME = "__relax_inplace_file__"


def run_file(file: str, name: str | None, said: Messages) -> ir.IRModule:
    """Execute a file, and find its module.

    Parameters
    ----------
    file : str
    name : str or None
        Of a module, or of a function that returns one.
    said : Messages

    Raises
    ------
    RefusedError
        The file cannot be read, raises an exception (with its place), or has no such module.
    """
    try:
        with open(file, "rb"):
            pass
    except (OSError, ValueError) as error:
        raise RefusedError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    with _in_the_file(file, said):
        names = _executed(file)
    if name is None:
        return _only_module(file, names)
    if name not in names:
        raise RefusedError(f"{file}: no `{name}` in it; {_candidates(file, names)}")
    found = names[name]
    if _module_in(found) is None and callable(found):
        with _in_the_file(file, said):
            found = found()
    module = _module_in(found)
    if module is None:
        kind = type(found).__name__
        raise RefusedError(f"{file}: `{name}` is or returns a {kind}, expected an IRModule")
    return module


def _executed(file: str) -> dict[str, Any]:
    """Execute the file, and return its names. It can import files beside it."""
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module  # where inspect looks for the source of a class
    sys.path.insert(0, str(Path(file).resolve().parent))
    spec.loader.exec_module(module)
    return vars(module)


def _module_in(value: Any) -> ir.IRModule | None:
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, ir.IRModule) else None


def _only_module(file: str, names: dict[str, Any]) -> ir.IRModule:
    found = {name: _module_in(value) for name, value in names.items()}
    modules = [module for module in found.values() if module is not None]
    if not modules or any(not module.same_as(modules[0]) for module in modules):
        count = "no module" if not modules else "several modules"
        raise RefusedError(f"{file}: {count} among its names; {_candidates(file, names)}")
    return modules[0]


def _candidates(file: str, names: dict[str, Any]) -> str:
    able = [name for name, value in names.items() if _module_in(value) or _is_factory(value)]
    if not able:
        return "expected an IRModule, or a function without arguments that returns one"
    return f"name one of {', '.join(able)}: {file}:{able[0]}"


def _is_factory(value: Any) -> bool:
    """Whether a value is a function of the file that needs no arguments."""
    return (
        inspect.isfunction(value)
        and value.__module__ == _MODULE_NAME
        and all(
            one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            for one in inspect.signature(value).parameters.values()
        )
    )


@contextlib.contextmanager
def _in_the_file(file: str, said: Messages) -> Iterator[None]:
    """Send the file's output to standard error; make its errors ``FILE:LINE: why``."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        with contextlib.suppress(BaseException), said.tvm_speaks():
            raise  # so that what TVM says to it is kept away
        raise RefusedError(_place_and_reason(file, error)) from error


def _place_and_reason(file: str, error: BaseException) -> str:
    path = str(Path(file).absolute())
    if isinstance(error, DiagnosticError):  # as tvm/script/parser/core/diagnostics.py renders it
        match = re.fullmatch(r"error: (.*?)\n --> (.*?:\d+:\d+)\n.*", str(error), re.DOTALL)
        if match is not None:
            lines = [one for one in match[1].splitlines() if one and not one.startswith("# ")]
            return f"{match[2].replace(path, file)}: {' '.join(' '.join(lines).split())}"
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename.replace(path, file)}:{error.lineno}:{error.offset}: {error.msg}"
    if isinstance(error, SystemExit):
        reason = f"it ends the program ({error.code})"
    elif isinstance(error, RecursionError):
        reason = "nested too deeply"
    else:
        reason = f"{type(error).__name__}: {condensed(str(error))}".rstrip(": ")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in (file, path):
            return f"{file}:{frame.lineno}: {reason}"
    return f"{file}: {reason}"
