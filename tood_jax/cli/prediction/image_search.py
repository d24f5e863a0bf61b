"""Find the image files in files, folders and globs, and report which files are left out and why."""

import functools
import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tood_jax.cli.written_files import MARKER, WrittenFiles
from tood_jax.data.errors import DataError
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import file_kind

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
PARTS = "detections.parts"  # folder of an unfinished job
LABELS = "labels"  # folder of the format yolo
OUTPUTS = {MARKER, *(f"detections.{ending}" for ending in ("json", "jsonl", "csv", "parquet"))}  # beside drawings
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


class FileSearch:
    """Finds the image files of files, folders (with all below them) and globs, sorted; may be repeated.

    The names of one folder are in memory at a time.

    Args:
        out: the output folder; if it is inside a searched folder, its files are left out.
        left_out: collects the files that are left out.
    """

    def __init__(self, out: Path | None = None, left_out: LeftOutFiles | None = None):
        self.left_out = LeftOutFiles() if left_out is None else left_out
        self._out = Path(os.path.realpath(out)) if out is not None else None
        self._written_files = functools.lru_cache(maxsize=64)(WrittenFiles)
        self._real_path = functools.lru_cache(maxsize=64)(lambda path: Path(os.path.realpath(path)))

    def find(self, pattern: str) -> Iterator[Path]:
        """Yield the images that one pattern matches; a single file may have any ending.

        Raises:
            DataError: there are none.
        """
        path = Path(pattern)
        if path.is_dir():
            found = self._below(path, path)
        elif path.exists():
            if kind := file_kind(path):
                raise DataError(f"--images {printable(pattern)} is {kind}, not a file with an image.")
            found = iter([path])
        else:
            matches = sorted({Path(match) for match in glob.glob(pattern, recursive=True)})
            root = _root_of(pattern)
            found = (path for path in matches if not path.is_dir() and self._is_input(path, root))
        first = next(found, None)
        if first is None:
            raise DataError(
                f"--images {printable(pattern)}: no such file, no folder with images, and no glob that matches images. "
                f"{' '.join(self.left_out.messages())}".strip()
            )
        yield first
        yield from found

    def _below(self, folder: Path, searched: Path) -> Iterator[Path]:
        """Yield the images of a folder and of those in it, in the order of their names."""
        try:
            with os.scandir(folder) as entries:
                names = sorted((entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries)
        except OSError:
            self.left_out.add(_UNREADABLE, folder)
            return
        for name, is_folder, is_link in names:
            path = folder / name
            if is_folder:
                if not is_link and name not in (PARTS, LABELS):
                    yield from self._below(path, searched)
            elif path.suffix.lower() in SUFFIXES:
                if self._is_input(path, searched):
                    yield path
            elif name not in OUTPUTS and not self._is_output(path, searched):
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
        root, parent = self._real_path(searched), self._real_path(path.parent)
        return self._out is not None and root in self._out.parents and self._out in (parent, *parent.parents)


def _root_of(pattern: str) -> Path:
    """Return the part of a glob before its first wildcard."""
    parts = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts[:-1])
    return Path(*parts)
