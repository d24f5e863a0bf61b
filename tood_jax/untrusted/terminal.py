"""Print text on standard output and standard error, whatever its characters and whatever the state of the terminal."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from tood_jax.untrusted.printable import printable_lines


def print_line(text: object, stream: TextIO | None = None) -> bool:
    """Print lines at once; characters that the stream's encoding lacks become "?".

    A stream that is missing, closed, full or has no reader left (`| head`) is no error.

    Args:
        text: one or several lines; control characters are escaped.
        stream: standard output if None.

    Returns:
        Whether the stream took the text.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None:  # a program without a console
        return False
    try:
        stream.write(encodable(printable_lines(text), stream) + "\n")
        stream.flush()
    except BrokenPipeError:
        _discard_rest(stream)
        return False
    except (OSError, ValueError):  # full disk, lost terminal; closed file
        return False
    return True


def print_warning(text: object) -> bool:
    """Print a line on standard error, as `print_line` does."""
    return sys.stderr is not None and print_line(text, sys.stderr)


def encodable(text: str, stream: Any) -> str:
    """Return the text with "?" in place of characters that the encoding of `stream` does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        return text.encode(encoding, "replace").decode(encoding)
    except LookupError:  # an encoding that Python does not know
        return text.encode("ascii", "replace").decode("ascii")


def prepare_streams() -> None:
    """Make `print`, progress bars and help texts of other libraries as safe as `print_line`.

    Missing streams are replaced by the null device, and encodings replace what they lack instead of raising.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  open until the program ends
        elif hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="replace")


@contextlib.contextmanager
def end_quietly_when_closed() -> Iterator[None]:
    """End the program without an error if a library prints (help, for example) to a reader that has left (`| head`)."""
    try:
        yield
    except BrokenPipeError:
        _discard_rest(sys.stdout)
        raise SystemExit(0) from None
    except SystemExit:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            _discard_rest(sys.stdout)
        raise


def _discard_rest(stream: TextIO) -> None:
    """Redirect further output to the null device, so that the last flush of the interpreter succeeds too."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
