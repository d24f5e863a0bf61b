"""Throughput of the package's input pipeline for several numbers of threads and workers."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.harness.timing import timing_summary
from tood_jax.config import DataConfig
from tood_jax.data.dataset import Dataset
from tood_jax.data.loader import train_batches


@dataclass(frozen=True)
class Throughput:
    """Throughput of the pipeline with some threads and workers; durations are per image."""

    threads: int
    workers: int
    seconds: dict[str, Any]  # `timing_summary` of the wall time
    processor_seconds: dict[str, Any]  # `timing_summary` of the processor time of this process and its workers
    start_seconds: float  # to the first batch, median
    canvas: list[int]  # height and width

    @property
    def images_per_second(self) -> float:
        return 1 / self.seconds["median_seconds"]

    @property
    def images_per_core_second(self) -> float:
        return 1 / max(self.processor_seconds["median_seconds"], 1e-9)


def measure_throughput(
    dataset: Dataset,
    threads_and_workers: Sequence[tuple[int, int]],
    *,
    short_side: int,
    canvas: tuple[int, int],
    batch: int,
    num_batches: int,
    repeats: int,
    seed: int,
) -> list[Throughput]:
    """Measure the pipeline with each number of threads and workers; each round starts all of them once.

    Args:
        short_side: short side of an image after resizing, pixels.
        canvas: height and width, pixels.
        num_batches: timed batches in each round.
    """
    rounds: dict[tuple[int, int], list[dict[str, Any]]] = {variant: [] for variant in threads_and_workers}
    for _ in range(repeats):
        for threads, workers in rounds:
            data = DataConfig(
                train_short_side=(short_side, short_side),
                buckets=(canvas,),
                threads=threads,
                workers=workers,
                prefetch_batches=2,
            )
            rounds[threads, workers].append(_measure(dataset, data, batch, num_batches, seed))
    images = batch * num_batches
    return [
        Throughput(
            threads,
            workers,
            timing_summary([measurement["seconds"] / images for measurement in found]),
            timing_summary([measurement["processor_seconds"] / images for measurement in found]),
            timing_summary([measurement["start_seconds"] for measurement in found])["median_seconds"],
            found[0]["canvas"],
        )
        for (threads, workers), found in rounds.items()
    ]


def _measure(dataset: Dataset, data: DataConfig, batch: int, num_batches: int, seed: int) -> dict[str, Any]:
    """Start a pipeline, let it warm up, and time `num_batches` batches.

    At the end of the measurement as many batches are being prepared as at its beginning.
    """
    warmup_batches = 2 + data.workers
    start = time.perf_counter()
    batches = train_batches(
        dataset,
        data,
        batch_size=batch,
        seed=seed,
        start_step=0,
        num_steps=warmup_batches + num_batches + 2 * data.prefetch_batches * max(1, data.workers),
    )
    with contextlib.closing(batches):
        first = next(batches)
        start_seconds = time.perf_counter() - start
        for _ in range(warmup_batches - 1):
            next(batches)
        start, processor = time.perf_counter(), _processor_seconds()
        for _ in range(num_batches):
            next(batches)
        seconds, processor = time.perf_counter() - start, _processor_seconds() - processor
    return {
        "start_seconds": start_seconds,
        "seconds": seconds,
        "processor_seconds": processor,
        "canvas": list(first.images.shape[1:3]),
    }


def _processor_seconds() -> float:
    """Return the processor time of this process and its living children so far."""
    this_process = psutil.Process()
    total = 0.0
    for process in [this_process, *this_process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total
