"""A logger in a thread of its own, so that a slow or unreachable server never lets the run wait."""

import queue
import threading
import time
from collections.abc import Callable

from tood_jax.run_log.logger import Logger, LoggerStart, Picture

MAX_WAITING = 10_000  # calls
CLOSE_SECONDS = 60.0


class BackgroundLogger:
    """Opens a logger and passes it all calls in a thread.

    An exception in the thread is raised by the next call here.

    Args:
        begin: opens the logger.
        start: what it begins with; lines for the log of the run are written by later calls in this thread.
    """

    def __init__(self, begin: Callable[[LoggerStart], Logger], start: LoggerStart):
        self._calls: queue.Queue[Callable[[Logger], None] | None] = queue.Queue(MAX_WAITING)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._latest: float | None = None  # of the monotonic clock
        self._log = start.log
        arguments = (begin, start._replace(log=self._lines.put))
        self._thread = threading.Thread(target=self._work, args=arguments, name="logger", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the numbers of one step, by tag."""
        self._call(lambda logger: logger.scalars(step, values))

    def picture(self, step: int, tag: str, picture: Picture) -> None:
        """Add a picture of one step."""
        self._call(lambda logger: logger.picture(step, tag, picture))

    def end(self) -> None:
        """Let the logger close after the calls so far, without waiting for it."""
        self._call(None)
        self._latest = time.monotonic() + CLOSE_SECONDS

    def close(self) -> None:
        """Wait for all calls, up to CLOSE_SECONDS after `end`. Raises what the logger raised, and TimeoutError."""
        if self._latest is None:
            self.end()
        assert self._latest is not None
        self._thread.join(max(0.0, self._latest - time.monotonic()))
        if self._thread.is_alive():
            raise TimeoutError(f"it has not taken all numbers after {CLOSE_SECONDS:g} s")
        self._report()

    def _call(self, call: Callable[[Logger], None] | None) -> None:
        self._report()
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            raise TimeoutError(f"it does not take numbers: {MAX_WAITING} calls wait") from None

    def _report(self) -> None:
        while not self._lines.empty():
            self._log(self._lines.get())
        if self._error is not None:
            raise self._error

    def _work(self, begin: Callable[[LoggerStart], Logger], start: LoggerStart) -> None:
        try:
            logger = begin(start)
            while (call := self._calls.get()) is not None:
                call(logger)
            logger.close()
        except Exception as error:
            self._error = error
