"""Errors of a full or failing disk, which training survives, and errors that all processes raise together."""

import contextlib
import re
from collections.abc import Iterator

from tood_jax.distributed.host_sync import gather_json

_DISK_ERRORS = ("No space left on device", "quota exceeded", "File too large", "RESOURCE_EXHAUSTED")


def is_disk_error(error: BaseException) -> bool:
    """Return whether it is an OSError, also where TensorStore wraps it in a ValueError, or as the cause of another."""
    if isinstance(error, OSError) or any(text in str(error) for text in _DISK_ERRORS):
        return True
    return error.__cause__ is not None and is_disk_error(error.__cause__)


def describe_disk_error(error: BaseException) -> str:
    """Return the reason in a few words, with the process that it comes from."""
    text = str(error).strip() or type(error).__name__
    process = "".join(re.findall(r"^in process \d+: ", text))
    first_line = text.removeprefix(process).splitlines()[0][:300]
    return process + next((known for known in _DISK_ERRORS if known in text), first_line)


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Let the block fail in all processes if it fails in one, with the error of the first that failed."""
    error: Exception | None = None
    try:
        yield
    except Exception as own:
        error = own
    failures = gather_json(None if error is None else [str(error) or type(error).__name__, is_disk_error(error)])
    if error is not None:
        raise error
    for process, failure in enumerate(failures):
        if failure is not None:
            text, is_of_disk = failure
            raise (OSError if is_of_disk else RuntimeError)(f"in process {process}: {text}")
