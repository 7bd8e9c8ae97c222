"""The workers of a session, as the controller sees them: asked, waited for, and stopped.

The controller asks each worker every few milliseconds how far its task is: the worker's own thread
is free to answer, as the task runs in another one (`tasks.py`). So TVM's own messages are all that
is needed, for threads, processes and nodes; progress adds up here; and a worker that has gone is
noticed at the next question, whose answer is the end of a file.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import weakref
from typing import Any, ClassVar

from ..progress import Progress, ProgressBar, ProgressOption, progress_bar
from ..transform import ModuleError
from .serial_session import SerialSession
from .sessions import SocketSession, ThreadedSession
from .tasks import NAMES
from .tvm_disco import disco
from .worker_error import WorkerState, failure_of

__all__ = ["Kept", "Workers"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05  # seconds between two questions
_PATIENCE = 5.0  # seconds that workers have to stop, once one has failed
_numbers = itertools.count(1)  # of tasks


class Workers:
    """The workers of a session.

    Attributes
    ----------
    session : tvm.runtime.disco.Session
    count : int
    """

    _of_session: ClassVar[weakref.WeakValueDictionary[int, Workers]] = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, session: Any) -> Workers:
        """Those of a session, after a check that they can be asked.

        Raises
        ------
        TypeError
            It is no session.
        ModuleError
            It is one whose workers do not know what they would be asked: asking would end them.
        """
        if not isinstance(session, disco.Session):
            raise TypeError(f"expected a session of TVM's Disco, but got {type(session).__name__}")
        handle = int(session.__chandle__())
        found = cls._of_session.get(handle)
        if found is None:
            found = cls._of_session[handle] = cls(session)
        return found

    def __init__(self, session: Any):
        self.session = session
        self.count = int(session.num_workers)
        self._ended: dict[int, str] = {}
        self._require_ours()
        self._functions = {name: session.get_global_func(full) for name, full in NAMES.items()}

    def run(
        self, what: str, request: dict[str, Any], *inputs: Any, progress: ProgressOption = False
    ) -> tuple[int, list[Any]]:
        """Have each worker do something, and wait.

        Parameters
        ----------
        what : str
            For an error: the function that was called.
        request : dict
            See `tasks.py`.
        inputs
            What Disco can pass on.
        progress : bool or callable, optional

        Returns
        -------
        int
            The number under which the workers keep the result.
        list
            What each of them says of it.

        Raises
        ------
        WorkerError, WorkersInterrupted
        """
        if getattr(self.session, "is_shut_down", False):
            raise RuntimeError(f"{what}: the session has been shut down; make a new one")
        return self.session.lock.run(lambda: self._run(what, request, inputs, progress))

    def _run(
        self,
        what: str,
        request: dict[str, Any],
        inputs: tuple[Any, ...],
        progress: ProgressOption,
    ) -> tuple[int, list[Any]]:
        number = next(_numbers)
        ends: dict[int, dict[str, Any]] = {}
        cause: BaseException | None = None
        has_begun = not self._ended
        try:
            if has_begun:
                self._ask("begin", number, json.dumps(request), *inputs)
                self._wait(number, request["do"], ends, progress)
        except BaseException as error:
            cause = error
        if cause is None and not self._failed(ends):
            return number, [ends[rank]["said"] for rank in range(self.count)]
        if has_begun:
            self._stop(number, ends)
            self.forget(number)
        states = [self._state(rank, ends.get(rank), has_begun) for rank in range(self.count)]
        raise failure_of(what, states, cause) from cause

    def value(self, number: int) -> Any:
        """A DRef of what the workers keep under a number."""
        return self._ask("value", number)

    def forget(self, number: int) -> None:
        """Have the workers drop what they keep under a number, at once or after what they do."""

        def forget() -> None:
            with contextlib.suppress(Exception):  # the session may have ended
                self._ask("forget", number)

        self.session.lock.run_without_wait(forget)

    def _ask(self, name: str, *args: Any) -> Any:
        return self.session.call_packed(self._functions[name], *args)

    def _answers(self, number: int, ends: dict[int, dict[str, Any]]) -> dict[int, Progress | None]:
        """How far those workers are that have not ended their task."""
        asked = self._ask("state", number)
        progress: dict[int, Progress | None] = {}
        for rank in range(self.count):
            if rank in ends or rank in self._ended:
                continue
            try:
                answer = json.loads(str(asked.debug_get_from_remote(rank)))
            except Exception:  # TVM reads an end of a file
                self._ended[rank] = self._how_it_ended(rank)
                continue
            fields = answer["progress"]
            progress[rank] = None if fields is None else Progress(**fields)
            if answer["outcome"] is not None:
                ends[rank] = answer["outcome"]
        return progress

    def _wait(
        self, number: int, doing: str, ends: dict[int, dict[str, Any]], progress: ProgressOption
    ) -> None:
        """Until all have ended their task, or one has failed."""
        latest: dict[int, Progress] = {}
        told = dict.fromkeys(range(self.count), 0)
        pause = _FIRST_PAUSE
        with contextlib.ExitStack() as stack:
            bar: ProgressBar | None = None
            while True:
                found = self._answers(number, ends)
                latest |= {rank: one for rank, one in found.items() if one is not None}
                # How much it is in all is known when each has done its first weight.
                if bar is None and latest and len(latest.keys() | ends.keys()) == self.count:
                    total = sum(one.total for one in latest.values())
                    bar = stack.enter_context(progress_bar(progress, total, doing))
                for rank, one in latest.items():
                    if bar is not None and one.done > told[rank]:
                        bar.update(one.done - told[rank], f"{one.name}, worker {rank}")
                        told[rank] = one.done
                if len(ends) == self.count or self._failed(ends):
                    return
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _failed(self, ends: dict[int, dict[str, Any]]) -> bool:
        return bool(self._ended) or any("error" in end for end in ends.values())

    def _stop(self, number: int, ends: dict[int, dict[str, Any]]) -> None:
        """Stop those that are still at it, at their next weight."""
        give_up = time.monotonic() + _PATIENCE
        with contextlib.suppress(Exception):
            self._ask("stop", number)
            while len(ends.keys() | self._ended.keys()) < self.count:
                self._answers(number, ends)
                if time.monotonic() > give_up:
                    return
                time.sleep(_FIRST_PAUSE)

    def _state(self, rank: int, end: dict[str, Any] | None, has_begun: bool) -> WorkerState:
        if rank in self._ended:
            return WorkerState(rank, "ended", message=self._ended[rank])
        if not has_begun:
            return WorkerState(rank, "not asked")
        if end is None:
            return WorkerState(rank, "running")
        if "error" not in end:
            return WorkerState(rank, "done")
        error, slots = end["error"], end.get("slots") or {}
        return WorkerState(
            rank,
            "stopped" if error["is_stop"] else "failed",
            "" if error["is_stop"] else error["kind"],
            error["message"],
            error["fields"],
            **{state: tuple(names) for state, names in slots.items()},
        )

    def _how_it_ended(self, rank: int) -> str:
        session, node = self.session, 0
        if isinstance(session, ThreadedSession):
            return "it gives no answer"
        if isinstance(session, SocketSession):
            node, rank = divmod(rank, session.num_workers_per_node)
        if node:
            return f"node {node} does not answer for it"
        return session.processes.how_it_ended(rank) or "its pipe is closed"

    def _require_ours(self) -> None:
        session = self.session
        if isinstance(session, SerialSession):
            return
        kind = type(session).__name__
        raise ModuleError.of(
            where="relax_inplace.runtime.disco",
            given=f"a {kind} of TVM's, for one thread alone; its processes lack the builtins",
            expected="one that is safe where workers are threads, and has the builtins",
            remedy=f"make the session with relax_inplace.runtime.disco.{kind}",
        )


class Kept:
    """What each worker keeps under a number, until this object is gone.

    Attributes
    ----------
    workers : Workers
    number : int
    """

    def __init__(self, workers: Workers, number: int):
        self.workers = workers
        self.number = number
        # Not when the program ends: a worker that is a thread of it could not run Python any more.
        weakref.finalize(self, workers.forget, number).atexit = False

    @property
    def session(self) -> Any:
        """The session whose workers they are."""
        return self.workers.session
