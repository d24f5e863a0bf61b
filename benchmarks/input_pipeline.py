"""Images a second that the input pipeline delivers: decode, resize, flip, pad to the canvas; uint8 batches out.

    python -m benchmarks.input_pipeline --threads 1 2 --workers 0 2

The images are 640 × 480 JPEGs of generated shapes, brought to 1067 × 800 pixels (short side 800) on an 800 × 1344
canvas. Every case is read from a running pipeline, between two moments in its middle, by a reader that does nothing
else; `images_per_core_second` divides by the processor time that this process and its workers took meanwhile.
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import (
    ROOT,
    Options,
    Report,
    begin_report,
    finish_report,
    ms,
    print_table,
    read_options,
    spread,
)
from tood_jax.config import DataConfig, SplitConfig
from tood_jax.data.coco import CocoSet, load_coco
from tood_jax.data.pipeline import train_batches
from tood_jax.data.synthetic import ShapesConfig, write_shapes

NAME = "input_pipeline"


@dataclass(frozen=True)
class Args(Options):
    """Of the benchmark."""

    images: int = 64
    """Images generated, and timed in each round."""
    batch: int = 4
    """Images a batch."""
    threads: tuple[int, ...] = (1, 2)
    """Decoding threads a process; every number is measured with every number of workers."""
    workers: tuple[int, ...] = (0, 2)
    """Worker processes; 0 decodes in threads of this process."""
    size: tuple[int, int] = (640, 480)
    """Width and height of the JPEG files, pixels."""
    short_side: int = 800
    """Short side after resizing, pixels (the long side is at most 1333)."""
    canvas: tuple[int, int] = (800, 1344)
    """Height and width of the canvas, pixels."""
    folder: str = ""
    """Where the images are generated and kept; empty means build/benchmark_images_…"""


def generated_set(args: Args) -> CocoSet:
    """The images as a COCO set; made at the first call, which takes some seconds."""
    width, height = args.size
    shapes = ShapesConfig(
        train_images=args.images, val_images=1, height=(height, height), width=(width, width), seed=args.seed
    )
    name = f"benchmark_images_{args.images}_{width}x{height}_{args.seed}"
    folder = args.folder or str(ROOT / "build" / name)
    write_shapes(folder, shapes)
    return load_coco(SplitConfig(f"{folder}/train", f"{folder}/annotations/instances_train.json"))


def processor_seconds() -> float:
    """Processor time of this process and its living children so far."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def measure(dataset: CocoSet, data: DataConfig, batch: int, num_batches: int, seed: int) -> dict[str, Any]:
    """Start a pipeline, let it run in, and time `num_batches` batches; as much is under way at the end as at first."""
    run_in = 2 + data.workers
    start = time.perf_counter()
    batches = train_batches(
        dataset,
        data,
        batch_size=batch,
        seed=seed,
        start_step=0,
        num_steps=run_in + num_batches + 2 * data.prefetch_batches * max(1, data.workers),
    )
    with contextlib.closing(batches):
        first = next(batches)
        start_seconds = time.perf_counter() - start
        for _ in range(run_in - 1):
            next(batches)
        start, processor = time.perf_counter(), processor_seconds()
        for _ in range(num_batches):
            next(batches)
        seconds, processor = time.perf_counter() - start, processor_seconds() - processor
    return {
        "start_seconds": start_seconds,
        "seconds": seconds,
        "processor_seconds": processor,
        "canvas": list(first.images.shape[1:3]),
    }


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Images a second of the input pipeline.")
    report = begin_report(NAME, argv, args)
    dataset = generated_set(args)
    num_batches = max(1, args.images // args.batch)
    cases = {
        (threads, workers): DataConfig(
            train_short_side=(args.short_side, args.short_side),
            buckets=(args.canvas,),
            threads=threads,
            workers=workers,
            prefetch_batches=2,
        )
        for threads in args.threads
        for workers in args.workers
    }
    rounds: dict[tuple[int, int], list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(args.repeats):  # every round starts each pipeline anew, one after the other
        for case, data in cases.items():
            rounds[case].append(measure(dataset, data, args.batch, num_batches, args.seed))

    images, results = num_batches * args.batch, []
    for (threads, workers), found in rounds.items():
        timing = spread([one["seconds"] / images for one in found])  # an image
        processor = spread([one["processor_seconds"] / images for one in found])
        results.append(
            {
                "threads": threads,
                "workers": workers,
                "images_per_second": 1 / timing["median_seconds"],
                "images_per_core_second": 1 / max(processor["median_seconds"], 1e-9),
                "start_seconds": spread([one["start_seconds"] for one in found])["median_seconds"],
                "seconds_an_image": timing,
                "processor_seconds_an_image": processor,
                "canvas": found[0]["canvas"],
            }
        )
    print_table(
        f"{args.size[0]} × {args.size[1]} JPEGs to {args.canvas[0]} × {args.canvas[1]}, batch {args.batch}",
        ["threads", "workers", "images/s", "ms an image: median (min–max)", "images/s a core", "first batch, s"],
        [
            [
                r["threads"],
                r["workers"],
                r["images_per_second"],
                ms(r["seconds_an_image"]),
                r["images_per_core_second"],
                r["start_seconds"],
            ]
            for r in results
        ],
    )
    file_bytes = [Path(record.path).stat().st_size for record in dataset.images]
    return finish_report(report, args, mean_file_bytes=sum(file_bytes) / len(file_bytes), results=results)


if __name__ == "__main__":
    main()
