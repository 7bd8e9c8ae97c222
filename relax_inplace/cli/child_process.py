"""Continue a command in a child process: its end by a signal becomes an error of one line."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import warnings
from typing import NoReturn

import click

from .messages import Messages, RefusedError

__all__ = ["go_on_in_child"]

_PATIENCE = 5  # seconds that the child has to end, once it is interrupted


def go_on_in_child(crash: str, said: Messages) -> None:
    """Return in a copy of this process; here, wait until that one ends, and end like it.

    Its temporary files are in a folder that goes with it.

    Parameters
    ----------
    crash : str
        What it means if it is ended by a signal.
    said : Messages

    Raises
    ------
    RefusedError
        It was.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    folder = tempfile.mkdtemp(prefix="relax-inplace-")
    with warnings.catch_warnings():
        # Python 3.12 warns of other threads: numpy's, which hold nothing that is needed.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        if not said.is_program:
            said.end = _end_at_once
        # Ctrl-C reaches both; the parent tells the child, so that one of them speaks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        import tvm  # noqa: F401  which sets handlers

        # tvm-ffi's handler of SIGSEGV (src/ffi/backtrace.cc) allocates memory, which may abort:
        # another signal than that of the crash.
        for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE):
            signal.signal(number, signal.SIG_DFL)
        return
    try:
        status = _wait(child)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not os.WIFSIGNALED(status):
        raise click.exceptions.Exit(os.WEXITSTATUS(status))
    name = signal.Signals(os.WTERMSIG(status)).name
    raise RefusedError(f"{crash} ({name})")


def _wait(child: int) -> int:
    """How it ended; KeyboardInterrupt if it had to be killed."""
    try:
        return os.waitpid(child, 0)[1]
    except KeyboardInterrupt:
        pass

    def kill(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    os.kill(child, signal.SIGTERM)
    previous = signal.signal(signal.SIGALRM, kill)
    signal.alarm(_PATIENCE)
    try:
        status = os.waitpid(child, 0)[1]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    if os.WIFSIGNALED(status):
        raise KeyboardInterrupt
    return status


def _end_at_once(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
