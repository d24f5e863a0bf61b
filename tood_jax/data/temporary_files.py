"""Names of temporary files and shared memory that identify their process, and removal of those of dead processes.

A killed process cannot remove its files. Their names contain its machine, id and start time, so that the next run on
this machine can remove them.
"""

import contextlib
import functools
import os
import re
import socket
import sys
import tempfile
import uuid
import zlib
from multiprocessing import shared_memory
from pathlib import Path

import psutil

_NAME = re.compile(r"tood_jax-([0-9a-f]{8})-(\d{1,10})-(\d{1,20})-")
_SHARED_MEMORY = Path("/dev/shm")  # on Linux


@functools.cache
def machine_id() -> tuple[str, str]:
    """Return identifiers of the running kernel and of its namespace of process ids (each container has its own)."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        kernel = f"{socket.gethostname()}-{uuid.getnode()}"
    try:
        return kernel, os.readlink("/proc/self/ns/pid")
    except OSError:
        return kernel, socket.gethostname()


def process_start(pid: int) -> float:
    """Return the start time of a process: ticks since boot on Linux, because clocks may change, elsewhere Unix time.

    Raises:
        psutil.Error: the process does not exist.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
    except OSError:
        return psutil.Process(pid).create_time()
    return float(after_name.split()[19])


def is_running(pid: int, start: float) -> bool:
    """Return whether the process that had this id and this `process_start` is still running."""
    try:
        return int(process_start(pid)) == int(start) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def owner_prefix() -> str:
    """Return the prefix for names of this process's temporary files."""
    return f"tood_jax-{_machine_checksum()}-{os.getpid()}-{int(process_start(os.getpid()))}-"


def set_shared_memory_prefix(prefix: str) -> None:
    """Set the prefix of the names of shared memory that this process creates; only Linux allows such long names."""
    if sys.platform.startswith("linux") and hasattr(shared_memory, "_SHM_NAME_PREFIX"):
        shared_memory._SHM_NAME_PREFIX = f"/{prefix}"
        shared_memory._SHM_SAFE_NAME_LENGTH = len(prefix) + 17  # type: ignore[attr-defined]


def remove_stale_files() -> list[Path]:
    """Remove shared memory and temporary files of dead processes of this machine, and return their paths."""
    removed = []
    for folder in (_SHARED_MEMORY, Path(tempfile.gettempdir())):
        for file in folder.glob("tood_jax-*"):
            if _is_stale(file.name):
                with contextlib.suppress(OSError):  # it belongs to another user
                    file.unlink()
                    removed.append(file)
    return removed


def _is_stale(name: str) -> bool:
    match = _NAME.match(name)
    if match is None or match[1] != _machine_checksum():
        return False
    return not is_running(int(match[2]), int(match[3]))


def _machine_checksum() -> str:
    return f"{zlib.crc32(' '.join(machine_id()).encode()):08x}"
