"""Who is reading which image: a small table that all data threads and worker processes write, to name one that hangs.

Each thread has a row of its own, so that nothing is locked. With worker processes the table is a file that all of them
map; without, plain memory.
"""

import contextlib
import itertools
import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROW = struct.Struct("<qqqqd")  # process id (0: nothing under way), thread of the process, step, image, since (seconds)
_worker = -1  # index of this worker process; -1 in the process that trains


class Reading(NamedTuple):
    """An image that is being read and decoded."""

    worker: int  # index of the worker process; -1: in the process that trains
    process: int  # its id
    thread: int  # of that process, counted from 0
    step: int
    image: int  # its index in the set
    seconds: float  # since it began

    def who(self) -> str:
        """Names the reader in messages."""
        process = f"worker {self.worker} (process {self.process})" if self.worker >= 0 else f"process {self.process}"
        return f"thread {self.thread} of {process}"


def set_worker(index: int) -> None:
    """Told to a worker process when it begins."""
    global _worker
    _worker = index


class Activity:
    """The table.

    Args:
        workers: worker processes; 0 if the threads belong to the process that trains.
        threads: in each of them.
    """

    def __init__(self, workers: int, threads: int):
        self._rows = max(1, threads)  # of a process; with 0 threads the reader is the caller
        self._path: Path | None = None
        size = max(1, workers) * self._rows * _ROW.size
        if workers:
            number, name = tempfile.mkstemp(prefix="tood_jax_activity_")
            with open(number, "wb") as file:
                file.write(bytes(size))
            self._path = Path(name)
        self._open(size)

    def _open(self, size: int) -> None:
        if self._path is None:
            self._table: bytearray | mmap.mmap = bytearray(size)
        else:
            with self._path.open("r+b") as file:
                self._table = mmap.mmap(file.fileno(), 0)
        self._numbers = itertools.count()
        self._own = threading.local()

    def __getstate__(self) -> tuple[int, Path | None, int]:
        return self._rows, self._path, len(self._table)

    def __setstate__(self, state: tuple[int, Path | None, int]) -> None:
        self._rows, self._path, size = state
        self._open(size)

    @contextlib.contextmanager
    def reading(self, step: int, image: int) -> Iterator[None]:
        """Note that this thread reads an image meanwhile."""
        thread = getattr(self._own, "number", None)
        if thread is None:
            thread = self._own.number = next(self._numbers)  # atomic in CPython
        start = (max(0, _worker) * self._rows + thread % self._rows) * _ROW.size
        _ROW.pack_into(self._table, start, os.getpid(), thread, step, image, time.monotonic())
        try:
            yield
        finally:
            _ROW.pack_into(self._table, start, 0, 0, 0, 0, 0.0)

    def under_way(self) -> list[Reading]:
        """What is being read now, the longest first."""
        now, found = time.monotonic(), []
        for row, (process, thread, step, image, since) in enumerate(_ROW.iter_unpack(bytes(self._table))):
            if process:
                worker = row // self._rows if self._path is not None else -1
                found.append(Reading(worker, process, thread, step, image, now - since))
        return sorted(found, key=lambda one: -one.seconds)

    def close(self) -> None:
        """Remove the file; the table stays until its processes end."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
