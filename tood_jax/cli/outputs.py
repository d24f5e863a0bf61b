"""Checks that outputs replace neither inputs nor files of other origin, and atomic writes.

Programs call these checks before they load anything.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tood_jax.config import ConfigError
from tood_jax.untrusted.printable import printable

IsOwnFormat = Callable[[bytes], bool]  # whether a file that starts with these bytes has the format of the output
_START_BYTES = 1 << 16


def check_output_file(
    option: str, path: str | Path, is_own_format: IsOwnFormat | None, inputs: Iterable[str | Path] = ()
) -> None:
    """Refuse an output file that would replace an input or a file that the program did not write.

    Args:
        option: name of the path in messages, such as --out.
        path: the file to write; links are followed.
        is_own_format: decides by the first bytes of an existing file whether it may be replaced; None allows any.
        inputs: files and folders that the program reads; those that do not exist are ignored.

    Raises:
        ConfigError: the file must not be written.
    """
    if not os.fspath(path):
        raise ConfigError(f"{option} is empty: name a file.")
    for source in inputs:
        if is_same_file(path, source):
            raise ConfigError(
                f"{option}={printable(path)} would replace the input {printable(source)}: name another file."
            )
    if os.path.isdir(path):
        raise ConfigError(f"{option}={printable(path)} is a folder: name a file in it.")
    if not os.path.isfile(path) or os.path.getsize(path) == 0:  # none, or a terminal, pipe or /dev/null
        return
    if is_own_format is not None and not is_own_format(_start_of(path)):
        raise ConfigError(
            f"{option}={printable(path)} exists and was not written by this program: name another file, or remove it."
        )


def check_output_folder(option: str, path: str | Path) -> None:
    """Refuse an output folder without a name, and one that is a file. Raises ConfigError."""
    if not os.fspath(path):
        raise ConfigError(f"{option} is empty: name a folder.")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise ConfigError(f"{option}={printable(path)} is not a folder: name another one.")


def is_same_file(first: str | Path, second: str | Path) -> bool:
    """Return whether two paths are the same file or folder, also through links; False if one does not exist."""
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False


def is_results_file(start: bytes) -> bool:
    """Return whether a file starts like COCO results: a list of detections."""
    text = start.lstrip()
    return text.startswith(b"[") and (text[1:].lstrip()[:1] == b"]" or (b'"image_id"' in text and b'"score"' in text))


def starts_with_keys(*keys: str) -> IsOwnFormat:
    """Return a check for JSON objects that have these keys first, in this order."""

    def is_own_format(start: bytes) -> bool:
        positions = [start.find(f'"{key}"'.encode()) for key in keys]
        return start.lstrip().startswith(b"{") and -1 not in positions and positions == sorted(positions)

    return is_own_format


def _start_of(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_START_BYTES)
