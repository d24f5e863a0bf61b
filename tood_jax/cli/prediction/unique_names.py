"""Names of files that are written per image."""

import unicodedata
from pathlib import PurePath


class UniqueNames:
    """Gives a number to a file name that differs from a former one only in case or Unicode form, or not at all.

    The same names in the same order give the same results.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # the last number given to each name

    def __call__(self, name: str) -> str:
        """Return the name, or STEM_2.SUFFIX, STEM_3.SUFFIX, …"""
        path, key, unique = PurePath(name), _folded(name), name
        number = self._numbers.get(key, 1)
        while _folded(unique) in self._numbers:
            number += 1
            unique = f"{path.stem}_{number}{path.suffix}"
        self._numbers |= {_folded(unique): 1, key: number}
        return unique


def drawing_name(image_name: str) -> str:
    """Return the name of an image's drawing: .png and .webp stay, others become .jpg."""
    path = PurePath(image_name)
    return f"{path.stem}{path.suffix.lower() if path.suffix.lower() in {'.png', '.webp'} else '.jpg'}"


def _folded(name: str) -> str:
    """Return a name in the form in which case-insensitive file systems compare names."""
    return unicodedata.normalize("NFC", name).casefold()
