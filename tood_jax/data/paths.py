"""Where data lies: on this machine or in an object store (gs://, s3://, az://, hf://), through etils.epath.

An image's path is anything with a `name`, `read_bytes()` and a text that tells where it is: a file, an object of a
store, or a record of a shard (`records.py`, `tfds.py`).
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from tood_jax.data.errors import DataError

# Where TensorFlow is installed, epath would load it for gs://; fsspec does the same without its gigabyte.
os.environ.setdefault("EPATH_USE_TF", "false")

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}  # that fsspec needs for a store
_CHUNK = 8 * 2**20  # bytes copied at a time


class ImagePath(Protocol):
    """What holds one encoded image."""

    @property
    def name(self) -> str:
        """The file's name without its folder."""

    def read_bytes(self) -> bytes:
        """The encoded image. Raises OSError."""


def as_path(text: str | os.PathLike[str]) -> Any:
    """A `pathlib.Path` for a path of this machine (file:// too), an `epath.Path` for one of an object store.

    Raises DataError for another kind of address.
    """
    address = os.fspath(text)
    scheme, separator, rest = address.partition("://")
    if not separator:
        return Path(address)
    if scheme == "file":
        return Path(rest)
    if scheme not in _PACKAGES:
        known = ", ".join(f"{one}://" for one in ("file", *_PACKAGES))
        raise DataError(f"{address} begins with {scheme}://, which can't be read; give a local path, or {known}.")
    from etils import epath

    return epath.Path(address)


def is_remote(path: Any) -> bool:
    """Whether a path that `as_path` made lies in an object store."""
    return not isinstance(path, Path)


def is_file(path: Any) -> bool:
    """Whether there is such a file. Raises DataError if its store can't be asked."""
    return bool(path.is_file()) if isinstance(path, Path) else bool(_ask(path, path.is_file))


def is_folder(path: Any) -> bool:
    """Whether there is such a folder. Raises DataError if its store can't be asked."""
    return bool(path.is_dir()) if isinstance(path, Path) else bool(_ask(path, path.is_dir))


def read_bytes(path: ImagePath) -> bytes:
    """The content of a file, object or record.

    Raises:
        OSError: it can't be read, whatever error its store or format has for that.
        DataError: the package for its store is missing.
    """
    return _ask(path, path.read_bytes)


def local_copy(path: Any, size: int | None = None, again: bool = False) -> Path:
    """A file of an object store, copied into the cache of this machine, once; a local one is returned as it is.

    Record shards are read at random places by a library that opens local files only.

    Args:
        size: bytes that the file must have; a copy of another size is made again.
        again: copy even if there is a copy of this size.

    Raises DataError if the copy hasn't that size, OSError if it can't be made.
    """
    if not is_remote(path):
        return path
    address = os.fspath(path)
    folder = cache_folder() / "objects" / hashlib.sha256(os.path.dirname(address).encode()).hexdigest()[:16]
    copy = folder / path.name
    wanted = _ask(path, path.stat).length if size is None else size
    if not again and copy.is_file() and copy.stat().st_size == wanted:
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise DataError(
            f"{address} has {wanted:,} bytes, but only {free:,} are free in {folder}, where shards are kept: make "
            "room, or set XDG_CACHE_HOME to a folder on a larger disk."
        )
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        _ask(path, lambda: _download(path, temporary, wanted))
        os.replace(temporary, copy)
    finally:
        temporary.unlink(missing_ok=True)
    if copy.stat().st_size != wanted:
        found = copy.stat().st_size
        copy.unlink()
        raise DataError(f"{address} should have {wanted:,} bytes and has {found:,}: write it again.")
    return copy


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/tood_jax, or ~/.cache/tood_jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tood_jax"


def _download(path: Any, target: Path, size: int) -> None:
    progress = tqdm(total=size, desc=f"copying {path.name}", unit="B", unit_scale=True, disable=None, leave=False)
    with progress, path.open("rb") as source, target.open("wb") as sink:
        while chunk := source.read(_CHUNK):
            sink.write(chunk)
            progress.update(len(chunk))


def _ask(path: Any, question: Any) -> Any:
    """The answer of a store, its library's own errors turned into OSError."""
    try:
        return question()
    except (OSError, DataError):
        raise
    except ImportError as error:
        package = _PACKAGES.get(str(path).partition("://")[0], "the package it names")
        raise DataError(
            f"{path} can't be opened, for a package is missing ({error}): pip install {package}, or copy the data to "
            "a local disk."
        ) from None
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
