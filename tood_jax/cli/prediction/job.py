"""The record of a prediction job, from which an interrupted one continues with exactly one row per image.

    OUT/detections.parts/job.json                what the job is, and whether it is complete
    OUT/detections.parts/00000-of-00002.jsonl    rows of the first of two processes, in their order

The images are dealt in chunks, in turn, to the processes, so position and number of processes decide who has an image.
A process appends a row when those of all its images before are written. After a kill it keeps the rows of whole chunks,
and repeats the chunk that was interrupted: each batch then has the same images as in a job that was never interrupted.
"""

import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tood_jax.api.rows import Row, encode_row
from tood_jax.cli.prediction.image_search import PARTS
from tood_jax.config import ConfigError
from tood_jax.data.errors import DataError
from tood_jax.files import write_atomically
from tood_jax.untrusted.bounded_json import JsonError, parse_json
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular

_JOB, _LOCK = "job.json", "lock"
_MAX_JOB_BYTES = 1 << 20
_MAX_LINE_BYTES = 256 << 20


class JobFolder:
    """The folder of the record; the primary process calls all methods but `part`.

    Raises:
        ConfigError: the folder has files, and no record of a job.
    """

    def __init__(self, out: Path):
        self.path = out / PARTS
        self._locked: int | None = None
        if (
            os.path.lexists(self.path)
            and self._record() is None
            and (not self.path.is_dir() or any(not _is_begun(path.name) for path in self.path.iterdir()))
        ):
            raise ConfigError(f"{printable(self.path)} was not written by predict.py: name another --out.")

    def lock(self) -> None:
        """Keep other programs out of the folder until `close`. Raises ConfigError if one uses it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._locked = _open_locked(self.path / _LOCK)

    def close(self) -> None:
        """Release the lock."""
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def begin(self, description: dict[str, Any]) -> None:
        """Begin a job and discard an earlier one.

        Args:
            description: JSON values that must be equal to continue this job.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.remove_parts()
        self._write({"job": description, "is_complete": False})

    def resume(self, description: dict[str, Any]) -> bool:
        """Return whether the job is complete; begin it if there is none.

        Raises:
            ConfigError: the job was begun with another description.
        """
        record = self._record()
        if record is None:
            self.begin(description)
            return False
        former = record["job"]
        changed = [key for key in former.keys() | description.keys() if former.get(key) != description.get(key)]
        if changed:
            differences = ", ".join(
                f"{key} was {printable(former.get(key), 60)} and is {printable(description.get(key), 60)}"
                for key in sorted(changed)
            )
            raise ConfigError(
                f"the job in {printable(self.path.parent)} can't be continued ({differences}): give the options that "
                "it was begun with, or start anew without --resume."
            )
        return record["is_complete"] is True

    def complete(self) -> None:
        """Record that all results are written, and remove the parts."""
        record = self._record()
        if record is not None:
            self._write({**record, "is_complete": True})
        self.remove_parts()

    def part(self, index: int, count: int) -> Path:
        """Return the file for the rows of process `index` of `count`."""
        return self.path / f"{index:05d}-of-{count:05d}.jsonl"

    def remove_parts(self) -> None:
        """Remove the rows and incomplete results."""
        for path in self.path.iterdir():
            if path.name not in (_JOB, _LOCK):
                path.unlink()

    def rows(self, count: int, chunk: int) -> Iterator[Row]:
        """Yield the rows of all processes in the order of the images.

        Args:
            count: number of processes.
            chunk: images of a chunk.
        """
        with ExitStack() as stack:
            files = [stack.enter_context(self.part(index, count).open("rb")) for index in range(count)]
            for file in itertools.cycle(files):
                lines = list(itertools.islice(file, chunk))
                if not lines:
                    return
                yield from (json.loads(line) for line in lines)

    def _record(self) -> dict[str, Any] | None:
        try:
            record = parse_json(read_regular(self.path / _JOB, _MAX_JOB_BYTES), _MAX_JOB_BYTES)
        except (OSError, JsonError):
            return None
        is_record = isinstance(record, dict) and isinstance(record.get("job"), dict) and "is_complete" in record
        return record if is_record else None

    def _write(self, record: dict[str, Any]) -> None:
        write_atomically(self.path / _JOB, json.dumps(record).encode())


class Part:
    """The rows of one process.

    Args:
        path: the file; created if missing.
        chunk: images of a chunk.

    Attributes:
        kept: number of rows of an interrupted job that are kept: those of whole chunks.
    """

    def __init__(self, path: Path, chunk: int):
        self._path = path
        self._descriptor = _open_locked(path)
        self.kept, self._end = _whole_chunks(path, chunk)
        os.ftruncate(self._descriptor, self._end)

    def kept_paths(self) -> Iterator[str]:
        """Yield the path of the image of each row that is kept. Raises DataError if the file is damaged."""
        with self._path.open("rb") as file:
            for line in itertools.islice(file, self.kept):
                try:
                    row = parse_json(line, _MAX_LINE_BYTES)
                except JsonError as error:
                    raise DataError(f"{printable(self._path)} {error}: start anew without --resume.") from None
                yield row["path"]

    def append(self, row: Row) -> None:
        """Write a row. After an OSError the file ends with the row before it."""
        line = encode_row(row)
        remaining = memoryview(line)
        try:
            while remaining:
                remaining = remaining[os.write(self._descriptor, remaining) :]
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(line)

    def close(self) -> None:
        """Close the file after its content is on the disk."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def _is_begun(name: str) -> bool:
    """Return whether a kill can leave a file of this name before there is a record."""
    return name == _LOCK or name.startswith(f".{_JOB}")


def _open_locked(path: Path) -> int:
    """Open a file to append; the system releases the lock when the process ends. Raises ConfigError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"{printable(path.parent)} is in use by another predict.py: wait for it, or name another --out."
        ) from None
    except OSError:  # a file system without locks
        pass
    return descriptor


def _whole_chunks(path: Path, chunk: int) -> tuple[int, int]:
    """Return the number of lines of the whole chunks of a file, and their bytes; a line that a kill cut is no line."""
    lines = end = kept = kept_end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            lines, end = lines + 1, end + len(line)
            if lines % chunk == 0:
                kept, kept_end = lines, end
    return kept, kept_end
