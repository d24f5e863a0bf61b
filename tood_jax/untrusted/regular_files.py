"""Read files with names from users: only regular files of bounded size, because FIFOs and devices may block forever."""

import errno
import os
import stat
from typing import BinaryIO

MAX_BYTES = 4 << 30
_CHUNK = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularError(OSError):
    """A path is not a regular file, or the file is larger than allowed; `strerror` has the reason."""


def read_regular(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file, without waiting for another process.

    Args:
        path: a local path.
        max_bytes: largest accepted size; a larger file is not read.

    Raises:
        NotRegularError: the path is a folder, FIFO, device or socket, or the file is larger than `max_bytes`.
        OSError: the file can't be read.
    """
    _refuse_other(os.stat(path).st_mode, path)  # checked first, because opening a device can have effects
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        _refuse_other(status.st_mode, path)
        return _read_bounded(file, status.st_size, max_bytes, path)


def file_kind(path: str | os.PathLike[str]) -> str:
    """Return "a folder", "a FIFO", "a device" or "a socket"; "" for a regular file. Raises OSError as `os.stat`."""
    return _kind(os.stat(path).st_mode)


def _kind(mode: int) -> str:
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def _refuse_other(mode: int, path: str | os.PathLike[str]) -> None:
    if kind := _kind(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise NotRegularError(number, f"it is {kind}, not a regular file", os.fspath(path))


def _read_bounded(file: BinaryIO, size: int, max_bytes: int, path: str | os.PathLike[str]) -> bytes:
    """Read to the end; files in /proc have no size, and a file may grow while it is read."""
    too_large = NotRegularError(errno.EFBIG, f"it is larger than {max_bytes:,} bytes", os.fspath(path))
    if size > max_bytes:
        raise too_large
    parts, total = [], 0
    while part := file.read(max(_CHUNK, size - total)):
        total += len(part)
        if total > max_bytes:
            raise too_large
        parts.append(part)
    return b"".join(parts)
