"""The progress of a load, a conversion or a save."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm

from .shown import shown

__all__ = ["Progress", "ProgressBar", "ProgressOption", "progress_bar"]


@dataclasses.dataclass(frozen=True)
class Progress:
    """The argument of a ``progress`` callable.

    Attributes
    ----------
    done : int
        Bytes so far.
    total : int
        Bytes in all.
    name : str
        The name of the last weight.
    """

    done: int
    total: int
    name: str


ProgressOption = bool | Callable[[Progress], object] | None


class ProgressBar(Protocol):
    """A receiver of progress."""

    def update(self, nbytes: int, name: str) -> None:
        """A weight of so many bytes is done."""


@contextmanager
def progress_bar(progress: ProgressOption, total: int, what: str) -> Iterator[ProgressBar]:
    """Show progress, or tell a callable.

    Parameters
    ----------
    progress : bool or callable, optional
        None: a bar if stderr is a terminal. True: a bar. False: nothing. A callable is called
        with a :class:`Progress`.
    total : int
        Bytes.
    what : str
        The label of the bar.
    """
    if callable(progress):
        yield _Told(progress, total)
        return
    shown = _is_terminal() if progress is None else progress
    if not shown:
        yield _Nothing()  # tqdm makes locks between processes also for a bar that it does not show
        return
    with tqdm(
        total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1000, file=sys.stderr
    ) as bar:
        yield _Shown(bar)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


class _Nothing:
    def update(self, nbytes: int, name: str) -> None:
        pass


class _Told:
    def __init__(self, tell: Callable[[Progress], object], total: int):
        self._tell = tell
        self._done = 0
        self._total = total

    def update(self, nbytes: int, name: str) -> None:
        self._done += nbytes
        self._tell(Progress(self._done, self._total, name))


class _Shown:
    def __init__(self, bar: tqdm):
        self._bar = bar

    def update(self, nbytes: int, name: str) -> None:
        self._bar.set_postfix_str(
            name if name.isprintable() and len(name) <= 80 else shown(name), refresh=False
        )
        self._bar.update(nbytes)
