"""Stop a run in good order on Ctrl-C (SIGINT), a scheduler's or cloud's SIGTERM, or SLURM's early SIGUSR1."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from types import FrameType
from typing import Any


class Reason(IntEnum):
    """Reason why a run should stop; of several reasons the largest counts."""

    NONE = 0
    OUT_OF_TIME = 1  # train.max_hours: the run ends, evaluated like any other
    INTERRUPT = 2  # Ctrl-C
    PREEMPTION = 3  # the machine is needed elsewhere: the run should be started again


EXIT_STATUS = {
    Reason.NONE: 0,
    Reason.OUT_OF_TIME: 0,
    Reason.INTERRUPT: 130,  # as shells report Ctrl-C
    Reason.PREEMPTION: 75,  # EX_TEMPFAIL of sysexits.h: "try again later"
}
FOLDER_IN_USE = 73
"""Exit status of a start whose run folder another run holds (EX_CANTCREAT of sysexits.h)."""
TRY_AGAIN = EXIT_STATUS[Reason.PREEMPTION]
_REASONS = {
    signal.SIGINT: Reason.INTERRUPT,
    signal.SIGTERM: Reason.PREEMPTION,
    signal.SIGUSR1: Reason.PREEMPTION,
}


class StatusError(RuntimeError):
    """An expected error that ends a program with its own exit status; the message is for the user."""

    status = 1


class Stopped(Exception):
    """The run was left where nothing remains to be saved.

    Attributes:
        reason: why it should stop.
    """

    def __init__(self, reason: Reason):
        super().__init__(f"stopped on request ({reason.name.lower()})")
        self.reason = reason


def write_to_stderr(text: str) -> None:
    """Write a line, safely in a signal handler and even in the middle of another print."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


_wait_starts: list[float] = []  # when the main thread began to wait for other processes; [] while it does not wait


@contextlib.contextmanager
def waiting_for_others() -> Iterator[None]:
    """Mark that the main thread waits for other processes inside this context."""
    _wait_starts.append(time.monotonic())
    try:
        yield
    finally:
        _wait_starts.pop()


class StopRequest:
    """Context in which the signals above only set `reason`, so that the loop saves and leaves after its step.

    A second Ctrl-C raises KeyboardInterrupt, unless it comes within `patience` seconds of the first (a terminal and a
    launcher may both send it). Other signals never interrupt a save: schedulers repeat them, and end with SIGKILL. The
    former handlers are restored at the end. Outside the main thread Python allows no handlers: then the context changes
    nothing and `reason` stays NONE.

    Args:
        log: called once, when the first signal arrives.
        patience: seconds.
        has_peers: this process may wait for others; `StuckWatch` then ends it after a request if they do not arrive.
    """

    def __init__(self, log: Callable[[str], None] = write_to_stderr, patience: float = 1.0, *, has_peers: bool = False):
        self.reason = Reason.NONE
        self._log = log
        self._patience = patience
        self._interrupted_at: float | None = None
        self._former: dict[int, Any] = {}
        self._watch = StuckWatch(lambda: bool(self.reason)) if has_peers else None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _REASONS:
                self._former[number] = signal.signal(number, self._handle)
            if self._watch is not None:
                self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.stop()
        for number, handler in self._former.items():
            # None stands for a handler that was not set by Python, which cannot restore it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former.clear()

    def check(self) -> None:
        """Raise Stopped if a signal has arrived."""
        if self.reason:
            raise Stopped(self.reason)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at is not None and now - self._interrupted_at >= self._patience:
                raise KeyboardInterrupt
            self._interrupted_at = now if self._interrupted_at is None else self._interrupted_at
        is_first_signal = not self.reason
        self.reason = max(self.reason, _REASONS[signal.Signals(number)])
        if is_first_signal:
            self._log(f"{signal.Signals(number).name}: saving, then stopping; press Ctrl-C again to stop at once")


class StuckWatch:
    """Thread that ends a process which was asked to stop and waits for others that do not arrive.

    Such a process cannot handle a signal: Python's handlers run in the main thread, which hangs in a collective of the
    devices or in the coordinator's store. The thread is notified of signals by Python's wake-up pipe.

    Args:
        is_handled: returns whether the handler of the first signal has run.
        seconds: after two signals, a wait of this length ends the process.
        limit: after one signal, a wait of this length ends the process.
        end: ends the process.
    """

    def __init__(
        self,
        is_handled: Callable[[], bool],
        seconds: float = 30.0,
        limit: float = 300.0,
        end: Callable[[int], object] = os._exit,
    ):
        self._is_handled, self._seconds, self._limit, self._end = is_handled, seconds, limit, end
        self._signalled_at: list[float] = []
        self._pipe = (-1, -1)
        self._former = -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch; to be called from the main thread."""
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._former = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="stuck", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End watching; to be called from the main thread."""
        if self._thread is None:
            return
        signal.set_wakeup_fd(self._former)
        os.close(self._pipe[1])  # ends the thread
        self._thread.join()
        os.close(self._pipe[0])
        self._thread = None

    def _watch(self) -> None:
        while True:
            if select.select([self._pipe[0]], [], [], 0.2)[0]:
                numbers = os.read(self._pipe[0], 64)
                if not numbers:
                    return
                self._signalled_at += [time.monotonic() for number in numbers if number in _REASONS]
            if self._is_stuck():
                write_to_stderr("asked to stop, and the other processes of this run do not come: ended without saving")
                self._end(TRY_AGAIN)
                return

    def _is_stuck(self) -> bool:
        if not self._signalled_at:
            return False
        now, first = time.monotonic(), self._signalled_at[0]
        waiting_since = next(iter(tuple(_wait_starts)), None if self._is_handled() else first)
        if waiting_since is None:
            return False
        is_repeated = len(self._signalled_at) > 1 and self._signalled_at[-1] - first >= 1
        return (is_repeated and now - waiting_since >= self._seconds) or now - max(first, waiting_since) >= self._limit
