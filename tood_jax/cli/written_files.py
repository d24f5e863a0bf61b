"""Record which files of a folder a program wrote, so that it replaces only these and does not read them as inputs."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tood_jax.untrusted.bounded_json import JsonError, as_text, parse_json
from tood_jax.untrusted.regular_files import read_regular

MARKER = ".tood_jax_files.jsonl"
_MAX_MARKER_BYTES = 256 << 20
_MAX_FILE_BYTES = 2 << 30


class WrittenFiles:
    """The files of one folder that a program wrote, by name and hash; the folder holds a list of them.

    A file with another content is not one of them, even under the same name.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._hashes = _read_marker(folder / MARKER)

    def has(self, name: str) -> bool:
        """Return whether the folder has a file with this name and the content that was written."""
        path = self._folder / name
        if name not in self._hashes or path.is_symlink():
            return False
        try:
            return _hash(read_regular(path, _MAX_FILE_BYTES)) == self._hashes[name]
        except OSError:
            return False

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically, after adding it to the list."""
        self._list(name, _hash(data))
        self._replace(name, data)

    def move(self, name: str, path: Path) -> None:
        """Move a complete file of the same file system to the folder, after adding it to the list."""
        with path.open("rb") as file:
            self._list(name, hashlib.file_digest(file, _new_hash).hexdigest())
        os.replace(path, self._folder / name)

    def _list(self, name: str, digest: str) -> None:
        if self._hashes.get(name) != digest:
            with open(self._folder / MARKER, "a", encoding="utf-8") as marker:
                marker.write(json.dumps({"name": name, "hash": digest}) + "\n")
            self._hashes[name] = digest

    def _replace(self, name: str, data: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=".tood_jax.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(data)
            os.replace(temporary, self._folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _hash(data: bytes) -> str:
    return _new_hash(data).hexdigest()


def _new_hash(data: bytes = b"") -> Any:
    return hashlib.blake2b(data, digest_size=8)


def _read_marker(path: Path) -> dict[str, str]:
    """Return hashes by name; lines that a kill left incomplete are ignored."""
    try:
        lines = read_regular(path, _MAX_MARKER_BYTES).splitlines()
    except OSError:
        return {}
    hashes = {}
    for line in lines:
        try:
            row = parse_json(line, 1 << 16)
        except JsonError:
            continue
        name, digest = (as_text(row.get(key)) for key in ("name", "hash")) if isinstance(row, dict) else (None, None)
        if name and digest:
            hashes[name] = digest
    return hashes
