"""A COCO directory as ArrayRecord shards: few large files instead of many small ones, with random access.

    FOLDER/instances.json                            the annotation file, byte for byte
    FOLDER/images-00000-of-00004.array_record, …     the image files, in the order of its list `images`
    FOLDER/records.json                              format, checksum of instances.json, and for each shard its name,
                                                     records and bytes

A record is the length of the file's name (4 bytes, little-endian), the 'file_name' in UTF-8, and the unchanged bytes of
the image file. The annotations are parsed by `coco.py` and the images decoded by `image_io.py`, so that samples are
bit-identical to those of the directory. `records.json` is written last, and a shard gets its final name when it is
complete and verified.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco import parse_coco, read_coco_json
from tood_jax.data.paths import ImagePath, as_path, is_file, local_copy, read_bytes
from tood_jax.files import write_atomically
from tood_jax.untrusted.bounded_json import JsonError, as_integer, as_text, parse_json
from tood_jax.untrusted.printable import printable

FORMAT = 1
INDEX, ANNOTATIONS = "records.json", "instances.json"
_CHECKSUM = "instances_sha256"
_MAX_INDEX_BYTES = 64 << 20
_MAX_SIZE = 1 << 50  # records or bytes of a shard
_WRITER_OPTIONS = "group_size:1,uncompressed"  # one record per chunk for random access; JPEGs do not compress further


class Shard(NamedTuple):
    """One file with records."""

    name: str
    records: int
    bytes: int


class Reader(Protocol):
    """Encoded images by position."""

    def image(self, position: int, name: str) -> bytes:
        """Return the encoded image of a record. Raises OSError or DataError."""


@dataclass(frozen=True, slots=True)
class RecordPath:
    """The `ImagePath` of an image in a record."""

    reader: Reader
    position: int
    file_name: str  # as the annotations call it
    dataset: str  # its location, for messages

    @property
    def name(self) -> str:
        return PurePosixPath(self.file_name).name

    def read_bytes(self) -> bytes:
        return self.reader.image(self.position, self.file_name)

    def __str__(self) -> str:
        return f"{self.dataset}: {self.file_name} (record {self.position})"


def record_paths(reader: Reader, dataset: str, names: Sequence[str]) -> list[RecordPath]:
    """Return the paths of all records of a data set, whose images have these names in the order of the records."""
    return [RecordPath(reader, position, name, dataset) for position, name in enumerate(names)]


class ShardReader:
    """Read records of several shards by their position in all of them; each process opens the files that it reads.

    Args:
        paths: local files.
        counts: number of records of each.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
        self._paths, self._counts = tuple(paths), tuple(counts)
        self._open()

    def _open(self) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        # Given the number of records, it opens a shard only when that is first read.
        instructions = [
            _ReadInstruction(str(path), 0, count, count) for path, count in zip(self._paths, self._counts, strict=True)
        ]
        self._source = ArrayRecordDataSource(instructions)

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[tuple[Path, ...], tuple[int, ...]]]:
        return ShardReader, (self._paths, self._counts)

    def __len__(self) -> int:
        return sum(self._counts)

    def image(self, position: int, name: str) -> bytes:
        """Return the image of a record after checking that it is the file of this name. Raises OSError or DataError."""
        found, image = self.record(position)
        if found != name:
            raise DataError(
                f"Record {position} of {self._paths[0].parent} holds {found}, not {name}: its shards and its "
                f"{ANNOTATIONS} belong to different data sets; write the folder again with "
                "tood_jax.cli.to_array_record."
            )
        return image

    def record(self, position: int) -> tuple[str, bytes]:
        """Return (file name, encoded image) of a record. Raises OSError."""
        return unpack(self._source[position])


