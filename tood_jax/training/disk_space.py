"""End a run on a full disk with a sentence and the exit status that means "try again later"."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from tood_jax.distributed.signals import TRY_AGAIN, StatusError

_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXTS = ("No space left on device", "quota exceeded", "File too large")  # of errors that another process raised


class NotSavedError(StatusError):
    """The state at the end of a run could not be written."""

    status = TRY_AGAIN


class FullDiskError(StatusError):
    """The disk is too full for the files of a run."""

    status = TRY_AGAIN


@contextlib.contextmanager
def report_full_disk(folder: Path) -> Iterator[None]:
    """Raise FullDiskError, which names the path, where the block raises an OSError of a full disk.

    Args:
        folder: of the run, named where the error names no file.
    """
    try:
        yield
    except OSError as error:
        if not (error.errno in _ERRORS or any(text in str(error) for text in _TEXTS)):
            raise
        where = "" if error.filename else f", in {folder} or the folder of temporary files"
        raise FullDiskError(f"{error}{where}: make room there; the same command goes on.") from error
