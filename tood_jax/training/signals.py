"""Stopping a run in good order on Ctrl-C (SIGINT) or on a scheduler's SIGTERM."""

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets `requested`, and the second raises KeyboardInterrupt.

    The loop asks `requested` after each step, saves and leaves. The former handlers come back at the end. In a thread
    other than the main one Python allows no handlers: then it changes nothing and `requested` stays False.
    """

    def __init__(self, say: Callable[[str], None] = print):
        self.requested = False
        self._say = say
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._former[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            # None stands for a handler that wasn't set by Python and can't be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former.clear()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(RuntimeError):  # struck in the middle of another print; the flag is what counts
            self._say(f"{signal.Signals(number).name}: saving, then stopping; press Ctrl-C again to stop at once")
