"""Write a file so that it appears whole or not at all."""

import contextlib
import os
import stat
import uuid
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that appears whole or not at all, and create its folder.

    The data go to a temporary file `.NAME.….PID.tmp` in the same folder, which is on the disk before it gets its name.
    Links are followed and the permissions of an existing file stay. A terminal, a pipe or /dev/null is written to.

    Raises:
        OSError: the file cannot be written; the error names `path`. The former file is unchanged.
    """
    try:
        _write(Path(os.path.realpath(path)), data)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # a full disk does not name the file


def _write(target: Path, data: bytes) -> None:
    mode = target.stat().st_mode if target.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        target.write_bytes(data)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:50]}.{uuid.uuid4().hex[:8]}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
