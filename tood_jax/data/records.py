"""A COCO directory as ArrayRecord shards: few large files instead of many small ones, read at any place.

    FOLDER/instances.json                            the annotation file, byte for byte
    FOLDER/images-00000-of-00004.array_record, …     the image files, in the order of its list `images`
    FOLDER/records.json                              format, and of each shard its name, records and bytes

A record is the length of the file's name (4 bytes, little-endian), the 'file_name' in UTF-8, and the encoded image as
it was. The annotations are parsed by `coco.py` and the images decoded by `decode.py`, so that samples are those of the
directory, bit for bit. `records.json` is written last, and a shard gets its name when it is whole and checked.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from tood_jax.data.coco import CocoSet, parse_coco, read_coco_json
from tood_jax.data.errors import DataError
from tood_jax.data.paths import ImagePath, as_path, is_file, local_copy, read_bytes

FORMAT = 1
INDEX, ANNOTATIONS = "records.json", "instances.json"
WRITER_OPTIONS = "group_size:1,uncompressed"  # one record a chunk, as random reading wants it; JPEGs don't get smaller


class Shard(NamedTuple):
    """One file of records."""

    name: str
    records: int
    bytes: int


class Reader(Protocol):
    """Encoded images by position."""

    def image(self, position: int, name: str) -> bytes:
        """The encoded image of a record. Raises OSError or DataError."""


@dataclass(frozen=True, slots=True)
class RecordPath:
    """An image in a record, as a path."""

    reader: Reader
    position: int
    file_name: str  # as the annotations call it
    place: str  # the data set, for messages

    @property
    def name(self) -> str:
        return PurePosixPath(self.file_name).name

    def read_bytes(self) -> bytes:
        return self.reader.image(self.position, self.file_name)

    def __str__(self) -> str:
        return f"{self.place}: {self.file_name} (record {self.position})"


class ShardReader:
    """Records of several shards, by position over all of them; each process opens the files that it reads.

    Args:
        paths: local files.
        counts: records of each.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
        self._paths, self._counts = tuple(paths), tuple(counts)
        self._open()

    def _open(self) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        # Told how many records there are, it opens a shard when it is first read.
        parts = [_Part(str(path), 0, count, count) for path, count in zip(self._paths, self._counts, strict=True)]
        self._source = ArrayRecordDataSource(parts)

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[tuple[Path, ...], tuple[int, ...]]]:
        return ShardReader, (self._paths, self._counts)

    def __len__(self) -> int:
        return sum(self._counts)

    def image(self, position: int, name: str) -> bytes:
        """The image of a record, after checking that it is the file of this name."""
        found, image = unpack(self._source[position])
        if found != name:
            raise DataError(
                f"Record {position} of {self._paths[0].parent} holds {found}, not {name}: its shards and its "
                f"{ANNOTATIONS} are not of one set; write them anew with tood_jax.cli.to_array_record."
            )
        return image


@dataclass(frozen=True)
class _Part:
    """What ArrayRecord's reader calls a file instruction."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def pack(name: str, image: bytes) -> bytes:
    """A record."""
    encoded = name.encode()
    return len(encoded).to_bytes(4, "little") + encoded + image


def unpack(record: bytes) -> tuple[str, bytes]:
    """(file name, encoded image) of a record. Raises OSError if it isn't one."""
    end = 4 + int.from_bytes(record[:4], "little")
    if len(record) < 4 or end > len(record):
        raise OSError("not a record of tood_jax.cli.to_array_record")
    return record[4:end].decode(errors="replace"), record[end:]


def load_records(place: str) -> CocoSet:
    """Read a folder of records, which may lie in an object store: its shards are then copied to this machine, once.

    Raises DataError in one sentence, as `load_coco` does, and if a shard is missing or not of its length.
    """
    folder = as_path(place)
    shards = _read_index(folder)
    paths = [_checked(folder / shard.name, shard) for shard in shards]
    file = folder / ANNOTATIONS
    raw = read_coco_json(_read(file), file)
    reader = ShardReader(paths, [shard.records for shard in shards])
    if len(reader) != len(raw["images"]):
        raise DataError(
            f"{place} has {len(reader)} records for the {len(raw['images'])} images of its {ANNOTATIONS}: write it "
            "anew with tood_jax.cli.to_array_record."
        )
    return parse_coco(raw, file, lambda position, name: RecordPath(reader, position, name, place))


