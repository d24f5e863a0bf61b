"""A table of the images that are being read now, written by all data threads and workers, to name a read that hangs.

Each thread writes only its own row, so no lock is needed. With worker processes the table is a file that all of them
map into memory, otherwise it is plain memory.
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

from tood_jax.data.temporary_files import owner_prefix

_ROW = struct.Struct("<qqqqd")  # process id (0: no read), thread index, step, image index, start time (seconds)
_worker_index = -1  # of this process; -1 if it is no worker process


class ActiveRead(NamedTuple):
    """An image that is being read and decoded."""

    worker: int  # index of the worker process; -1 for the training process
    process: int  # process id
    thread: int  # index in its process
    step: int
    image: int  # index in the data set
    seconds: float  # since the read began

    def reader(self) -> str:
        """Return the name of the reading thread for messages."""
        process = f"worker {self.worker} (process {self.process})" if self.worker >= 0 else f"process {self.process}"
        return f"thread {self.thread} of {process}"


def set_worker_index(index: int) -> None:
    """Declare this process to be a worker; a worker calls it when it starts."""
    global _worker_index
    _worker_index = index


class ActiveReads:
    """The table; it may be pickled to worker processes.

    Args:
        workers: number of worker processes; 0 if the threads belong to the training process.
        threads: number of threads in each of them.
    """

    def __init__(self, workers: int, threads: int):
        self._rows = max(1, threads)  # per process; without threads the caller reads
        self._path: Path | None = None
        size = max(1, workers) * self._rows * _ROW.size
        if workers:
            number, name = tempfile.mkstemp(prefix=f"{owner_prefix()}active_reads_")
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
        self._thread_indices = itertools.count()
        self._this_thread = threading.local()

    def __getstate__(self) -> tuple[int, Path | None, int]:
        return self._rows, self._path, len(self._table)

    def __setstate__(self, state: tuple[int, Path | None, int]) -> None:
        self._rows, self._path, size = state
        self._open(size)

    @contextlib.contextmanager
    def reading(self, step: int, image: int) -> Iterator[None]:
        """Record that this thread reads an image until the context ends."""
        thread = getattr(self._this_thread, "index", None)
        if thread is None:
            thread = self._this_thread.index = next(self._thread_indices)  # atomic in CPython
        start = (max(0, _worker_index) * self._rows + thread % self._rows) * _ROW.size
        _ROW.pack_into(self._table, start, os.getpid(), thread, step, image, time.monotonic())
        try:
            yield
        finally:
            _ROW.pack_into(self._table, start, 0, 0, 0, 0, 0.0)

    def current(self) -> list[ActiveRead]:
        """Return the reads that are active now, the longest first."""
        now, reads = time.monotonic(), []
        for row, (process, thread, step, image, start) in enumerate(_ROW.iter_unpack(bytes(self._table))):
            if process:
                worker = row // self._rows if self._path is not None else -1
                reads.append(ActiveRead(worker, process, thread, step, image, now - start))
        return sorted(reads, key=lambda read: -read.seconds)

    def close(self) -> None:
        """Remove the file; processes that have mapped it keep their table."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
