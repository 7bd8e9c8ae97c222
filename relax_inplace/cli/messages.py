"""Standard error of the command line: one line for each error, warning and note.

TVM speaks in many lines: a diagnostic with the source, a check with a backtrace, warnings of its
C++ that go to file descriptor 2. They are condensed here, or kept away.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

import click

from .option_names import in_options

__all__ = ["Messages", "RefusedError", "condensed", "escaped", "one_line"]

_LONGEST = 600


class RefusedError(Exception):
    """A file, or its content, cannot be used. The message is one line, for a person."""


class Messages:
    """The messages of a command: everything but its result.

    Attributes
    ----------
    quiet : bool
        Errors only.
    debug : bool
        A traceback instead of the line of an error; TVM's own warnings stay.
    end : callable
        Ends the process, with an exit code.
    is_program : bool
        Whether the process is the command's own.
    """

    def __init__(self) -> None:
        self.quiet = False
        self.debug = False
        self.is_program = False
        self.end: Callable[[int], NoReturn] = sys.exit

    def error(self, text: str) -> None:
        """Say why the command fails."""
        self._say(f"error: {text}")

    def note(self, text: str) -> None:
        """Say something that a person may want to know."""
        if not self.quiet:
            self._say(text)

    def progress(self, text: str) -> None:
        """Say that something takes a while, on a terminal only."""
        if sys.stderr.isatty():
            self.note(text)

    @contextlib.contextmanager
    def tvm_speaks(self) -> Iterator[None]:
        """Print Python's warnings as lines, and drop the output of C++ on stderr."""
        if self.debug:
            yield
            return
        try:
            with warnings.catch_warnings(record=True) as caught, _stderr_elsewhere():
                warnings.simplefilter("always", UserWarning)
                try:
                    yield
                except BaseException as error:
                    _forget_variables(error)
                    raise
        finally:
            for warning in caught:
                if issubclass(warning.category, UserWarning):
                    self.note(f"warning: {condensed(in_options(str(warning.message)))}")

    def _say(self, text: str) -> None:
        click.echo(f"relax-inplace: {escaped(text)}", err=True)


def escaped(text: str) -> str:
    """A text as one line, with control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """An error of ours, of TVM or of Python, as one line."""
    if isinstance(error, RefusedError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return str(error) or "out of memory"
    if isinstance(error, RecursionError):
        return "the module is nested too deeply"
    text = condensed(in_options(str(error)))
    # An error of ours, or of TVM's, explains itself; one of Python's own is no sentence.
    explains = isinstance(error, (ValueError, RuntimeError, ImportError, OSError)) and text
    return text if explains else f"{type(error).__name__}: {text}".rstrip(": ")


def condensed(text: str) -> str:
    """A text of many lines as one, without places in TVM's code, and not too long."""
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("# ", "File ", "Traceback"))]
    joined = re.sub(r"\s+", " ", " ".join(kept))
    return joined if len(joined) <= _LONGEST else joined[: _LONGEST - 3] + "..."


def _forget_variables(error: BaseException | None) -> None:
    """Free the variables in the frames of an error, while TVM's output is dropped.

    An unfinished BlockBuilder warns when it is freed (src/relax/ir/block_builder.cc).
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


@contextlib.contextmanager
def _stderr_elsewhere() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as elsewhere:
            os.dup2(elsewhere.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(kept, 2)
    finally:
        os.close(kept)
