"""A lock on a run's folder for the life of the run, so that two runs never write to one folder.

The file `run.lock` names the run that works in the folder, and is empty while none does. Two mechanisms keep a second
run out, because neither works everywhere:

    flock      by the kernel: it ends with its process, also by kill -9. Some shared file systems do not have it (NFS
               without locks, Lustre), and on others it holds within one machine only.
    heartbeat  the file's time, renewed every few seconds. A lock of another machine without a heartbeat is free: that
               machine is lost. Only changes are compared, never clocks, so clocks may differ and jump.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tood_jax.data.temporary_files import is_running, machine_id
from tood_jax.distributed.signals import FOLDER_IN_USE, StatusError
from tood_jax.training.lock_file import (
    Holder,
    open_lock_file,
    parse_holder,
    read_lock_file,
    this_process,
    try_flock,
    unlock,
    write_lock_file,
)
from tood_jax.untrusted.terminal import print_warning

LOCK_FILE = "run.lock"
WAIT_SECONDS = "TOOD_LOCK_SECONDS"  # in the environment: how long a start waits for the run before it
_DEFAULT_WAIT = 60.0
_UNKNOWN = "another process"


class FolderInUseError(StatusError):
    """Another run holds the folder; the message names it."""

    status = FOLDER_IN_USE


@dataclass(frozen=True)
class Timing:
    """Intervals of the lock in seconds; only tests change them."""

    beat: float = 5.0
    """Between two heartbeats."""
    stale: float = 45.0
    """A lock of another machine is free after this time without a heartbeat."""
    settle: float = 1.0
    """Without flock, a lock is valid if no other process has taken it within this time."""
    poll: float = 0.5
    """Between two attempts of a start that waits."""


def read_wait(environment: Mapping[str, str] = os.environ) -> float:
    """Return how long a start waits for the run before it, seconds."""
    text = environment.get(WAIT_SECONDS, "")
    return float(text) if text.isdigit() else _DEFAULT_WAIT


class FolderLock:
    """Lock of a run's folder, held from `acquire` to `release`.

    Args:
        folder: of the run, created if missing.
        timing: intervals.
        on_lost: called in a background thread if another run has taken the lock over, because this process gave no
            heartbeat for a long time; the run must end at once, without saving.
    """

    def __init__(self, folder: Path, timing: Timing = Timing(), on_lost: Callable[[str], None] | None = None):
        self._folder = folder
        self._file = folder / LOCK_FILE
        self._timing = timing
        self._on_lost = on_lost
        self._descriptor: int | None = None
        self._own: bytes = b""  # content of the file while this process holds it; b"" if it could not be written
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, wait: float, log: Callable[[str], object], is_stopped: Callable[[], bool] = lambda: False) -> str:
        """Take the lock, waiting for its holder if there is one.

        Args:
            wait: seconds given to the holder to end.
            log: called with one message if there is a holder to wait for.
            is_stopped: ends the waiting early.

        Returns:
            "" once the lock is held, or a sentence that names the holder.

        Raises:
            OSError: the folder or the file cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = open_lock_file(self._file)
        deadline, is_announced, heartbeat = time.monotonic() + wait, False, _Heartbeat()
        while holder := self._try(self._descriptor, heartbeat):
            if not is_announced:
                log(f"{self._folder} is in use by {holder}; waiting for it to end, {wait:g} s at most.")
                is_announced = True
            # Another machine without a heartbeat so far may be lost: wait long enough to know.
            end = max(deadline, heartbeat.since + 1.5 * self._timing.stale) if heartbeat.is_undecided else deadline
            if time.monotonic() > end or is_stopped():
                self._close()
                return self._refusal(holder)
            time.sleep(self._timing.poll)
        self._thread = threading.Thread(target=self._beat, name="run.lock", daemon=True)
        self._thread.start()
        return ""

    def release(self) -> None:
        """Release the lock; without effect where it is not held."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(self._timing.beat)
            self._thread = None
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            if self._is_own():
                os.ftruncate(self._descriptor, 0)
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # which ends the flock too
            self._descriptor = None

    def _try(self, descriptor: int, heartbeat: "_Heartbeat") -> Holder | str | None:
        """Take the lock if it is free; otherwise return its holder."""
        is_locked = try_flock(descriptor)
        content, changed_at = read_lock_file(self._file)
        heartbeat.note((content, changed_at))
        holder = parse_holder(content)
        if is_locked is False:
            return holder or _UNKNOWN
        if content and not self._is_free(holder, is_locked is True, heartbeat):
            if is_locked:
                unlock(descriptor)
            return holder or _UNKNOWN
        self._own = this_process().to_bytes()
        try:
            write_lock_file(descriptor, self._own)
        except OSError as error:
            if not is_locked:
                raise OSError(error.errno, os.strerror(error.errno or 0), str(self._file)) from None
            self._own = b""  # a full disk: flock alone keeps others out
        if not is_locked:
            time.sleep(self._timing.settle)
            if not self._is_own():
                return self._current_holder()
        return None

    def _is_free(self, holder: Holder | None, is_locked: bool, heartbeat: "_Heartbeat") -> bool:
        """Return whether the process that the lock file names is gone."""
        this = machine_id()
        if holder is not None and holder.kernel == this[0] and is_locked:
            return True  # the kernel has released it
        if holder is not None and (holder.kernel, holder.pid_space) == this:
            return not is_running(holder.pid, holder.pid_began)
        heartbeat.is_undecided = not heartbeat.is_seen
        return time.monotonic() - heartbeat.since > self._timing.stale

    def _beat(self) -> None:
        while not self._ended.wait(self._timing.beat):
            with contextlib.suppress(OSError):  # a file system that is unavailable for a moment
                if not self._is_own():
                    if self._on_lost is not None:
                        self._on_lost(f"{self._folder} was taken over by {self._current_holder()}.")
                    return
                os.utime(self._descriptor if self._descriptor is not None else self._file)

    def _is_own(self) -> bool:
        return not self._own or read_lock_file(self._file)[0] == self._own

    def _current_holder(self) -> Holder | str:
        return parse_holder(read_lock_file(self._file)[0]) or _UNKNOWN

    def _refusal(self, holder: Holder | str) -> str:
        how = "Stop that run first"
        if isinstance(holder, Holder) and holder.host == socket.gethostname():
            how += f" (kill -TERM {holder.pid} saves and ends it)"
        return (
            f"{self._folder} is in use by another run ({holder}), and two runs would destroy each other's checkpoints. "
            f"{how}, or give this one a folder of its own with --train.workdir."
        )


class _Heartbeat:
    """Changes of a lock file, timed by this process's own clock.

    Attributes:
        since: when the file was first seen as it is.
        is_seen: the file has changed between two attempts.
        is_undecided: only a heartbeat could show whether the holder lives, and none was seen so far.
    """

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.is_seen = False
        self.is_undecided = False
        self._state: object = None

    def note(self, state: object) -> None:
        """Compare the file's state with that of the attempt before."""
        self.is_undecided = False
        if state != self._state:
            self.is_seen = self._state is not None
            self._state, self.since = state, time.monotonic()


@contextlib.contextmanager
def hold_folder(folder: Path, is_stopped: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold a run's folder in this context; of many processes only the primary does, for all of them.

    Args:
        is_stopped: ends the waiting for a former run.

    Raises:
        FolderInUseError: in all processes, if another run holds it.
    """
    from tood_jax.distributed.host_sync import (  # here, as it imports JAX: the lock itself does without
        broadcast_json,
        leave_last,
    )

    # Messages go to the terminal: the folder's log belongs to the run that holds it.
    lock = FolderLock(folder, on_lost=_end_without_saving)
    refusal = broadcast_json(lambda: lock.acquire(read_wait(), print_warning, is_stopped))
    if refusal:
        leave_last()
        raise FolderInUseError(refusal)
    try:
        yield
    finally:
        lock.release()


def _end_without_saving(text: str) -> None:
    print_warning(f"{text} This process ends without saving.")
    os._exit(FOLDER_IN_USE)
