"""What the allocator of the C library does with memory that is freed, where the computing is done by CPUs."""

import ctypes
import importlib.util
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Freed memory stays with this process for its next use; to be called before JAX's first computation.

    XLA:CPU takes the temporaries of a step in one piece and frees them after it. glibc gives so large a piece back to
    the system at once, so that every page of it is cleared anew in each step: 12 % of a step of R50
    (docs/performance.md). Small and large pieces then share one heap, which a large piece that doesn't
    find its old place again can make larger.

    Returns whether it was done: not with another C library, nor where JAX may find a GPU or TPU, whose steps take no
    memory of the host.
    """
    return platform.libc_ver()[0] == "glibc" and _only_cpus() and _tell_malloc()


def _tell_malloc() -> bool:
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_ARENA_MAX, 1)])


def _only_cpus() -> bool:
    """By what JAX is told, else by what is installed beside it; looking at the devices would start them."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
