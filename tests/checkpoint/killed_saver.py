"""Saves checkpoints in children that kill themselves (SIGKILL) at a chosen point; run by test_interrupted_saves.py.

    python -m tests.checkpoint.killed_saver FOLDER POINT …

For each POINT a child works in FOLDER/POINT, where the checkpoint of step 1 lies, and saves `STATES`. A point is
`events-K`: before the K-th change that Python makes below the folder (Python's audit hooks see every open for writing,
mkdir, rename and removal, in all threads); or `bytes-N`: as soon as N bytes lie below it (TensorStore's C++ writes the
arrays unseen by Python); or `never`. FOLDER/POINT.done gets a line for each save that ended, and of `never` the number
of changes as the last line.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np

from tood_jax.checkpoint.store import CheckpointStore

STATES = [(1, 10), (2, 20), (2, 21), (3, 30), (4, 40)]  # (step, seed); the first is there, the third replaces one
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def make_state(seed: int) -> dict:
    random = np.random.default_rng(seed)
    return {"w": random.standard_normal(50_000).astype(np.float32), "n": np.full(3, seed)}


def save_all(folder: Path, states: list[tuple[int, int]], done: Path) -> None:
    with CheckpointStore(folder, 2, lambda text: None) as store:
        for step, seed in states:
            store.save(step, make_state(seed), {"seed": seed})
            store.wait()
            with open(done, "a") as out:
                out.write(f"{seed}\n")


class _Killer:
    """Counts the changes, and kills at the given one."""

    def __init__(self, folder: Path, at: int | None):
        self.folder, self.at, self.count = str(folder), at, 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _FOR_WRITING):
            try:
                path = os.fsdecode(arguments[0])
            except TypeError:  # an open file's number
                return
            if path.startswith(self.folder) and not path.endswith(".done"):
                self.count += 1
                if self.count == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at_size(folder: Path, size: int) -> None:
    while True:
        total = 0
        for place, _, names in os.walk(folder):
            for name in names:
                try:
                    total += os.stat(f"{place}/{name}").st_size
                except OSError:
                    continue
        if total >= size:
            os.kill(os.getpid(), signal.SIGKILL)


def _work(folder: Path, point: str) -> None:
    kind, _, number = point.partition("-")
    killer = _Killer(folder, int(number) if kind == "events" else None)
    if kind == "bytes":
        threading.Thread(target=_kill_at_size, args=(folder, int(number)), daemon=True).start()
    sys.addaudithook(killer)
    done = folder.with_name(f"{point}.done")
    save_all(folder, STATES[1:], done)
    count = killer.count
    with open(done, "a") as out:
        out.write(f"{count}\n")


def main() -> None:
    root = Path(sys.argv[1])
    for point in sys.argv[2:]:
        child = os.fork()  # before JAX has a backend, and so before it has threads
        if not child:
            try:
                _work(root / point, point)
            finally:
                sys.stdout.flush()
                os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