def _read_index(folder: Any) -> list[Shard]:
    file = folder / INDEX
    if not is_file(file):
        unfinished = is_file(folder / ANNOTATIONS)
        raise DataError(
            f"{folder} has no {INDEX}: "
            + ("its writing was broken off; run the same command again." if unfinished else "")
            + ("" if unfinished else "write such a folder with python -m tood_jax.cli.to_array_record.")
        )
    try:
        index = json.loads(_read(file))
        if index["format"] != FORMAT:
            raise DataError(
                f"{file} is of format {index['format']}, and this program reads format {FORMAT}: write the folder anew."
            )
        return [Shard(str(one["name"]), int(one["records"]), int(one["bytes"])) for one in index["shards"]]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}): write the folder anew.") from None


def _read(file: Any) -> bytes:
    try:
        return read_bytes(file)
    except OSError as error:
        raise DataError(f"{file} can't be read ({error.strerror or error}): write the folder anew.") from None


def _checked(path: Any, shard: Shard) -> Path:
    """The shard as a local file of the right length."""
    try:
        copy = local_copy(path, shard.bytes)
        found = copy.stat().st_size
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}): write its folder anew.") from None
    if found != shard.bytes:
        raise DataError(f"{path} has {found:,} bytes instead of {shard.bytes:,}: write its folder anew.")
    return copy


# writing


def split_evenly(count: int, parts: int) -> list[range]:
    """`count` positions in `parts` runs that differ in length by one at most, longer ones first."""
    base, rest = divmod(count, parts)
    edges = [base * part + min(part, rest) for part in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def write_records(
    annotations: bytes, images: Sequence[tuple[str, ImagePath]], folder: Path, shards: int, done: Callable[[int], None]
) -> tuple[int, int]:
    """Write a folder of records, going on where an earlier call of the same arguments was broken off.

    Args:
        annotations: the instances JSON.
        images: 'file_name' and place of every image, in the order of the JSON.
        done: is told after every image, and of the images of a shard that is already there.

    Returns: (shards written, shards that were already there).

    Raises DataError if the folder holds other records, an image can't be read, or what was written isn't what is there.
    """
    shards = max(1, min(shards, len(images)))
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"images-{part:05d}-of-{shards:05d}.array_record" for part in range(shards)]
    _refuse_other(folder, annotations, set(names))
    _remove_torn(folder)
    if not (folder / ANNOTATIONS).exists():
        _write_whole(folder / ANNOTATIONS, annotations)
    written, index = 0, []
    for name, part in zip(names, split_evenly(len(images), shards), strict=True):
        file = folder / name
        own = [images[position] for position in part]
        if file.exists() and _fits(file, [one[0] for one in own]):
            done(len(own))
        else:
            _write_shard(file, own, done)
            written += 1
        index.append(Shard(name, len(own), file.stat().st_size))
    tree = {
        "format": FORMAT,
        "images": len(images),
        "shards": [shard._asdict() for shard in index],
    }
    _write_whole(folder / INDEX, json.dumps(tree, indent=1).encode())
    return written, shards - written


def _refuse_other(folder: Path, annotations: bytes, names: set[str]) -> None:
    own = folder / ANNOTATIONS
    if own.exists() and own.read_bytes() != annotations:
        raise DataError(f"{folder} holds the records of other annotations: name another folder, or remove it.")
    others = {one.name for one in folder.glob("images-*.array_record")} - names
    if others:
        raise DataError(
            f"{folder} holds shards of another number ({min(others)}): give the same --shards as before, another "
            "folder, or remove it."
        )
    if not own.exists() and any(one.name != INDEX and not one.name.endswith(".tmp") for one in folder.iterdir()):
        raise DataError(f"{folder} exists and holds something else: name a folder that is empty or doesn't exist.")


def _remove_torn(folder: Path) -> None:
    """What writers that were killed left behind."""
    for file in folder.glob(".*.tmp"):
        process = file.name.split(".")[-2]
        if process.isdigit() and not Path("/proc", process).exists() and Path("/proc").exists():
            file.unlink(missing_ok=True)


def _write_shard(file: Path, images: Iterable[tuple[str, ImagePath]], done: Callable[[int], None]) -> None:
    from array_record.python import array_record_module

    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    names = []
    try:
        writer = array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        for name, path in images:
            try:
                writer.write(pack(name, read_bytes(path)))
            except OSError as error:
                raise DataError(
                    f"{path} can't be read ({error.strerror or error}): restore the file or remove its entry from the "
                    "annotations."
                ) from None
            names.append(name)
            done(1)
        writer.close()
        if not _fits(temporary, names):  # what is there is judged, not what was asked for
            raise DataError(f"{file} was not written as it should be: is the disk sound? Run it again.")
        with temporary.open("rb+") as whole:
            os.fsync(whole.fileno())
        os.replace(temporary, file)
    except RuntimeError as error:
        raise DataError(f"{file} could not be written ({error}): make room and run it again.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _fits(file: Path, names: list[str]) -> bool:
    """Whether a shard holds exactly these files, in this order; every record is read, which checks its hash."""
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


def _write_whole(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
