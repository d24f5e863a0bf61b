"""Where images come from: a reader per kind of --images, each of which yields image paths without reading the images.

A reader may be called several times, and yields the same images in the same order. To add a kind, write a generator of
`ImagePath`s and add it to READERS.
"""

import glob
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tood_jax.cli.prediction.image_search import SUFFIXES, FileSearch, LeftOutFiles
from tood_jax.config import ConfigError
from tood_jax.config.paths import expand_home
from tood_jax.data.errors import DataError
from tood_jax.data.formats.array_record import INDEX, ShardReader, open_records
from tood_jax.data.image_io import MAX_BYTES
from tood_jax.data.paths import ImagePath, as_path, is_file, is_remote, list_objects, local_copy
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import NotRegularError, file_kind

_OTHER_MEMBER = "members of tar files that are no images by their ending"


class Reader(NamedTuple):
    """A kind of --images."""

    matches: Callable[[str], bool]
    read: Callable[[str, FileSearch], Iterator[ImagePath]]  # raises DataError or OSError


class Images:
    """The images of --images in their order; each iteration finds them again, so that no list is kept.

    An image that several patterns match comes once.

    Args:
        patterns: values of --images.
        out: the output folder, whose files are left out.

    Raises:
        ConfigError: no pattern, or an empty one.
    """

    def __init__(self, patterns: Sequence[str], out: Path | None = None):
        if not patterns:
            raise ConfigError("name images: --images FILE_FOLDER_OR_GLOB …")
        if not all(patterns):
            raise ConfigError("--images is empty: name files, folders or globs.")
        self._patterns, self._out = patterns, out

    def find(self, left_out: LeftOutFiles | None = None) -> Iterator[ImagePath]:
        """Yield the images. Raises DataError if a pattern matches none, or its files cannot be read."""
        search = FileSearch(self._out, left_out)
        seen: set[str] | None = set() if len(self._patterns) > 1 else None
        for pattern in self._patterns:
            count = 0
            for path in self._read(pattern, search):
                count += 1
                if seen is not None:
                    if str(path) in seen:
                        continue
                    seen.add(str(path))
                yield path
            if not count:
                raise DataError(f"--images {printable(pattern)} has no images.")

    def _read(self, pattern: str, search: FileSearch) -> Iterator[ImagePath]:
        reader = next(one for one in READERS if one.matches(pattern))
        try:
            yield from reader.read(pattern, search)
        except OSError as error:
            raise DataError(f"--images {printable(pattern)} can't be read ({printable(error)}).") from None


# ---------------------------------------------------------------- text files with a list


def is_list(pattern: str) -> bool:
    return pattern.startswith("@") or (pattern.endswith(".txt") and not is_glob(pattern))


def read_list(pattern: str, search: FileSearch) -> Iterator[ImagePath]:
    """Yield the paths of a text file, one per line."""
    path = Path(expand_home(pattern.removeprefix("@")))
    if kind := file_kind(path):
        raise DataError(f"--images {printable(pattern)} is {kind}, not a file with a list of images.")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        yield from (as_path(line.strip()) for line in lines if line.strip())


# ---------------------------------------------------------------- tar files


@dataclass(frozen=True)
class TarMember:
    """The `ImagePath` of an image in an uncompressed tar file, which is not unpacked."""

    archive: str  # as it was named
    local: Path  # itself, or a copy
    member: str
    offset: int  # of the content in the file, bytes
    size: int

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name

    def read_bytes(self) -> bytes:
        if self.size > MAX_BYTES:
            raise NotRegularError(f"it has {self.size:,} bytes")
        with self.local.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise NotRegularError("the tar file ends inside it")
        return data

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"


def is_tar(pattern: str) -> bool:
    return pattern.endswith((".tar", ".tar.gz", ".tgz"))


def read_tar(pattern: str, search: FileSearch) -> Iterator[ImagePath]:
    """Yield the images of a tar file, or of each tar file of a glob, in their order in the file."""
    for file in sorted(glob.glob(pattern)) if is_glob(pattern) else [pattern]:
        local = local_copy(as_path(file))
        try:
            with tarfile.open(local, "r:") as tar:
                for member in tar:
                    if member.isreg() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                        yield TarMember(file, local, member.name, member.offset_data, member.size)
                    elif member.isreg():
                        search.left_out.add(_OTHER_MEMBER, f"{file}/{member.name}")
                    tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps every member
        except tarfile.TarError as error:
            raise DataError(
                f"--images {printable(file)} is no complete, uncompressed tar file ({printable(error)}): unpack it, or "
                "write it again without compression."
            ) from None


# ---------------------------------------------------------------- folders of records


@dataclass(frozen=True)
class RecordImage:
    """The `ImagePath` of a record, which is read when its name or content is asked for."""

    reader: ShardReader
    position: int
    folder: str

    @cached_property
    def _record(self) -> tuple[str, bytes]:
        try:
            return self.reader.record(self.position)
        except (OSError, RuntimeError, ValueError) as error:
            raise NotRegularError(f"record {self.position} of {self.folder} is damaged: {error}") from None

    @property
    def name(self) -> str:
        return PurePosixPath(self._record[0]).name

    def read_bytes(self) -> bytes:
        return self._record[1]

    def __str__(self) -> str:
        try:
            return f"{self.folder}/{self._record[0]}"
        except NotRegularError:
            return f"{self.folder}/{self.position}"


def is_records(pattern: str) -> bool:
    return not is_glob(pattern) and is_file(as_path(pattern) / INDEX)


def read_records(pattern: str, search: FileSearch) -> Iterator[ImagePath]:
    """Yield the images of a folder that `tood_jax.cli.to_array_record` wrote."""
    reader = open_records(pattern)
    yield from (RecordImage(reader, position, pattern) for position in range(len(reader)))


# ---------------------------------------------------------------- object stores


def is_address(pattern: str) -> bool:
    return is_remote(as_path(pattern))


def read_store(pattern: str, search: FileSearch) -> Iterator[ImagePath]:
    """Yield the objects of a path, folder or glob in an object store; a single object may have any ending."""
    for address in list_objects(pattern):
        path = as_path(address)
        if PurePosixPath(path.name).suffix.lower() in SUFFIXES or address == pattern:
            yield path


def is_glob(pattern: str) -> bool:
    """Return whether a pattern has wildcards and is not the name of a file."""
    return glob.has_magic(pattern) and not os.path.lexists(pattern)


READERS = (
    Reader(is_list, read_list),
    Reader(is_tar, read_tar),
    Reader(is_records, read_records),
    Reader(is_address, read_store),
    Reader(lambda _: True, lambda pattern, search: search.find(pattern)),
)
