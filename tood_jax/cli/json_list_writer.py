"""Write a JSON list row by row; the file is valid JSON after every write."""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class JsonListWriter:
    """Writes rows of a JSON list to `part` as they arrive; `finish` renames it to `path`.

    A process that is killed leaves all rows so far in `part`. On a full disk, the rows before the failed write remain.
    """

    def __init__(self, path: Path, part: Path):
        self.path, self.part = path, part
        self.rows = 0
        part.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._end = 1  # position of the closing bracket
        self._write(0, b"[]")

    def extend(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows. After an OSError the file has the rows from before."""
        lines = [json.dumps(row) for row in rows]
        if not lines:
            return
        text = (",\n" if self.rows else "\n") + ",\n".join(lines)
        data = text.encode()
        try:
            self._write(self._end, data + b"\n]")
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
                self._write(self._end, b"]")
            raise
        self._end += len(data)
        self.rows += len(lines)

    def finish(self) -> None:
        """Rename the complete list to its final path."""
        os.fsync(self._descriptor)
        os.replace(self.part, self.path)

    def close(self) -> None:
        """Close the file; without `finish` the rows remain in `part`."""
        os.close(self._descriptor)

    def _write(self, at: int, data: bytes) -> None:
        remaining = memoryview(data)
        while remaining:
            written = os.pwrite(self._descriptor, remaining, at)
            remaining, at = remaining[written:], at + written
