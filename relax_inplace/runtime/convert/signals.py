"""Hold the exceptions of signal handlers while weights are between two owners."""

from __future__ import annotations

import signal
import threading
from typing import Any

__all__ = ["HeldSignals"]


class HeldSignals:
    """Holds the exceptions of signal handlers in this thread, such as Ctrl-C, while the block runs.

    Python runs a handler between any two instructions of the main thread, and its exception leaves
    from there: no ``try`` is tight enough. So each Python handler is replaced by one that calls it
    and catches its exception. The replaced handlers are the only state, so a signal cannot leave it
    half changed.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None  # the first that was held
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python runs no handler there
        self._handlers = {
            number: handler
            for number in signal.valid_signals()
            if callable(handler := signal.getsignal(number))
        }
        try:
            for number in self._handlers:
                signal.signal(number, self._hold)
        except ValueError:  # a subinterpreter: no handler runs there, either
            self._handlers = {}
        except BaseException:
            self._put_back()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._put_back()

    def hold(self, error: BaseException) -> None:
        """Hold an exception, to be raised at the end; of several, the first."""
        if self.error is None:
            # A traceback keeps the variables of the frames in it, weights among them.
            self.error = error.with_traceback(None)

    def _hold(self, number: int, frame: Any) -> None:
        try:
            self._handlers[number](number, frame)
        except BaseException as error:
            self.hold(error)

    def _put_back(self) -> None:
        try:
            for number, handler in self._handlers.items():
                if signal.getsignal(number) == self._hold:  # nobody has changed it meanwhile
                    signal.signal(number, handler)
        except BaseException:  # of a handler that is in its place again
            self._put_back()
            raise
