"""Memory of this process and of its devices, and the time and memory of a first run."""

import platform
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import psutil

SAMPLE_SECONDS = 0.002  # between two readings of the process's memory


def process_memory() -> dict[str, int | None]:
    """Return the peaks of this process so far: resident memory, compiling included, and that of the fullest device."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if found and "peak_bytes_in_use" in found]
    return {"peak_resident_bytes": peak_resident_bytes(), "peak_device_bytes": max(peaks, default=None)}


def peak_resident_bytes() -> int | None:
    """Return the largest resident memory of this process so far; None on Windows."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def measure_first_run(run: Callable[[], object], peak_device_bytes: Callable[[], int | None]) -> dict[str, Any]:
    """Run a function for the first time; return its seconds and the memory that it took.

    tood_jax is compiled before; a peer that compiles does so in this run.

    Args:
        run: starts the work and returns its arrays.
        peak_device_bytes: returns the largest device memory since its last call; None where only the process's memory
            is known, whose growth is reported then.
    """
    process, stop, peak = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    peak_device_bytes()
    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    jax.block_until_ready(run())
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    on_device = peak_device_bytes()
    grown = max(0, peak[0] - before) if on_device is None else on_device
    return {"first_run_seconds": seconds, "grown_bytes": grown}
