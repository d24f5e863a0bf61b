"""Formats of results. To add one, write a class with `add` and `finish`, and add it to FORMATS."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import ClassVar, Protocol, TextIO

import numpy as np

from tood_jax.api.rows import Row, encode_row, import_pyarrow, parquet_schema
from tood_jax.cli.outputs import is_results_file, starts_with_keys
from tood_jax.cli.prediction.image_search import LABELS
from tood_jax.cli.prediction.unique_names import UniqueNames
from tood_jax.cli.written_files import WrittenFiles
from tood_jax.config import ConfigError
from tood_jax.data.dataset import ClassInfo
from tood_jax.evaluation.coco_ap import coco_results
from tood_jax.untrusted.printable import printable

_CSV_COLUMNS = ("path", "width", "height", "label", "name", "score", "x0", "y0", "x1", "y1", "error")
_PARQUET_ROWS = 1024  # images of a row group


class Writer(Protocol):
    """Writes the results of a job in one format, in the order of the images.

    Args:
        part: the file to write, in a folder of its own; renamed to `NAME` of the class when it is complete.
        out: the output folder.
        classes: of the labels.
    """

    NAME: ClassVar[str]
    """The file, or the folder of files, in the output folder."""

    def __init__(self, part: Path, out: Path, classes: Sequence[ClassInfo]): ...

    def add(self, row: Row) -> None:
        """Write an image."""

    def finish(self) -> None:
        """Complete the part."""

    @staticmethod
    def is_own(path: Path, start: bytes) -> bool:
        """Return whether an existing file, which starts with these bytes, has this format."""


class _TextWriter(Writer):
    """A format that is a text file."""

    def __init__(self, part: Path, out: Path, classes: Sequence[ClassInfo]):
        self._file: TextIO = part.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._classes = classes

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class CocoWriter(_TextWriter):
    """COCO results: a list of detections, with the image's path as image_id and the name of the class."""

    NAME = "detections.json"
    _separator = "[\n"

    def add(self, row: Row) -> None:
        if "error" in row:
            return
        boxes, scores, labels = (np.asarray(row[key]) for key in ("boxes", "scores", "labels"))
        results = coco_results([(boxes, scores, labels)], [row["path"]], [one.id for one in self._classes])
        for result, name in zip(results, row["names"], strict=True):
            self._file.write(self._separator + json.dumps({**result, "category": name}))
            self._separator = ",\n"

    def finish(self) -> None:
        self._file.write("[]" if self._separator == "[\n" else "\n]")
        super().finish()

    @staticmethod
    def is_own(path: Path, start: bytes) -> bool:
        return is_results_file(start)


class JsonLinesWriter(_TextWriter):
    """One line per image, also for those that cannot be read."""

    NAME = "detections.jsonl"

    def add(self, row: Row) -> None:
        self._file.write(encode_row(row).decode())

    @staticmethod
    def is_own(path: Path, start: bytes) -> bool:
        return starts_with_keys("path")(start)


class CsvWriter(_TextWriter):
    """One line per detection; an image without detections has a line without them, a broken one its error."""

    NAME = "detections.csv"

    def __init__(self, part: Path, out: Path, classes: Sequence[ClassInfo]):
        super().__init__(part, out, classes)
        self._lines = csv.writer(self._file, lineterminator="\n")
        self._lines.writerow(_CSV_COLUMNS)

    def add(self, row: Row) -> None:
        start = [row["path"], row.get("width", ""), row.get("height", "")]
        details = [row.get(key, []) for key in ("labels", "names", "scores", "boxes")]
        for label, name, score, box in zip(*details, strict=True):
            self._lines.writerow([*start, label, name, score, *box, ""])
        if not details[0]:
            self._lines.writerow([*start, *[""] * 7, row.get("error", "")])

    @staticmethod
    def is_own(path: Path, start: bytes) -> bool:
        return start.startswith(",".join(_CSV_COLUMNS).encode())


class YoloWriter(Writer):
    """A text file per image in a folder: "label x y width height score", centre and size from 0 to 1."""

    NAME = LABELS

    def __init__(self, part: Path, out: Path, classes: Sequence[ClassInfo]):
        folder = out / LABELS
        folder.mkdir(exist_ok=True)
        self._written, self._names = WrittenFiles(folder), UniqueNames()

    def add(self, row: Row) -> None:
        if "error" in row:
            return
        name = self._names(f"{PurePosixPath(row['path']).stem}.txt")
        lines = []
        for label, score, (x0, y0, x1, y1) in zip(row["labels"], row["scores"], row["boxes"], strict=True):
            x, width = (x0 + x1) / 2 / row["width"], (x1 - x0) / row["width"]
            y, height = (y0 + y1) / 2 / row["height"], (y1 - y0) / row["height"]
            lines.append(f"{label} {x:.6g} {y:.6g} {width:.6g} {height:.6g} {score:.6g}\n")
        self._written.write(name, "".join(lines).encode())

    def finish(self) -> None:
        """Do nothing: every file is complete."""

    @staticmethod
    def is_own(path: Path, start: bytes) -> bool:
        return False  # it is a folder


class ParquetWriter(Writer):
    """One row per image, with lists of boxes, scores, labels and names."""

    NAME = "detections.parquet"

    def __init__(self, part: Path, out: Path, classes: Sequence[ClassInfo]):
        arrow, parquet = import_pyarrow()
        self._schema = parquet_schema()
        self._table_of = arrow.Table.from_pylist
        self._writer = parquet.ParquetWriter(part, self._schema)
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        path = row["path"].encode(errors="surrogateescape").decode(errors="replace")
        self._rows.append({**row, "path": path})
        if len(self._rows) == _PARQUET_ROWS:
            self._write()

    def finish(self) -> None:
        self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(self._table_of(self._rows, schema=self._schema))
        self._rows = []

    @staticmethod
    def is_own(path: Path, start: bytes) -> bool:
        try:
            return (import_pyarrow()[1].read_schema(path).metadata or {}).get(b"written_by") == b"tood_jax"
        except (OSError, ValueError):
            return False


FORMATS: dict[str, type[Writer]] = {
    "json": CocoWriter,
    "jsonl": JsonLinesWriter,
    "csv": CsvWriter,
    "yolo": YoloWriter,
    "parquet": ParquetWriter,
}


@contextmanager
def open_writers(
    names: Sequence[str], parts: Path, out: Path, classes: Sequence[ClassInfo]
) -> Iterator[Callable[[Row], None]]:
    """Yield a function that adds a row to every format; at the end of the context the files appear in `out`.

    Args:
        names: keys of FORMATS.
        parts: folder for incomplete files.
    """
    writers = {FORMATS[name].NAME: FORMATS[name](parts / FORMATS[name].NAME, out, classes) for name in names}

    def add(row: Row) -> None:
        for writer in writers.values():
            writer.add(row)

    yield add
    for name, writer in writers.items():
        writer.finish()
        if (parts / name).exists():
            os.replace(parts / name, out / name)


def check_labels_folder(folder: Path) -> None:
    """Refuse a folder of the format yolo with files that predict.py did not write. Raises ConfigError."""
    written = WrittenFiles(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if not (path.name.startswith(".tood_jax") or written.has(path.name)):
            raise ConfigError(
                f"{printable(folder)} has a file {printable(path.name)} that predict.py did not write: name another "
                "--out."
            )
