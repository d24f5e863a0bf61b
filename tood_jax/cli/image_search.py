"""Find the image files in files, folders and globs, and report which files are left out and why."""

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tood_jax.cli.written_files import MARKER, WrittenFiles
from tood_jax.config import ConfigError
from tood_jax.data.errors import DataError
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import file_kind

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
OUTPUTS = {MARKER, "detections.json", "detections.part.json"}  # of predict.py, beside drawings
_SHOWN = 3  # examples for each reason
_OTHER_ENDING = f"files with another ending than {', '.join(sorted(SUFFIXES))}"
_NOT_REGULAR = "names of images that are no regular files"
_DRAWING = "drawings of earlier runs"
_IN_OUTPUT = "files in the output folder"
_UNREADABLE = "folders that can't be read"


class LeftOutFiles:
    """Number of files that are left out, by reason, with examples."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, path: object) -> None:
        self._counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < _SHOWN:
            examples.append(printable(path, 200))

    def messages(self) -> list[str]:
        """Return one message for each reason: "left out: 3 files with another ending … (a.heic, b.gif, …)."."""
        found = []
        for reason, count in self._counts.items():
            more = ", …" if count > _SHOWN else ""
            found.append(f"left out: {count} {reason} ({', '.join(self._examples[reason])}{more}).")
        return found


def find_images(patterns: Sequence[str], out: Path | None = None) -> tuple[list[Path], LeftOutFiles]:
    """Find the image files of files, folders (with all below them) and globs.

    Args:
        patterns: files, folders and globs; a single file may have any ending.
        out: the output folder; if it is inside a searched folder, its files are left out.

    Returns:
        (the files without duplicates, sorted within each pattern; the files that were left out).

    Raises:
        ConfigError: no pattern, or an empty one.
        DataError: a pattern matches nothing.
    """
    if not patterns:
        raise ConfigError("name images: --images FILE_FOLDER_OR_GLOB …")
    if not all(patterns):
        raise ConfigError("--images is empty: name files, folders or globs.")
    search = _Search(out)
    files: dict[Path, None] = {}
    for pattern in patterns:
        files.update(dict.fromkeys(search.find(pattern)))
    return list(files), search.left_out


class _Search:
    """A search for images; collects the files that are left out."""

    def __init__(self, out: Path | None):
        self.left_out = LeftOutFiles()
        self._out = Path(os.path.realpath(out)) if out is not None else None
        self._written: dict[Path, WrittenFiles] = {}

    def find(self, pattern: str) -> list[Path]:
        """Return the images that one pattern matches. Raises DataError if there are none."""
        path = Path(pattern)
        if path.is_dir():
            found = sorted(self._below(path))
        elif path.exists() and (kind := file_kind(path)):
            raise DataError(f"--images {printable(pattern)} is {kind}, not a file with an image.")
        elif path.exists():
            return [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
            found = [path for path in matches if not path.is_dir() and self._is_input(path, _root_of(pattern))]
        if not found:
            raise DataError(
                f"--images {printable(pattern)}: no such file, no folder with images, and no glob that matches images. "
                f"{' '.join(self.left_out.messages())}".strip()
            )
        return found

    def _below(self, folder: Path) -> Iterator[Path]:
        for parent, _, names in os.walk(folder, onerror=lambda error: self.left_out.add(_UNREADABLE, error.filename)):
            for name in names:
                path = Path(parent, name)
                if path.suffix.lower() in SUFFIXES:
                    if self._is_input(path, folder):
                        yield path
                elif name not in OUTPUTS and not self._is_output(path, folder):
                    self.left_out.add(_OTHER_ENDING, path)

    def _is_input(self, path: Path, searched: Path) -> bool:
        """Return whether to read a file that was found; if not, add the reason to `left_out`."""
        if self._written_files(path.parent).has(path.name):
            self.left_out.add(_DRAWING, path)
        elif self._is_output(path, searched):
            self.left_out.add(_IN_OUTPUT, path)
        elif not path.is_file():  # or a broken link
            self.left_out.add(_NOT_REGULAR, path)
        else:
            return True
        return False

    def _is_output(self, path: Path, searched: Path) -> bool:
        """Return whether a file is in the output folder, and that folder in the searched one."""
        root, parent = Path(os.path.realpath(searched)), Path(os.path.realpath(path.parent))
        return self._out is not None and root in self._out.parents and self._out in (parent, *parent.parents)

    def _written_files(self, folder: Path) -> WrittenFiles:
        if folder not in self._written:
            self._written[folder] = WrittenFiles(folder)
        return self._written[folder]


def _root_of(pattern: str) -> Path:
    """Return the part of a glob before its first wildcard."""
    parts = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts[:-1])
    return Path(*parts)
