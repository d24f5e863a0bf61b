"""Files that grow record by record and outlive a full disk."""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

_MOST_HELD_BACK = 16 * 2**20  # bytes


class Appender:
    """Appends whole records to a file. Trouble with the disk is told once, the records wait till there is room again.

    No record is ever written in part: what a full disk cut off is taken back. Of more than 16 MB that wait the oldest
    go. The file is opened for each record, so nothing is buffered that a kill could take away.

    Args:
      tell: hears of the trouble, once until it is over; may itself append to this file.
    """

    def __init__(self, file: Path, tell: Callable[[str], None]):
        self.file = file
        self._tell = tell
        self._waiting: deque[bytes] = deque()
        self._in_trouble = False

    def append(self, record: bytes) -> None:
        """Writes what waits, then this."""
        self._waiting.append(record)
        try:
            with open(self.file, "ab", buffering=0) as out:
                while self._waiting:
                    _write_whole(out.fileno(), self._waiting[0])
                    self._waiting.popleft()
        except OSError as error:
            while sum(map(len, self._waiting)) > _MOST_HELD_BACK:
                self._waiting.popleft()
            if not self._in_trouble:
                self._in_trouble = True
                self._tell(f"warning: {self.file} can't be written ({error.strerror or error}); it waits for room")
            return
        self._in_trouble = False


def _write_whole(descriptor: int, record: bytes) -> None:
    """All of it or, by an OSError, nothing."""
    end = os.fstat(descriptor).st_size
    left = memoryview(record)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        os.ftruncate(descriptor, end)
        raise
