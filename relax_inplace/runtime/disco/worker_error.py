"""What a worker's failure leaves, on all workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

__all__ = ["WorkerError", "WorkerState", "WorkersInterrupted"]

_LISTED = 4
_FAILED = ("ended", "failed")


@dataclasses.dataclass(frozen=True)
class WorkerState:
    """How a call ended on a worker.

    Attributes
    ----------
    rank : int
    status : str
        ``done``; ``failed``; ``stopped``, since another one has failed; ``ended``: its process has
        gone, and all that it had; ``running``: it was told to stop, and has not yet; ``not asked``.
    kind : str
        The name of the error's class; empty if there was none.
    message : str
        What it says, in one line; of a worker that has ended, how.
    fields : dict of str to str
        Of a structured error.
    converted, original, lost : tuple of str
        Of a conversion that failed or was stopped: the weights whose slots hold the new one, the
        old one, and None.
    """

    rank: int
    status: str
    kind: str = ""
    message: str = ""
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    converted: tuple[str, ...] = ()
    original: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Such as ``worker 0 stopped (converted: 2, original: 1, lost: 0)``."""
        if self.status == "running":
            return f"worker {self.rank} has not stopped yet"
        if not (self.converted or self.original or self.lost):
            return f"worker {self.rank} {self.status}"
        counts = f"converted: {len(self.converted)}, original: {len(self.original)}"
        return f"worker {self.rank} {self.status} ({counts}, lost: {len(self.lost)})"


class _Failure:
    """What a failed call left.

    Attributes
    ----------
    rank : int or None
        The worker that failed; None if it was the caller's ``progress``, or Ctrl-C.
    workers : list of WorkerState
        By rank.
    """

    rank: int | None
    workers: list[WorkerState]

    def _of(self, rank: int | None, workers: Sequence[WorkerState]) -> None:
        self.rank, self.workers = rank, list(workers)


class WorkerError(RuntimeError, _Failure):
    """A call has failed on a worker."""


class WorkersInterrupted(KeyboardInterrupt, _Failure):
    """A call was interrupted by Ctrl-C, and the workers have been stopped."""


def failure_of(
    what: str, workers: Sequence[WorkerState], cause: BaseException | None
) -> WorkerError | WorkersInterrupted:
    """The error that says how a call ended on all workers."""
    # What has ended comes first: the others may have failed because of it.
    failed = sorted((one for one in workers if one.status in _FAILED), key=lambda one: one.status)
    first = None if cause is not None or not failed else failed[0]
    if first is None:
        said = f"{what}: {_one_line(cause)}"
    elif first.status == "ended":
        said = (
            f"{what}: worker {first.rank} of {len(workers)} has ended ({first.message}), and its "
            "weights with it; make a new session, and load them again"
        )
    else:
        said = f"{what}: worker {first.rank} of {len(workers)}: {first.kind}: {first.message}"
    others = [str(one) for one in workers if one is not first and one.status != "not asked"]
    if len(others) > _LISTED:
        others = [*others[:_LISTED], f"{len(others) - _LISTED} more"]
    message = "; ".join([said, *others])
    is_interrupt = isinstance(cause, KeyboardInterrupt)
    error = WorkersInterrupted(message) if is_interrupt else WorkerError(message)
    error._of(None if first is None else first.rank, workers)
    return error


def _one_line(error: BaseException | None) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
