"""The iterator that hands batches to the step, and what it does if none comes."""

import contextlib
import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tood_jax.data.activity import Activity
from tood_jax.data.errors import BrokenImageError, DataError, StalledError
from tood_jax.types import Batch

_SHOWN = 5  # files named in a sentence
_CLOSING_SECONDS = 5.0  # given to workers to end when one of them hangs


@dataclass
class DataCounts:
    """What the pipeline had to leave out so far."""

    truncated_objects: int = 0
    truncated_images: int = 0
    broken: Counter = field(default_factory=Counter)  # reason → how often

    def add(self, other: "DataCounts") -> None:
        self.truncated_objects += other.truncated_objects
        self.truncated_images += other.truncated_images
        self.broken += other.broken

    def summary(self) -> str:
        """What happened, in a sentence a kind; empty if nothing did."""
        lines = []
        if self.truncated_objects:
            lines.append(
                f"{self.truncated_objects} objects of {self.truncated_images} images exceeded data.max_objects "
                "and were left out; raise it to keep them."
            )
        if self.broken:
            named = "; ".join(list(self.broken)[:_SHOWN])
            lines.append(
                f"{sum(self.broken.values())} readings of {len(self.broken)} broken images were skipped: {named}"
            )
        return " ".join(lines)


class Crash(str):
    """The traceback of an error that nobody foresaw."""


class TimeLimit(NamedTuple):
    """How long a batch may take, and what is said when it took longer."""

    seconds: float  # 0: for ever
    activity: Activity
    path_of: Callable[[int], object]  # where the image of an index lies

    def sentence(self, step: int) -> str:
        """Which batch didn't come, who was reading what, and how to mend it."""
        readings = self.activity.under_way()
        text = f"The batch of step {step} did not come within {self.seconds:g} s (data.timeout_seconds): "
        if not readings:
            return (
                f"{text}no thread and no worker is reading an image, so the machine is stopped or far too busy; look "
                "at its load, or raise the limit (0 waits for ever)."
            )
        told = [
            f"{one.who()} has been reading {self.path_of(one.image)} for step {one.step} for {one.seconds:.0f} s"
            for one in readings[:_SHOWN]
        ]
        more = f"; and {len(readings) - _SHOWN} more" if len(readings) > _SHOWN else ""
        return (
            f"{text}{'; '.join(told)}{more}. Look whether that file can be read at all (a disk or a network share that "
            "hangs), take it out, or raise the limit (0 waits for ever)."
        )


class BatchStream:
    """Iterator over this process's rows of the batches; it closes itself at its end and at an error.

    Attributes:
        counts: what was left out in the batches taken so far.
        waiting_seconds: time spent in `next` so far.
    """

    def __init__(self, iterator: Iterator[Any], start: int, length: int, limit: TimeLimit):
        self._iterator = iterator
        self._next = start
        self._end = start + length
        self._limit = limit
        self._puller = _Puller(iterator) if limit.seconds else None
        self.counts = DataCounts()
        self.waiting_seconds = 0.0

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises StalledError, BrokenImageError or DataError."""
        if self._next == self._end:
            self.close()
            raise StopIteration
        start = time.perf_counter()
        try:
            made = self._puller.take(self._limit.seconds) if self._puller else next(self._iterator)
        except queue.Empty:
            sentence = self._limit.sentence(self._next)
            self._abandon()
            raise StalledError(sentence) from None
        except RuntimeError as error:
            self.close()
            if "terminated unexpectedly" not in str(error):
                raise
            raise DataError(
                f"A data worker process was killed ({error}) Usually the memory ran out: lower data.workers or "
                "data.prefetch_batches."
            ) from None
        self.waiting_seconds += time.perf_counter() - start
        if isinstance(made, str):  # an error, brought here as text: exceptions of workers arrive mangled, or never
            self.close()
            if isinstance(made, Crash):
                raise RuntimeError(f"Making a batch failed:\n{made}")
            raise BrokenImageError(made)
        self._next += 1
        batch, counts = made
        self.counts.add(counts)
        return batch

    def close(self) -> None:
        """Ends the threads and worker processes."""
        close = getattr(self._iterator, "close", None)
        self._iterator = iter(())  # Grain's own, if it lived to the interpreter's end, would complain there
        self._next = self._end
        if self._puller is not None:
            self._puller.stop()
        if close is not None:
            close()
        self._limit.activity.close()

    def _abandon(self) -> None:
        """Close where something hangs: workers that do are killed, and nothing is waited for long."""
        for one in self._limit.activity.under_way():
            if one.process != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(one.process, signal.SIGKILL)
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(_CLOSING_SECONDS)


class _Puller:
    """Takes elements of an iterator in a thread of its own, one at a time when asked, so that waiting can end."""

    def __init__(self, iterator: Iterator[Any]):
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        thread = threading.Thread(target=_pull, args=(iterator, self._asked, self._taken), daemon=True, name="batches")
        thread.start()

    def take(self, seconds: float) -> Any:
        """The next element. Raises what the iterator raises, and queue.Empty after `seconds`."""
        self._asked.put(True)
        element, error = self._taken.get(timeout=seconds)
        if error is not None:
            raise error
        return element

    def stop(self) -> None:
        self._asked.put(False)


def _pull(iterator: Iterator[Any], asked: "queue.SimpleQueue[bool]", taken: "queue.SimpleQueue[Any]") -> None:
    while asked.get():
        try:
            taken.put((next(iterator), None))
        except BaseException as error:
            taken.put((None, error))
            return
