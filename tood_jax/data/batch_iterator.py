"""The iterator over batches, and what it does when a batch does not arrive in time."""

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tood_jax.data.active_reads import ActiveReads
from tood_jax.data.counts import MAX_EXAMPLES, DataCounts
from tood_jax.data.errors import BrokenImageError, DataError, StalledError
from tood_jax.types import Batch

_CLOSING_SECONDS = 5.0  # that workers have to end when one of them hangs


class Traceback(str):
    """The traceback of an unexpected error."""


class BatchIterator:
    """Iterator over this process's rows of the batches; it closes itself at its end and after an error.

    Args:
        source: iterator over (batch, counts), or over error messages: exceptions of worker processes may arrive changed
            or not at all, so errors are passed as text.
        start: step of the first batch.
        length: number of batches.
        timeout_seconds: longest time to wait for a batch; 0 means no limit.
        active_reads: names the readers that hang.
        path_of: returns the path of the image with an index.

    Attributes:
        timeout_seconds: may be changed between two batches, but not from or to 0.
        counts: what was left out in the batches so far.
        waiting_seconds: time spent in `next` so far.
    """

    def __init__(
        self,
        source: Iterator[Any],
        start: int,
        length: int,
        *,
        timeout_seconds: float,
        active_reads: ActiveReads,
        path_of: Callable[[int], object],
    ):
        self._source = source
        self._step = start
        self._end = start + length
        self._active_reads = active_reads
        self._path_of = path_of
        self._thread = _ReaderThread(source) if timeout_seconds else None
        self.timeout_seconds = timeout_seconds
        self.counts = DataCounts()
        self.waiting_seconds = 0.0

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        """Return the next batch. Raises StalledError, BrokenImageError or DataError."""
        if self._step == self._end:
            self.close()
            raise StopIteration
        start = time.perf_counter()
        try:
            element = self._thread.next(self.timeout_seconds) if self._thread else next(self._source)
        except queue.Empty:
            message = self._timeout_message()
            self._kill_and_close()
            raise StalledError(message) from None
        except RuntimeError as error:
            self.close()
            if "terminated unexpectedly" not in str(error):
                raise
            raise DataError(
                f"A data worker process was killed ({error}) Usually the memory ran out: lower data.workers or "
                "data.prefetch_batches."
            ) from None
        self.waiting_seconds += time.perf_counter() - start
        if isinstance(element, str):
            self.close()
            if isinstance(element, Traceback):
                raise RuntimeError(f"Making a batch failed:\n{element}")
            raise BrokenImageError(element)
        self._step += 1
        batch, counts = element
        self.counts.add(counts)
        return batch

    def close(self) -> None:
        """End the threads and worker processes."""
        close = getattr(self._source, "close", None)
        self._source = iter(())  # Grain's iterator would print an error if it lived until the interpreter exits
        self._step = self._end
        if self._thread is not None:
            self._thread.stop()
        if close is not None:
            close()
        self._active_reads.close()

    def _kill_and_close(self) -> None:
        """Kill the workers that hang, and close without waiting long for threads that hang."""
        for read in self._active_reads.current():
            if read.process != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(read.process, signal.SIGKILL)
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(_CLOSING_SECONDS)

    def _timeout_message(self) -> str:
        """Return which batch did not arrive, which image each thread was reading, and what to do."""
        reads = self._active_reads.current()
        text = f"The batch of step {self._step} did not come within {self.timeout_seconds:g} s (data.timeout_seconds): "
        if not reads:
            return (
                f"{text}no thread and no worker is reading an image, so the machine is stopped or overloaded; check "
                "its load, or raise the limit (0 means no limit)."
            )
        named = [
            f"{read.reader()} has been reading {self._path_of(read.image)} for step {read.step} for "
            f"{read.seconds:.0f} s"
            for read in reads[:MAX_EXAMPLES]
        ]
        more = f"; and {len(reads) - MAX_EXAMPLES} more" if len(reads) > MAX_EXAMPLES else ""
        return (
            f"{text}{'; '.join(named)}{more}. Check whether that file can be read at all (the disk or network share "
            "may hang), remove it, or raise the limit (0 means no limit)."
        )


class _ReaderThread:
    """Takes the next element of an iterator in its own thread when asked to, so that waiting for it can time out."""

    def __init__(self, iterator: Iterator[Any]):
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: take the next element; False: end
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        arguments = (iterator, self._requests, self._results)
        threading.Thread(target=_serve_requests, args=arguments, daemon=True, name="batches").start()

    def next(self, timeout_seconds: float) -> Any:
        """Return the next element. Raises what the iterator raises, and queue.Empty after the timeout."""
        self._requests.put(True)
        element, error = self._results.get(timeout=timeout_seconds)
        if error is not None:
            raise error
        return element

    def stop(self) -> None:
        self._requests.put(False)


def _serve_requests(
    iterator: Iterator[Any], requests: "queue.SimpleQueue[bool]", results: "queue.SimpleQueue[Any]"
) -> None:
    while requests.get():
        try:
            results.put((next(iterator), None))
        except BaseException as error:
            results.put((None, error))
            return
