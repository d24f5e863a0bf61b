"""Paths of data on this machine or in an object store (gs://, s3://, az://, hf://), through etils.epath.

The path of an image is any object with `name`, `read_bytes()` and a text that says where it is: a file, an object of a
store, or a record of a shard (`formats/array_record.py`, `formats/tfds.py`).
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from tood_jax.data.errors import DataError
from tood_jax.untrusted.regular_files import MAX_BYTES, read_regular

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}  # that fsspec needs for a store
_CHUNK = 8 * 2**20  # bytes copied at a time
_MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EACCES, errno.ETIMEDOUT)


class ImagePath(Protocol):
    """A path to one encoded image."""

    @property
    def name(self) -> str:
        """The name of the file without its folder."""

    def read_bytes(self) -> bytes:
        """Return the encoded image. Raises OSError."""


def as_path(text: str | os.PathLike[str]) -> Any:
    """Return a `pathlib.Path` for a path on this machine (also file://), an `epath.Path` for one in an object store.

    Raises:
        DataError: the address has another scheme.
    """
    address = os.fspath(text)
    scheme, separator, rest = address.partition("://")
    if not separator:
        return Path(address)
    if scheme == "file":
        return Path(rest)
    if scheme not in _PACKAGES:
        known = ", ".join(f"{name}://" for name in ("file", *_PACKAGES))
        raise DataError(f"{address} begins with {scheme}://, which can't be read; give a local path, or {known}.")
    # With TensorFlow installed, epath would load it for gs://; fsspec does the same without it. Workers inherit this.
    os.environ.setdefault("EPATH_USE_TF", "false")
    from etils import epath

    return epath.Path(address)


def is_remote(path: Any) -> bool:
    """Return whether a path of `as_path` lies in an object store."""
    return not isinstance(path, Path)


def is_file(path: Any) -> bool:
    """Return whether the file exists. Raises DataError if the package for its store is missing."""
    return bool(path.is_file()) if isinstance(path, Path) else bool(_call_store(path, path.is_file))


def is_folder(path: Any) -> bool:
    """Return whether the folder exists. Raises DataError if the package for its store is missing."""
    return bool(path.is_dir()) if isinstance(path, Path) else bool(_call_store(path, path.is_dir))


def list_objects(address: str) -> list[str]:
    """Return the addresses of the objects that match a glob in a store, or that lie in a folder, sorted.

    Raises:
        OSError: the store can't be read.
        DataError: the package for it is missing.
    """

    def find() -> list[str]:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(address)  # epath has no "**"
        names = system.glob(path) if glob.has_magic(path) else system.find(path)
        return sorted(f"{address.partition('://')[0]}://{name.lstrip('/')}" for name in names)

    found: list[str] = _call_store(address, find)
    return found


def read_bytes(path: ImagePath, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file, an object or a record.

    Args:
        max_bytes: longer local files are refused.

    Raises:
        OSError: the path cannot be read (errors of stores and formats are converted); NotRegularError for a folder,
            FIFO, device or socket.
        DataError: the package for its store is missing.
    """
    if isinstance(path, Path):
        return read_regular(path, max_bytes)
    return _call_store(path, path.read_bytes)


def local_copy(path: Any, size: int | None = None, refresh: bool = False) -> Path:
    """Return a copy of a stored file in the cache of this machine, made once; a local path is returned as it is.

    Shards need a copy, because the library that reads their records at random positions opens local files only.

    Args:
        size: bytes that the file must have; a copy of another size is replaced.
        refresh: also replace a copy of this size.

    Raises:
        DataError: the file has another size, or the disk is full.
        OSError: the file cannot be copied.
    """
    if not is_remote(path):
        return path
    address = os.fspath(path)
    folder = cache_folder() / "objects" / hashlib.sha256(os.path.dirname(address).encode()).hexdigest()[:16]
    copy = folder / path.name
    expected = _call_store(path, path.stat).length if size is None else size
    if not refresh and copy.is_file() and copy.stat().st_size == expected:
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / f".{path.name}.lock"):
        if refresh or not (copy.is_file() and copy.stat().st_size == expected):  # another process may have made it
            _copy_object(path, copy, expected)
    return copy


def _copy_object(path: Any, copy: Path, expected: int) -> None:
    """Copy an object of `expected` bytes; the file appears only when it is complete."""
    address, folder = os.fspath(path), copy.parent
    free = shutil.disk_usage(folder).free
    if free < expected:
        raise DataError(
            f"{address} has {expected:,} bytes, but only {free:,} are free in {folder}, where shards are kept: "
            "free disk space, or set XDG_CACHE_HOME to a folder on a larger disk."
        )
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        _call_store(path, lambda: _download(path, temporary, expected))
        os.replace(temporary, copy)
    finally:
        temporary.unlink(missing_ok=True)
    if copy.stat().st_size != expected:
        found = copy.stat().st_size
        copy.unlink()
        raise DataError(f"{address} should have {expected:,} bytes but has {found:,}: write it again.")


@contextmanager
def exclusive_lock(file: Path) -> Iterator[None]:
    """Hold a lock among the processes of this machine; the system releases it when a process dies.

    On a file system without locks, processes do not wait for each other.
    """
    with file.open("ab") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/tood_jax, or ~/.cache/tood_jax. Raises DataError if neither can be determined."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "tood_jax"
    except RuntimeError:  # an unknown user without HOME
        raise DataError(
            "There is no home folder for copies of stored data: set XDG_CACHE_HOME to a writable folder."
        ) from None


def _download(path: Any, target: Path, size: int) -> None:
    progress = tqdm(total=size, desc=f"copying {path.name}", unit="B", unit_scale=True, disable=None, leave=False)
    with progress, path.open("rb") as source, target.open("wb") as sink:
        while chunk := source.read(_CHUNK):
            sink.write(chunk)
            progress.update(len(chunk))


def _call_store(path: Any, call: Callable[[], Any]) -> Any:
    """Return the result of a call to an object store, with its library's own errors converted to OSError."""
    try:
        return call()
    except (OSError, DataError):
        raise
    except ImportError as error:
        package = _PACKAGES.get(str(path).partition("://")[0], "the package it names")
        raise DataError(
            f"{path} can't be opened, because a package is missing ({error}): pip install {package}, or copy the data "
            "to a local disk."
        ) from None
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        number = next((number for number in _MACHINE_ERRORS if os.strerror(number) in text), None)
        raise (OSError(text) if number is None else OSError(number, text)) from error
