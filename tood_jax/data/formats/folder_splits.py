"""What the readers of whole folders share: splits, their names in folders and files, and the search for images.

A reader has a function `find_splits(folder)`. It returns the splits of a folder that has its layout, and {} for any
other folder; it raises DataError for a folder that has the layout but can't be used, or has it in two ways.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import DataError
from tood_jax.untrusted.printable import printable

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = frozenset(
    (
        ".apng",
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".mpo",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)  # fmt: skip  (also formats that can't be decoded, so that their files are named)
_SPELLINGS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "minival": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_MAX_LISTED = 8  # names in an error


class Split(NamedTuple):
    """One split of a folder."""

    source: str  # its files, for messages
    load: Callable[[Literal["fail", "skip"], bool], Dataset]  # (data.broken_images, for_evaluation)


Splits = dict[str, Split]
"""By train, val and test; "" for a data set without splits."""


def split_of(name: str) -> str:
    """Return the split that a folder or a file is named after, such as `instances_val2017` or `valid`; "" for none."""
    found = {_SPELLINGS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPELLINGS}
    return found.pop() if len(found) == 1 else ""


def subfolders(folder: Path) -> list[Path]:
    """Return the folders inside a folder, sorted, without hidden ones. Raises DataError."""
    return [path for path in _listed(folder) if path.is_dir()]


def files_of(folder: Path, *suffixes: str) -> list[Path]:
    """Return the files directly in a folder that have one of these suffixes, in any case, sorted. Raises DataError."""
    return [path for path in _listed(folder) if path.suffix.lower() in suffixes and path.is_file()]


def find_images(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted by their path."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names if is_image_name(name)]
    return sorted(found)


def is_image_name(name: str) -> bool:
    """Return whether a file has a suffix of an image and is not hidden (macOS writes ._NAME.jpg beside NAME.jpg)."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def subfolder(folder: Path, *names: str) -> Path | None:
    """Return the first subfolder with one of these names, in any case. Raises DataError."""
    by_name = {path.name.lower(): path for path in reversed(subfolders(folder))}
    return next((by_name[name] for name in names if name in by_name), None)


def ambiguous(folder: Path, what: str, found: Iterable[object]) -> DataError:
    """Return the error for a folder that can be read in several ways."""
    return DataError(f"{printable(folder)} has {what}: {listed(found)}. Keep one of them in the folder.")


def listed(names: Iterable[object]) -> str:
    """Return names for a message, the first few of many."""
    texts = [printable(name, 120) for name in names]
    return ", ".join(texts[:_MAX_LISTED]) + (f" and {len(texts) - _MAX_LISTED} more" if texts[_MAX_LISTED:] else "")


def _listed(folder: Path) -> Iterator[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"The folder {printable(folder)} can't be listed ({error.strerror or error}): check name and permissions."
        ) from None
    return (path for path in paths if not path.name.startswith("."))
