"""What every program does first to its own process, and messages about its environment."""

import contextlib
import os
import traceback
from pathlib import Path

from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import prepare_streams

_MAX_OPEN_FILES = 65_536


def prepare_process() -> None:
    """Make output safe on any terminal, and raise the limit of open files: records may have many shards."""
    prepare_streams()
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on every system

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = min(hard, _MAX_OPEN_FILES) if hard != resource.RLIM_INFINITY else _MAX_OPEN_FILES
        if soft != resource.RLIM_INFINITY and soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def compilation_cache_folder(given: str | None) -> str | None:
    """Return the folder for compiled programs: `given`, or one in the home folder; None if neither exists."""
    if given is not None:
        return os.path.expanduser(given)
    try:
        return str(Path.home() / ".cache" / "tood_jax")
    except RuntimeError:  # an unknown user without HOME
        return None


def missing_backend_message(error: BaseException) -> str:
    """Return a sentence if JAX does not have the platform of JAX_PLATFORMS; "" for other errors."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    frames = traceback.extract_tb(error.__traceback__)
    if not platforms or not frames or not frames[-1].filename.endswith("xla_bridge.py"):  # also an AssertionError
        return ""
    package = {"cuda": "jax[cuda12]", "gpu": "jax[cuda12]", "tpu": "jax[tpu]"}.get(platforms.split(",")[0])
    install = f"check that this machine has such a device and run pip install '{package}', or " if package else ""
    return (
        f"JAX_PLATFORMS={printable(platforms)} names a platform that JAX does not find on this machine: {install}unset "
        "JAX_PLATFORMS to use what JAX finds."
    )
