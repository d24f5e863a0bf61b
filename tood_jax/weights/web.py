"""Files of web servers: downloaded once per machine, whole or not at all, and never run."""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from tood_jax.data.paths import cache_folder, exclusive_lock
from tood_jax.untrusted.file_kinds import unexpected_kind
from tood_jax.untrusted.printable import printable
from tood_jax.weights.fetched import Fetched, check_sha256, sha256_of
from tood_jax.weights.files import MAX_BYTES
from tood_jax.weights.mapping import WeightsError

_ATTEMPTS = 3
_SECONDS = 30.0  # that a server may be silent
_CHUNK = 1 << 20


class _BrokenTransferError(Exception):
    """A transfer that may succeed when it is repeated."""


def fetch(address: str, sha256: str | None) -> Fetched:
    """Return the local copy of a file, which is downloaded unless the cache has it with this checksum.

    Processes of one machine wait for each other, and the others find the file in the cache.

    Args:
        address: https:// or http://.
        sha256: the checksum that the file should have, if the caller knows it.

    Raises:
        WeightsError: in one sentence.
        DataError: there is no home folder for the cache.
    """
    name = re.sub(r"[^\w.-]", "_", address.partition("?")[0].rpartition("/")[2])[-100:]
    path = cache_folder() / "downloads" / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(path.with_name(f"{path.name}.lock")):
        if path.is_file() and sha256 in (None, digest := sha256_of(path)):
            return Fetched(path, digest, address, f"from the cache {path}")
        part = path.with_name(f".{path.name}.part")
        try:
            _download(address, part, is_checked=sha256 is not None)
            check_sha256(address, digest := sha256_of(part), sha256)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return Fetched(path, digest, address, f"downloaded, {path.stat().st_size:,} bytes")


def _download(address: str, target: Path, *, is_checked: bool) -> None:
    """Write the content of an address to a file. Raises WeightsError."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _transfer(address, target, is_checked)
        except _BrokenTransferError as error:
            if attempt == _ATTEMPTS:
                raise WeightsError(
                    f"{printable(address)}: the transfer broke {_ATTEMPTS} times ({printable(error)}): try again later."
                ) from None
        time.sleep(attempt)


def _transfer(address: str, target: Path, is_checked: bool) -> None:
    request = urllib.request.Request(address, headers={"User-Agent": "tood_jax"})
    try:
        response = urllib.request.urlopen(request, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise _BrokenTransferError(f"status {error.code}") from None
        raise WeightsError(f"{printable(address)}: {_describe_status(error.code)}.") from None
    except urllib.error.URLError as error:
        raise WeightsError(f"{printable(address)} can't be reached ({printable(error.reason)}).") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _BrokenTransferError(str(error) or type(error).__name__) from None
    with response, open(target, "wb") as file:
        if not (is_checked or response.url.startswith("https://")):
            raise WeightsError(
                f"{printable(address)} leads to {printable(response.url)}, which is not encrypted: add #sha256= and "
                "the checksum."
            )
        _copy(response, file, address)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, address: str) -> None:
    """Copy a response of bounded size, and check that it is whole and no page."""
    length = response.headers.get("Content-Length", "")
    expected = int(length) if length.isascii() and length.isdigit() else None
    written = 0
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenTransferError(str(error) or type(error).__name__) from None
        if not chunk:
            break
        if not written and (kind := unexpected_kind(chunk)):
            raise WeightsError(f"{printable(address)} is {kind}, not a file of weights.")
        written += len(chunk)
        if max(written, expected or 0) > MAX_BYTES:
            raise WeightsError(f"{printable(address)} has more than the {MAX_BYTES:,} bytes that a detector can have.")
        file.write(chunk)
    if expected not in (None, written):
        raise _BrokenTransferError(f"{written:,} of {expected:,} bytes arrived")


def _describe_status(code: int) -> str:
    texts = {401: "the server asks for a login", 403: "the server refuses access", 404: "there is no such file"}
    return f"{texts.get(code, 'the server refuses the request')} (status {code})"
