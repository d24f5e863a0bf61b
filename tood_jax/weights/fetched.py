"""A downloaded file and its checksum."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from tood_jax.untrusted.printable import printable
from tood_jax.weights.mapping import WeightsError


class Fetched(NamedTuple):
    """The local copy of a remote file."""

    path: Path
    sha256: str  # of the local copy, in hexadecimal digits
    address: str  # with the commit of the repository, if it has one; without a checksum
    origin: str  # for the log: the commit, or whether it came from the cache

    @property
    def exact_name(self) -> str:
        """Name of these bytes: every process that downloads it gets the same."""
        return f"{self.address}#sha256={self.sha256}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(address: str, found: str, expected: str | None) -> None:
    """Raise WeightsError if a file has another checksum than the expected one, which may be None."""
    if expected not in (None, found):
        raise WeightsError(f"{printable(address)} is refused: its SHA-256 is {found}, not {expected}.")
