"""Interleaved timing of several variants."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

PAUSE_SECONDS = 0.05  # before each run, see `time_interleaved`
SHORT_SECONDS = 1.0  # a variant that takes less is warmed up before each run


def time_interleaved(variants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Time each variant. A round runs all variants once, so that a busy moment of the machine affects all of them.

    Threads of a variant, above all OpenMP's, wait for more work in a busy loop, which takes a core from the next
    variant. Therefore a pause precedes each run. During the pause threads fall asleep and caches are lost, so a variant
    that takes less than SHORT_SECONDS first runs untimed for as long as the pause.

    Args:
        variants: functions that start the work and return its arrays, which are waited for.
        repeats: timed rounds, after one whose time is reported separately.

    Returns:
        For each variant `timing_summary` of its timed rounds, and `first_seconds`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(1 + repeats):
        for name, run in variants.items():
            time.sleep(PAUSE_SECONDS)
            until = time.perf_counter() + PAUSE_SECONDS
            while seconds[name] and seconds[name][0] < SHORT_SECONDS and time.perf_counter() < until:
                jax.block_until_ready(run())
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: {"first_seconds": found[0], **timing_summary(found[1:])} for name, found in seconds.items()}


def timing_summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Return median, extremes and quartiles of some durations, and the durations themselves."""
    low, quarter, median, three_quarters, high = np.percentile(seconds, [0, 25, 50, 75, 100]).tolist()
    return {
        "median_seconds": median,
        "min_seconds": low,
        "max_seconds": high,
        "quartile_seconds": [quarter, three_quarters],
        "all_seconds": list(seconds),
    }
