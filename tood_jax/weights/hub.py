"""The Hugging Face Hub, through huggingface_hub with its cache, login and environment (HF_ENDPOINT, HF_HUB_OFFLINE, …).

huggingface_hub is imported when it is needed: it is an optional package.
"""

import contextlib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from tood_jax.files import write_atomically
from tood_jax.untrusted.printable import printable
from tood_jax.weights.fetched import Fetched, check_sha256, sha256_of
from tood_jax.weights.files import MAX_BYTES, is_weights_file
from tood_jax.weights.mapping import WeightsError

STANDARD_FILE = "model.safetensors"
"""Name of the weights in repositories of timm, of transformers and of this package."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ATTEMPTS = 3
_SECONDS = 30.0  # that the Hub may be silent
_MAX_NAMES = 20  # in a message


class Listing(NamedTuple):
    """The files of one commit."""

    commit: str
    files: Mapping[str, str | None]  # SHA-256 of each file, where it is known
    sizes: Mapping[str, int | None] = {}  # bytes
    is_offline: bool = False  # the Hub could not be reached, and these are the files of the cache


def fetch(repo: str, revision: str, file: str | None, sha256: str | None) -> Fetched:
    """Return the local copy of a file in a repository.

    Args:
        repo: USER/REPO.
        revision: branch, tag or commit.
        file: its name in the repository; None for the file of weights.
        sha256: the checksum that the file should have, if the caller knows it. A file of the cache with a checksum and
            a commit as revision is used without a request.

    Raises:
        WeightsError: in one sentence.
    """
    if file and sha256 and _COMMIT.fullmatch(revision) and (_cache_of(repo) / "snapshots" / revision / file).is_file():
        listing = Listing(revision, {file: None})
    else:
        listing = _list_files(repo, revision)
    file = file or _choose_weights(listing.files, f"{repo} at {revision}")
    if file not in listing.files:
        raise WeightsError(f"{repo} has no file {printable(file)} at {revision}; it has {_join(listing.files)}.")
    if (size := listing.sizes.get(file) or 0) > MAX_BYTES:
        raise WeightsError(f"{repo}/{file} has {size:,} bytes, more than the {MAX_BYTES:,} that a detector can have.")
    path, commit = _download(repo, listing.commit, file, listing.files[file]), listing.commit
    if revision != commit and not listing.is_offline:
        with contextlib.suppress(OSError):  # a cache may be read-only
            write_atomically(_cache_of(repo) / "refs" / revision, commit.encode())  # for `_list_cache`
    check_sha256(f"hf://{repo}/{file}", digest := sha256_of(path), sha256)
    source = ", from the cache because there is no connection" if listing.is_offline else ""
    return Fetched(path, digest, f"hf://{repo}@{commit}/{quote(file)}", f"revision {commit}, {file}{source}")


def _list_files(repo: str, revision: str) -> Listing:
    """Return the files of the newest commit of a revision, by the Hub or without a connection by the cache."""
    hub = import_hub()
    with explain_errors(repo, revision):
        try:
            api = hub.HfApi(library_name="tood_jax")
            info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_SECONDS)
        except (hub.errors.HTTPError, hub.errors.OfflineModeIsEnabled) as error:
            if isinstance(error, hub.errors.HfHubHTTPError) or (cached := _list_cache(repo, revision)) is None:
                raise
            return cached
    if not _COMMIT.fullmatch(info.sha or ""):
        raise WeightsError(f"{hub.constants.ENDPOINT} names no commit of {repo} at {printable(revision)}.")
    files = {one.rfilename: one.lfs.sha256 if one.lfs else None for one in info.siblings or ()}
    return Listing(info.sha, files, {one.rfilename: one.size for one in info.siblings or ()})


def _cache_of(repo: str) -> Path:
    """Return the folder of a repository in the cache of huggingface_hub, which documents its layout."""
    return Path(import_hub().constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _list_cache(repo: str, revision: str) -> Listing | None:
    """Return the files of a revision that the cache has; None if it has none."""
    folder, commit = _cache_of(repo), revision
    with contextlib.suppress(OSError):
        commit = (folder / "refs" / revision).read_text()
    snapshot = folder / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        return None
    files = [path.relative_to(snapshot).as_posix() for path in sorted(snapshot.rglob("*")) if path.is_file()]
    return Listing(commit, dict.fromkeys(files), is_offline=True)


def _choose_weights(names: Mapping[str, object], where: str) -> str:
    """Return model.safetensors, or the only .safetensors, or the only other file of weights. Raises WeightsError."""
    candidates = [name for name in names if is_weights_file(name)]
    if STANDARD_FILE in candidates:
        return STANDARD_FILE
    safetensors = [name for name in candidates if name.endswith(".safetensors")]
    chosen = safetensors or candidates
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise WeightsError(f"{where} has no file of weights (.safetensors, .pth, .pt); it has {_join(names)}.")
    raise WeightsError(f"{where} has several files of weights: append one of {_join([f'/{name}' for name in chosen])}.")


def _download(repo: str, revision: str, file: str, sha256: str | None) -> Path:
    """Return the path in the cache of huggingface_hub, which locks the file while it is downloaded.

    Args:
        sha256: the checksum by the Hub, if it is known.
    """
    hub = import_hub()
    for attempt in range(_ATTEMPTS):
        with explain_errors(repo, revision, file):
            try:
                path = Path(hub.hf_hub_download(repo, file, revision=revision, force_download=attempt > 0))
            except OSError as error:
                if "Consistency check failed" not in str(error):  # its words for an incomplete transfer
                    raise
                continue
        if sha256 is None or sha256_of(path) == sha256:
            return path
    raise WeightsError(f"hf://{repo}/{file}: the transfer broke {_ATTEMPTS} times: try again later.")


def upload(repo: str, files: Mapping[str, Path], *, is_private: bool, revision: str, message: str) -> str:
    """Upload files as one commit, and return its address.

    Args:
        repo: USER/REPO, created if missing.
        files: local files by their names in the repository.
        is_private: whether a new repository is private; an existing one must be.
        revision: a branch, created if missing; "" for the default branch.
        message: first line of the commit.

    Raises:
        WeightsError: in one sentence. Without a commit nothing of the repository has changed.
    """
    hub = import_hub()
    with explain_errors(repo, revision):
        api = hub.HfApi(library_name="tood_jax")
        api.create_repo(repo, private=is_private or None, exist_ok=True)
        if is_private and not api.model_info(repo).private:
            raise WeightsError(f"{repo} exists and is public, so nothing was uploaded: name another repository.")
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations = [hub.CommitOperationAdd(name, path) for name, path in files.items()]
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision or None)
        return str(commit.commit_url)


def import_hub() -> Any:
    """Return huggingface_hub with its modules errors and constants. Raises WeightsError if it is missing."""
    try:
        for module in ("errors", "constants"):  # its __init__ does not
            importlib.import_module(f"huggingface_hub.{module}")
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise WeightsError(
            "Names of the Hugging Face Hub (hf://, resnet50) need the package huggingface_hub: "
            "pip install 'huggingface_hub>=2,<3'."
        ) from None


@contextlib.contextmanager
def explain_errors(repo: str, revision: str, file: str = "") -> Iterator[None]:
    """Raise the errors of huggingface_hub as WeightsError of one sentence; those of the local disk stay."""
    errors = import_hub().errors
    known = (ValueError, errors.HTTPError, errors.OfflineModeIsEnabled, errors.EntryNotFoundError)
    try:
        yield
    except known as error:
        raise WeightsError(_explain(error, repo, revision, file)) from None
    except RuntimeError as error:  # by which huggingface_hub reports a failed upload of one file
        if not isinstance(error.__cause__, errors.HTTPError):
            raise
        raise WeightsError(f"{printable(error)} {_explain(error.__cause__, repo, revision, file)}") from None


def _explain(error: Any, repo: str, revision: str, file: str) -> str:
    hub = import_hub()
    errors, endpoint = hub.errors, hub.constants.ENDPOINT
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, ValueError) and not isinstance(error, errors.HTTPError):  # a name, or an answer
        return f"{printable(repo)} can't be used: {printable(error)}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: accept its conditions at {endpoint}/{repo}, and {login}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no branch, tag or commit {printable(revision)}."
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{repo} has no file {printable(file)} at {printable(revision or 'main')}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no repository {repo} at {endpoint}, or it is private: check the name, or {login}."
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"{endpoint} refuses access to {repo} (status {status}): {login}."
        advice = printable(error.server_message or "try again later")
        return f"{endpoint} answers with status {status} for {repo}: {advice}."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repo} is not in the cache {hub.constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it."
    return (
        f"{endpoint} can't be reached ({printable(error.__cause__ or error)}), and {repo} is not in the cache "
        f"{hub.constants.HF_HUB_CACHE}: check the connection."
    )


def _join(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else ""
    return printable(", ".join(listed[:_MAX_NAMES]) or "no files", 2000) + more