@dataclass(frozen=True)
class _ReadInstruction:
    """The part of a shard to read, with the field names of ArrayRecord's file instructions."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def pack(name: str, image: bytes) -> bytes:
    """Return the record of a file."""
    encoded = name.encode()
    return len(encoded).to_bytes(4, "little") + encoded + image


def unpack(record: bytes) -> tuple[str, bytes]:
    """Return (file name, encoded image) of a record. Raises OSError if it is not a record."""
    end = 4 + int.from_bytes(record[:4], "little")
    if len(record) < 4 or end > len(record):
        raise OSError("not a record of tood_jax.cli.to_array_record")
    return record[4:end].decode(errors="replace"), record[end:]


def load_array_record(location: str, for_evaluation: bool = True) -> Dataset:
    """Load a folder of records. If it lies in an object store, its shards are copied to this machine once.

    Raises:
        DataError: as `load_coco`, or a shard is missing or has another length than the index says.
    """
    folder = as_path(location)
    shards, checksum = _read_index(folder)
    reader = _open_shards(folder, shards)
    file = folder / ANNOTATIONS
    annotations = _read(file)
    if checksum is not None and hashlib.sha256(annotations).hexdigest() != checksum:
        raise DataError(
            f"{file} is not the file that {INDEX} was written for (wrong checksum): write the folder again."
        )
    raw = read_coco_json(annotations, file)
    if len(reader) != len(raw["images"]):
        raise DataError(
            f"{location} has {len(reader)} records for the {len(raw['images'])} images of its {ANNOTATIONS}: write it "
            "again with tood_jax.cli.to_array_record."
        )
    return parse_coco(raw, file, partial(record_paths, reader, location), for_evaluation=for_evaluation)


def open_records(location: str) -> ShardReader:
    """Return a reader of the images of a folder of records, without its annotations. Raises DataError."""
    folder = as_path(location)
    return _open_shards(folder, _read_index(folder)[0])


def _open_shards(folder: Any, shards: Sequence[Shard]) -> ShardReader:
    return ShardReader([_local_shard(folder / one.name, one) for one in shards], [one.records for one in shards])


def _read_index(folder: Any) -> tuple[list[Shard], str | None]:
    """Return (shards, SHA-256 of the annotations); folders up to November 2026 have no checksum, which gives None."""
    file = folder / INDEX
    if not is_file(file):
        unfinished = is_file(folder / ANNOTATIONS)
        remedy = (
            "writing it was interrupted; run the same command again."
            if unfinished
            else "write such a folder with python -m tood_jax.cli.to_array_record."
        )
        raise DataError(f"{folder} has no {INDEX}: {remedy}")
    try:
        return _parse_index(parse_json(_read(file), _MAX_INDEX_BYTES), file)
    except JsonError as error:
        raise DataError(f"{file} is damaged (it {error}): write the folder again.") from None


def _parse_index(index: Any, file: Any) -> tuple[list[Shard], str | None]:
    if not isinstance(index, dict) or as_integer(index.get("format")) is None:
        raise JsonError("has no number 'format'")
    if index["format"] != FORMAT:
        raise DataError(
            f"{file} has format {index['format']}, but this program reads format {FORMAT}: write the folder again."
        )
    shards = index.get("shards")
    if not isinstance(shards, list) or not shards:
        raise JsonError("lists no 'shards'")
    checksum = as_text(index.get(_CHECKSUM))
    if checksum is None and _CHECKSUM in index:
        raise JsonError(f"has no valid {_CHECKSUM!r}")
    return [_parse_shard(entry, position) for position, entry in enumerate(shards)], checksum


def _parse_shard(entry: Any, position: int) -> Shard:
    """Parse an entry of the list of shards; its name must not lead out of the folder."""
    values = entry if isinstance(entry, dict) else {}
    name = as_text(values.get("name"), max_length=255)
    records, size = (as_integer(values.get(key), 0, _MAX_SIZE) for key in ("records", "bytes"))
    if name is None or records is None or size is None:
        raise JsonError(f"has no 'name', 'records' and 'bytes' of shard {position}")
    if not name.endswith(".array_record") or not name.isprintable() or "/" in name or "\\" in name:
        raise JsonError(f"names a shard {printable(repr(name), 60)}, which is not a file of this folder")
    return Shard(name, records, size)


def _read(file: Any) -> bytes:
    try:
        return read_bytes(file)
    except OSError as error:
        raise DataError(f"{file} can't be read ({error.strerror or error}): write the folder again.") from None


def _local_shard(path: Any, shard: Shard) -> Path:
    """Return the shard as a local file after checking its length."""
    try:
        copy = local_copy(path, shard.bytes)
        found = copy.stat().st_size
        if not copy.is_file():
            raise OSError("it is not a regular file")
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}): write its folder again.") from None
    if found != shard.bytes:
        raise DataError(f"{path} has {found:,} bytes instead of {shard.bytes:,}: write its folder again.")
    return copy


def split_evenly(count: int, parts: int) -> list[range]:
    """Split the positions 0 … count − 1 into ranges whose lengths differ by at most 1, longer ranges first."""
    base, rest = divmod(count, parts)
    edges = [base * part + min(part, rest) for part in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def write_array_record(
    annotations: bytes,
    images: Sequence[tuple[str, ImagePath]],
    folder: Path,
    shards: int,
    progress: Callable[[int], None],
) -> tuple[int, int]:
    """Write a folder of records, or continue after an earlier call with the same arguments was interrupted.

    Args:
        annotations: the instances JSON.
        images: 'file_name' and path of every image, in the order of the JSON.
        progress: called with a number of images after each image, and for the images of each existing shard.

    Returns:
        (shards written, shards that existed already).

    Raises:
        DataError: the folder holds other records, an image cannot be read, or a shard differs from what was written.
    """
    shards = max(1, min(shards, len(images)))
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"images-{part:05d}-of-{shards:05d}.array_record" for part in range(shards)]
    _check_target(folder, annotations, set(names))
    _remove_stale_files(folder)
    if not (folder / ANNOTATIONS).exists():
        write_atomically(folder / ANNOTATIONS, annotations)
    written, index = 0, []
    for name, part in zip(names, split_evenly(len(images), shards), strict=True):
        file = folder / name
        shard_images = [images[position] for position in part]
        if file.exists() and is_intact(file, [file_name for file_name, _ in shard_images]):
            progress(len(shard_images))
        else:
            _write_shard(file, shard_images, progress)
            written += 1
        index.append(Shard(name, len(shard_images), file.stat().st_size))
    tree = {
        "format": FORMAT,
        "images": len(images),
        _CHECKSUM: hashlib.sha256(annotations).hexdigest(),
        "shards": [shard._asdict() for shard in index],
    }
    write_atomically(folder / INDEX, json.dumps(tree, indent=1).encode())
    return written, shards - written


def _check_target(folder: Path, annotations: bytes, names: set[str]) -> None:
    """Raise DataError if the folder holds anything else than these records."""
    file = folder / ANNOTATIONS
    if file.exists() and file.read_bytes() != annotations:
        raise DataError(f"{folder} holds the records of other annotations: name another folder, or remove it.")
    others = {shard.name for shard in folder.glob("images-*.array_record")} - names
    if others:
        raise DataError(
            f"{folder} holds another number of shards ({min(others)}): give the same --shards as before, another "
            "folder, or remove it."
        )
    if not file.exists() and any(entry.name != INDEX and not entry.name.endswith(".tmp") for entry in folder.iterdir()):
        raise DataError(f"{folder} exists and holds other files: name a folder that is empty or does not exist.")


def _remove_stale_files(folder: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    for file in folder.glob(".*.tmp"):
        process = file.name.split(".")[-2]
        if process.isdigit() and not Path("/proc", process).exists() and Path("/proc").exists():
            file.unlink(missing_ok=True)


def _write_shard(file: Path, images: Iterable[tuple[str, ImagePath]], progress: Callable[[int], None]) -> None:
    from array_record.python import array_record_module

    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    names = []
    try:
        writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        for name, path in images:
            try:
                writer.write(pack(name, read_bytes(path)))
            except OSError as error:
                raise DataError(
                    f"{path} can't be read ({error.strerror or error}): restore the file or remove its entry from the "
                    "annotations."
                ) from None
            names.append(name)
            progress(1)
        writer.close()
        if not is_intact(temporary, names):
            raise DataError(f"{file} differs from what was written: check the disk, then run the command again.")
        with temporary.open("rb+") as complete:
            os.fsync(complete.fileno())
        os.replace(temporary, file)
    except RuntimeError as error:
        raise DataError(f"{file} could not be written ({error}): free disk space and run the command again.") from None
    finally:
        temporary.unlink(missing_ok=True)


def is_intact(file: Path, names: list[str]) -> bool:
    """Return whether a shard holds exactly these files in this order; reading every record checks its hash."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        try:
            if reader.num_records() != len(names):
                return False
            return all(unpack(reader.read([i])[0])[0] == name for i, name in enumerate(names))
        finally:
            reader.close()
    except (RuntimeError, OSError, IndexError):
        return False
