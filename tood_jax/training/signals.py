"""Stopping a run in good order: on Ctrl-C (SIGINT), a scheduler's or cloud's SIGTERM, SLURM's early SIGUSR1."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from types import FrameType
from typing import Any


class Reason(IntEnum):
    """Why a run should stop; of several reasons the largest counts."""

    NONE = 0
    INTERRUPT = 1  # somebody pressed Ctrl-C and means it
    PREEMPTION = 2  # the machine is wanted elsewhere: the run should go on as soon as it can


EXIT_STATUS = {
    Reason.NONE: 0,
    Reason.INTERRUPT: 130,  # as shells have it for Ctrl-C
    Reason.PREEMPTION: 75,  # EX_TEMPFAIL of sysexits.h: "try again later"
}
_REASONS = {
    signal.SIGINT: Reason.INTERRUPT,
    signal.SIGTERM: Reason.PREEMPTION,
    signal.SIGUSR1: Reason.PREEMPTION,
}


class Stopped(Exception):
    """Left at a point where nothing remains to be saved; `reason` says why."""

    def __init__(self, reason: Reason):
        super().__init__(f"stopped on request ({reason.name.lower()})")
        self.reason = reason


def write_to_stderr(text: str) -> None:
    """Safe in a signal handler, even in the middle of another print."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


class StopRequest:
    """Context in which the signals above only set `reason`, so that the loop saves and leaves after its step.

    A second Ctrl-C raises KeyboardInterrupt; one that comes within `patience` seconds of the first is taken for the
    same (a terminal and a launcher both pass it on). Other signals never cut a save short: schedulers repeat them, and
    end with SIGKILL. The former handlers come back at the end. In a thread other than the main one Python allows no
    handlers: then it changes nothing and `reason` stays NONE.
    """

    def __init__(self, say: Callable[[str], None] = write_to_stderr, patience: float = 1.0):
        self.reason = Reason.NONE
        self._say = say
        self._patience = patience
        self._interrupted_at: float | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _REASONS:
                self._former[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            # None stands for a handler that wasn't set by Python and can't be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former.clear()

    def check(self) -> None:
        """Raises Stopped if a stop was asked for."""
        if self.reason:
            raise Stopped(self.reason)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at is not None and now - self._interrupted_at >= self._patience:
                raise KeyboardInterrupt
            self._interrupted_at = now if self._interrupted_at is None else self._interrupted_at
        is_first = not self.reason
        self.reason = max(self.reason, _REASONS[signal.Signals(number)])
        if is_first:
            self._say(f"{signal.Signals(number).name}: saving, then stopping; press Ctrl-C again to stop at once")
