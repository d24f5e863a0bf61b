"""Check that the images of an annotation file exist: each folder is listed once, no single file is accessed.

A missing name is also searched in other spellings, because file systems differ: upper and lower case, backslashes, and
Unicode's two ways to write an accented letter.
"""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from tood_jax.data.errors import DataError
from tood_jax.untrusted.printable import printable

_MAX_EXAMPLES = 3  # missing images that are named

_REMEDIES = {  # by the difference in spelling
    "backslash": "write / in place of \\ in 'file_name'",
    "case": "give 'file_name' the upper and lower case of the files",
    "form": "give 'file_name' and the files the same Unicode normal form (NFC)",
}


class Missing(NamedTuple):
    """An image that is not in the folder."""

    name: str  # 'file_name'
    found: str  # a file whose name differs only in spelling, or ""
    difference: str  # a key of _REMEDIES, or ""


def check_names(names: Sequence[str], file: object) -> None:
    """Raise an error for names that lead out of the image folder.

    Raises:
        DataError: a name is absolute or has a part ".." or a zero byte.
    """
    for name in names:
        path = PureWindowsPath(name)  # its separators are / and \\
        if path.root or ".." in path.parts or "\0" in name:
            raise DataError(
                f"{file}: images: 'file_name' {printable(name, 120)} leads out of the image folder: write names "
                "relative to data.*.images, without '..'."
            )


def find_missing(folder: Path, names: Sequence[str]) -> list[Missing]:
    """Return the names that are not files of a local folder or its subfolders.

    Raises:
        DataError: a folder can't be listed.
    """
    listing = _Listing(folder)
    missing = [listing.explain(name) for name in names if not listing.has(name)]
    # On a file system that treats other spellings as the same name, such an image exists.
    return [image for image in missing if not (image.found and os.path.isfile(folder / image.name))]


def missing_error(missing: Sequence[Missing], count: int, folder: object, file: object) -> DataError:
    """Return the error for missing images: how many, which, and the remedy.

    Args:
        count: number of images that `file` names.
    """
    if len(missing) == count and not any(image.difference for image in missing):
        return DataError(
            f"None of the {count} images of {file} is in {folder} ({examples(missing)}): set data.*.images to the "
            "folder that 'file_name' starts from."
        )
    remedies = list(dict.fromkeys(_REMEDIES[image.difference] for image in missing if image.difference))
    if not all(image.difference for image in missing):
        remedies.append("restore the files, remove their entries, or leave them out with data.broken_images=skip")
    return DataError(
        f"{len(missing)} of the {count} images of {file} are not in {folder} ({examples(missing)}): "
        f"{'; '.join(remedies)}."
    )


def examples(missing: Sequence[Missing]) -> str:
    """Return the first few missing names, and the files that they may mean."""
    return ", ".join(_example(image) for image in missing[:_MAX_EXAMPLES]) + (
        ", …" if len(missing) > _MAX_EXAMPLES else ""
    )


def _example(image: Missing) -> str:
    if not image.found:
        return printable(image.name, 120)
    if image.difference == "form":  # both look the same unless their characters are escaped
        return f"{printable(ascii(image.name), 120)}, but there is {printable(ascii(image.found), 120)}"
    return f"{printable(image.name, 120)}, but there is {printable(image.found, 120)}"


class _Names(NamedTuple):
    """Names in a folder."""

    files: set[str]
    folders: set[str]


class _Listing:
    """Names in a folder and in subfolders; each is listed once, when it is needed."""

    def __init__(self, root: Path):
        self._root = root
        self._folders: dict[str, _Names] = {}
        self._exists: dict[str, bool] = {}  # subfolder → whether it exists
        self._spellings: dict[str, dict[str, str]] = {}

    def has(self, name: str) -> bool:
        """Return whether the file exists."""
        path = PurePosixPath(name)
        parent = str(path.parent)
        return self._has_folder(parent) and path.name in self._list(parent).files

    def explain(self, name: str) -> Missing:
        """Search a missing name in other spellings."""
        found = PurePosixPath()
        for part in PurePosixPath(name.replace("\\", "/")).parts:
            spelling = self._spellings_in(str(found)).get(_normalize(part))
            if spelling is None:
                return Missing(name, "", "")
            found /= spelling
        return (
            Missing(name, str(found), _difference(name, str(found))) if self.has(str(found)) else Missing(name, "", "")
        )

    def _has_folder(self, folder: str) -> bool:
        if folder not in self._exists:
            path, self._exists[folder] = PurePosixPath(), True
            for part in PurePosixPath(folder).parts:
                if part not in self._list(str(path)).folders:
                    self._exists[folder] = False
                    break
                path /= part
        return self._exists[folder]

    def _list(self, folder: str) -> _Names:
        if folder not in self._folders:
            self._folders[folder] = _scan(self._root / folder)
        return self._folders[folder]

    def _spellings_in(self, folder: str) -> dict[str, str]:
        """Return the names in a folder by their normalized spelling."""
        if not self._has_folder(folder):
            return {}
        if folder not in self._spellings:
            names = self._list(folder)
            self._spellings[folder] = {_normalize(name): name for name in sorted(names.files | names.folders)}
        return self._spellings[folder]


def _scan(folder: Path) -> _Names:
    names = _Names(set(), set())
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                _add_entry(entry, names)
    except OSError as error:
        raise DataError(
            f"The image folder {printable(folder)} can't be listed ({error.strerror or error}): check its permissions."
        ) from None
    return names


def _add_entry(entry: os.DirEntry[str], names: _Names) -> None:
    """Add a file or folder; broken links, pipes and devices are neither."""
    try:
        if entry.is_file():
            names.files.add(entry.name)
        elif entry.is_dir():
            names.folders.add(entry.name)
    except OSError:  # for example a loop of links
        return


def _normalize(name: str) -> str:
    """Return the same spelling for all names that differ only in case or normal form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _difference(name: str, found: str) -> str:
    """Return the key of the remedy for a name that is spelled differently."""
    if "\\" in name:
        return "backslash"
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", found):
        return "form"
    return "case"
