"""Time and memory of the first time that a piece of work runs."""

import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import psutil

from benchmarks.task import Run

SAMPLE_SECONDS = 0.002  # between looks at the process's memory


def first_run(run: Run, device_peak: Callable[[], int | None]) -> dict[str, Any]:
    """Seconds of the first run (ours is compiled before; a peer compiles in it), and the memory that it took."""
    process, stop, peak = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    device_peak()
    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    jax.block_until_ready(run())
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    on_device = device_peak()
    grown = max(0, peak[0] - before) if on_device is None else on_device
    return {"first_run_seconds": seconds, "grown_bytes": grown}
