"""Append entries to a file, through a full disk."""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

_MAX_PENDING = 16 * 2**20  # bytes


class Appender:
    """Appends whole entries to a file; while the disk is full they stay pending in memory.

    No entry is ever written in part: what a full disk cut off is removed. Of more than 16 MB of pending entries the
    oldest are dropped. The file is opened for each entry, so a kill loses nothing that was written.

    Args:
        log: called with a warning when writing fails, once until it succeeds; it may append to this file.
    """

    def __init__(self, file: Path, log: Callable[[str], None]):
        self.file = file
        self._log = log
        self._pending: deque[bytes] = deque()
        self._is_failing = False

    def append(self, entry: bytes) -> None:
        """Write the pending entries, then this one."""
        self._pending.append(entry)
        try:
            with open(self.file, "ab", buffering=0) as out:
                while self._pending:
                    _write_whole(out.fileno(), self._pending[0])
                    self._pending.popleft()
        except OSError as error:
            while sum(map(len, self._pending)) > _MAX_PENDING:
                self._pending.popleft()
            if not self._is_failing:
                self._is_failing = True
                self._log(f"warning: {self.file} can't be written ({error.strerror or error}); it waits for room")
            return
        self._is_failing = False


def _write_whole(descriptor: int, entry: bytes) -> None:
    """Write all of the entry or, with an OSError, nothing."""
    end = os.fstat(descriptor).st_size
    remaining = memoryview(entry)
    try:
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
    except OSError:
        os.ftruncate(descriptor, end)
        raise
