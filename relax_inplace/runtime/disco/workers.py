"""The workers of a session, as the controller sees them: asked, waited for, and stopped.

The controller asks each worker every few milliseconds how far its task is: the worker's own thread
is free to answer, as the task runs in another one (`tasks.py`). So TVM's own messages are all that
is needed, for threads, processes and nodes; progress adds up here; and a worker that has gone is
noticed at the next question, whose answer is the end of a file.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import time
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

from ..progress import Progress, ProgressBar, ProgressOption, progress_bar
from ..transform import ModuleError
from .sessions import ProcessSession, ThreadedSession
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
        """Those of a session.

        Raises
        ------
        TypeError
            It is no session.
        ModuleError
            It is one of TVM's own: a worker that is asked for what it does not know ends, and so
            does the controller.
        """
        kind = type(session).__name__
        if not isinstance(session, disco.Session):
            raise TypeError(f"expected a session of TVM's Disco, but got {kind}")
        if not isinstance(session, (ThreadedSession, ProcessSession)):
            raise ModuleError.of(
                where="relax_inplace.runtime.disco",
                given=f"a {kind} of TVM's",
                expected="one whose workers have the builtins, and which ends before the program",
                remedy=f"make the session with relax_inplace.runtime.disco.{kind}",
            )
        _require_running("relax_inplace.runtime.disco", session)
        handle = int(session.__chandle__())
        found = cls._of_session.get(handle)
        if found is None:
            found = cls._of_session[handle] = cls(session)
        return found

    def __init__(self, session: Any):
        self.session = session
        self.count = int(session.num_workers)
        self._ended: dict[int, str] = {}
        session.import_python_module(f"{__package__}.tasks")
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
        _require_running(what, self.session)
        number = next(_numbers)
        ends: dict[int, dict[str, Any]] = {}
        cause: BaseException | None = None
        has_begun = not self._ended
        with _no_collection():
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
        if not self.session.is_shut_down:
            with contextlib.suppress(Exception):  # a worker may have gone
                self._ask("forget", number)

    def _ask(self, name: str, *args: Any) -> Any:
        return self.session.call_packed(self._functions[name], *args)

    def _answers(self, number: int, ends: dict[int, dict[str, Any]]) -> dict[int, Progress]:
        """How far those workers are that have not ended their task."""
        asked = self._ask("state", number)
        progress: dict[int, Progress] = {}
        for rank in range(self.count):
            if rank in ends or rank in self._ended:
                continue
            try:
                answer = json.loads(str(asked.debug_get_from_remote(rank)))
            except Exception:  # TVM reads an end of a file
                processes = getattr(self.session, "processes", None)
                how = processes and processes.how_it_ended(rank)
                self._ended[rank] = how or "it gives no answer"
                continue
            if answer["progress"] is not None:
                progress[rank] = Progress(**answer["progress"])
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
                latest |= self._answers(number, ends)
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


def _require_running(what: str, session: Any) -> None:
    """TVM would wait for an answer for ever."""
    if session.is_shut_down:
        raise RuntimeError(f"{what}: the session has been shut down; make a new one")


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """While workers run Python in threads of this process, these collect no garbage.

    A `DRef` in it would send a message when it is destroyed, beside another one.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
