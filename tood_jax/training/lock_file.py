"""The file `run.lock`: its content, and the lock of the kernel on it (flock)."""

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from tood_jax.data.temporary_files import machine_id, process_start
from tood_jax.untrusted.bounded_json import JsonError, as_integer, as_number, as_text, parse_json
from tood_jax.untrusted.printable import printable

_NO_FLOCK = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
_MAX_BYTES = 4096


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder, as its lock file describes it."""

    host: str
    pid: int
    since: str
    """Local time, for messages."""
    kernel: str
    """Identifies a running machine: flock is reliable within one."""
    pid_space: str
    """Process ids have the same meaning within one."""
    pid_began: float
    """Start of the process, which distinguishes it from a later one with the same id."""
    token: str
    """Unique for each lock taken."""

    def __str__(self) -> str:
        return f"process {self.pid} on {printable(self.host, 80)}, since {printable(self.since, 40)}"

    def to_bytes(self) -> bytes:
        """Return the content of the lock file."""
        return json.dumps(asdict(self)).encode()


def this_process() -> Holder:
    """Return this process as the holder of a new lock."""
    kernel, pid_space = machine_id()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    pid = os.getpid()
    return Holder(socket.gethostname(), pid, since, kernel, pid_space, process_start(pid), uuid.uuid4().hex)


def parse_holder(content: bytes) -> Holder | None:
    """Return the holder that a lock file names, None if it is empty or damaged."""
    try:
        fields = parse_json(content, _MAX_BYTES)
    except JsonError:
        return None
    if not isinstance(fields, dict):
        return None
    texts = {name: as_text(fields.get(name)) for name in ("host", "since", "kernel", "pid_space", "token")}
    pid, began = as_integer(fields.get("pid"), 1), as_number(fields.get("pid_began"))
    if pid is None or began is None or None in texts.values():
        return None
    return Holder(pid=pid, pid_began=began, **texts)  # type: ignore[arg-type]


def open_lock_file(file: Path) -> int:
    """Return a descriptor of the file, created if missing."""
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def read_lock_file(file: Path) -> tuple[bytes, int]:
    """Return content and time of the file, opened again: network file systems ask the server only then."""
    with open(file, "rb", buffering=0) as opened:
        return opened.read(_MAX_BYTES) or b"", os.fstat(opened.fileno()).st_mtime_ns


def write_lock_file(descriptor: int, content: bytes) -> None:
    """Replace the content, which is never empty meanwhile: an empty file is free."""
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))
    os.fsync(descriptor)


def try_flock(descriptor: int) -> bool | None:
    """Try to lock; False: another process has the lock, None: this file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def unlock(descriptor: int) -> None:
    """Release the lock of the kernel."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
