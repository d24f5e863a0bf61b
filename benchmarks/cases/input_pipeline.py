"""Measure the throughput of the input pipeline: decode, resize, flip, pad to the canvas; uint8 batches out.

    python -m benchmarks.cases.input_pipeline --threads 1 2 --workers 0 2

The images are 640 × 480 JPEGs of generated shapes, brought to 1067 × 800 pixels (short side 800) on an 800 × 1344
canvas. Each measurement is of a running pipeline, by a reader that does nothing else; `images_per_core_second` divides
by the processor time that this process and its workers took meanwhile.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness.input_throughput import measure_throughput
from benchmarks.harness.options import ROOT, Options, read_options
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import format_milliseconds, print_table
from tood_jax.config import SplitConfig
from tood_jax.data.dataset import Dataset
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.synthetic import ShapesConfig, write_shapes

NAME = "input_pipeline"


@dataclass(frozen=True)
class Args(Options):
    """Options of the case."""

    images: int = 64
    """Number of images that are generated, and timed in each round."""
    batch: int = 4
    """Images per batch."""
    threads: tuple[int, ...] = (1, 2)
    """Decoding threads per process; each number is measured with each number of workers."""
    workers: tuple[int, ...] = (0, 2)
    """Worker processes; 0 decodes in threads of this process."""
    size: tuple[int, int] = (640, 480)
    """Width and height of the JPEG files, pixels."""
    short_side: int = 800
    """Short side after resizing, pixels (the long side is at most 1333)."""
    canvas: tuple[int, int] = (800, 1344)
    """Height and width of the canvas, pixels."""
    folder: str = ""
    """Folder in which the images are generated and kept; empty means build/benchmark_images_…"""


def generated_set(args: Args) -> Dataset:
    """Return the images as a COCO set; the first call generates them, which takes some seconds."""
    width, height = args.size
    shapes = ShapesConfig(
        train_images=args.images, val_images=1, height=(height, height), width=(width, width), seed=args.seed
    )
    name = f"benchmark_images_{args.images}_{width}x{height}_{args.seed}"
    folder = args.folder or str(ROOT / "build" / name)
    write_shapes(folder, shapes)
    return load_coco(SplitConfig(f"{folder}/train", f"{folder}/annotations/instances_train.json"))


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Measure the throughput of the input pipeline.")
    report = begin_report(NAME, argv, args)
    dataset = generated_set(args)
    found = measure_throughput(
        dataset,
        [(threads, workers) for threads in args.threads for workers in args.workers],
        short_side=args.short_side,
        canvas=args.canvas,
        batch=args.batch,
        num_batches=max(1, args.images // args.batch),
        repeats=args.repeats,
        seed=args.seed,
    )
    results = [
        {
            "threads": throughput.threads,
            "workers": throughput.workers,
            "images_per_second": throughput.images_per_second,
            "images_per_core_second": throughput.images_per_core_second,
            "start_seconds": throughput.start_seconds,
            "seconds_an_image": throughput.seconds,
            "processor_seconds_an_image": throughput.processor_seconds,
            "canvas": throughput.canvas,
        }
        for throughput in found
    ]
    print_table(
        f"{args.size[0]} × {args.size[1]} JPEGs to {args.canvas[0]} × {args.canvas[1]}, batch {args.batch}",
        ["threads", "workers", "images/s", "ms an image: median (min–max)", "images/s a core", "first batch, s"],
        [
            [
                *(throughput.threads, throughput.workers, throughput.images_per_second),
                *(format_milliseconds(throughput.seconds), throughput.images_per_core_second, throughput.start_seconds),
            ]
            for throughput in found
        ],
    )
    file_bytes = [len(record.path.read_bytes()) for record in dataset.images]
    return finish_report(report, args, mean_file_bytes=sum(file_bytes) / len(file_bytes), results=results)


if __name__ == "__main__":
    main()
