"""Weights by name: files of the Hugging Face Hub (hf://), of web servers (https://), and ImageNet backbones.

    hf://USER/REPO[@REVISION][/FILE]    without FILE the file of weights in the repository
    https://SERVER/…/FILE
    resnet50                            a key of `BACKBONES`, unless a file or folder has this name

`#sha256=HEX` may follow the first two. Downloaded files are kept in caches; they are read, and never run.
"""

import os
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote

from tood_jax.config.conversion import did_you_mean
from tood_jax.untrusted.printable import printable
from tood_jax.weights import hub, web
from tood_jax.weights.backbones import BACKBONES
from tood_jax.weights.fetched import Fetched
from tood_jax.weights.files import is_weights_file
from tood_jax.weights.mapping import WeightsError

_HUB_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.+))?")
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*")
_SHA256 = re.compile(r"sha256=([0-9a-f]{64})", re.IGNORECASE)


class RemoteName(NamedTuple):
    """The parts of the name of a remote file."""

    address: str  # without the checksum
    sha256: str | None
    repo: str = ""  # USER/REPO of hf://; the other parts are of hf://, too
    revision: str = "main"  # branch, tag or commit
    file: str | None = None


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Return whether a name is an address, or the short name of a backbone and of no local file or folder."""
    return "://" in str(name) or (str(name) in BACKBONES and not os.path.exists(name))


def parse_remote(name: str) -> RemoteName:
    """Return the parts of a name. Raises WeightsError if it has none of the forms above."""
    address, has_checksum, fragment = BACKBONES.get(name, name).partition("#")
    checksum = _SHA256.fullmatch(fragment)
    if has_checksum and checksum is None:
        raise WeightsError(f"{printable(name)}: after # only sha256= and 64 hexadecimal digits can follow.")
    sha256 = checksum[1].lower() if checksum else None
    if address.startswith("hf://"):
        match = _HUB_NAME.fullmatch(address.rstrip("/"))
        if match is None:
            raise WeightsError(f"{printable(name)} must have the form hf://USER/REPO or hf://USER/REPO@REVISION/FILE.")
        repo, revision, file = match[1], unquote(match[2] or "main"), match[3] and unquote(match[3])
        if not _REVISION.fullmatch(revision) or ".." in revision:
            raise WeightsError(f"{printable(name)}: {printable(revision)} is no name of a branch, tag or commit.")
        remote = RemoteName(address, sha256, repo, revision, file)
    elif address.startswith("https://") or (address.startswith("http://") and sha256):
        remote = RemoteName(address, sha256, file=address.partition("?")[0])
    elif address.startswith("http://"):
        raise WeightsError(f"{printable(name)} is not encrypted: use https://, or append #sha256= and the checksum.")
    else:
        raise WeightsError(f"{printable(name)} can't be downloaded: only hf:// and https:// can.")
    if remote.file is not None and not is_weights_file(remote.file):
        raise WeightsError(f"{printable(name)} must end in .pth, .pt or .safetensors.")
    return remote


def download(name: str, log: Callable[[str], object]) -> Fetched:
    """Return the local copy of a remote file of weights, which is downloaded unless a cache has it.

    Args:
        name: as `is_remote` describes it.
        log: called with a line that shows the commit and the checksum.

    Raises:
        WeightsError: the name is wrong, the server or the file can't be reached, the transfer breaks again and again,
            or the file has another checksum. The message is one sentence.
    """
    remote = parse_remote(name)
    if remote.repo:
        fetched = hub.fetch(remote.repo, remote.revision, remote.file, remote.sha256)
    else:
        fetched = web.fetch(remote.address, remote.sha256)
    log(f"{printable(name)}: {fetched.origin}, sha256 {fetched.sha256}")
    return fetched


def similar_backbone(name: str) -> str:
    """Return " Did you mean resnet50?" for a name that is similar to that of a backbone, else ""."""
    return did_you_mean(name, BACKBONES) if re.fullmatch(r"[\w-]+", name) else ""
