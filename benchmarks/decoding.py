"""Processor time an image: decoders, where the bytes come from, threads and workers; and the cores that a chip needs.

    python -m benchmarks.decoding --photographs ../shared/data/bccd/train

Photographs of 640 × 480 (given, or else generated) are brought to 1067 × 800 on an 800 × 1344 canvas: as they are, with
grain until a file weighs as much as COCO's do on average, and enlarged to 12 megapixels. The decoders that aren't
installed are left out (`pip install simplejpeg PyTurboJPEG`; the latter needs the system's libturbojpeg). Processor
time, not the clock, is the measure, for it hardly depends on what else the machine does; `load_average` is told.
"""

import contextlib
import functools
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import Options, Report, Row, begin_report, finish_report, ms, print_table, read_options, spread
from benchmarks.input_pipeline import measure
from tood_jax.ahead_of_time.chips import CHIPS
from tood_jax.config import DataConfig
from tood_jax.data.coco import ClassInfo, CocoSet, ImageRecord, LoadReport
from tood_jax.data.decode import decode_image
from tood_jax.data.records import load_records, write_records
from tood_jax.data.synthetic import ShapesConfig, draw_image
from tood_jax.data.transforms import resize, resized_size

NAME = "decoding"
COCO_BYTES = 162_000  # a file of train2017: 19.2 GB in 118,287 files
Decoder = Callable[["Memory", tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class Args(Options):
    """Of the benchmark."""

    images: int = 32
    """Images a source and round (a quarter as many of 12 megapixels)."""
    photographs: str = ""
    """Folder of JPEGs; empty means generated images."""
    short_side: int = 800
    """Short side after resizing, pixels (the long side is at most 1333)."""
    canvas: tuple[int, int] = (800, 1344)
    """Height and width of the canvas, pixels."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of the pipeline, without workers."""
    workers: tuple[int, ...] = (1, 2)
    """Worker processes of the pipeline, a thread each."""
    tflop_an_image: float = 1.2
    """Of a training step of TOOD-R50 at 800 × 1344."""
    share_of_peak: float = 0.37
    """Of a chip's bfloat16 peak that training reaches: NVIDIA's tuned RetinaNet on H200, 300 images/s."""


@dataclass(frozen=True)
class Memory:
    """An encoded image in memory, as a path, and its (height, width)."""

    data: bytes
    size: tuple[int, int]
    name: str = "memory"

    def read_bytes(self) -> bytes:
        return self.data


def decoders() -> dict[str, Decoder]:
    """Those that are installed: an encoded image and the size that is needed to [h, w, 3] uint8 RGB."""
    found: dict[str, Decoder] = {
        "cv2 (used here)": lambda image, need: decode_image(image, image.size),
        "cv2, scaled (data.scaled_decoding)": lambda image, need: decode_image(image, image.size, need),
    }
    with contextlib.suppress(ImportError):
        import simplejpeg

        fast = functools.partial(simplejpeg.decode_jpeg, fastdct=True, fastupsample=True)
        found["simplejpeg"] = lambda image, need: simplejpeg.decode_jpeg(image.data)
        found["simplejpeg, fast and rough"] = lambda image, need: fast(image.data)
        found["simplejpeg, scaled"] = lambda image, need: simplejpeg.decode_jpeg(
            image.data, min_height=need[0], min_width=need[1], min_factor=2
        )
    with contextlib.suppress(ImportError, RuntimeError):
        from turbojpeg import TJPF_RGB, TurboJPEG

        turbo = TurboJPEG()
        found["PyTurboJPEG"] = lambda image, need: turbo.decode(image.data, pixel_format=TJPF_RGB)
    with contextlib.suppress(ImportError):
        from PIL import Image

        def pillow(image: Memory, need: tuple[int, int] | None) -> np.ndarray:
            opened = Image.open(io.BytesIO(image.data))
            if need is not None:
                opened.draft("RGB", need[::-1])
            return np.asarray(opened.convert("RGB"))

        found["Pillow"] = lambda image, need: pillow(image, None)
        found["Pillow, scaled (draft)"] = pillow
    return found


# images


def photographs(args: Args) -> list[np.ndarray]:
    """The 640 × 480 images, RGB."""
    if args.photographs:
        files = sorted(Path(args.photographs).glob("*.jpg"))[: args.images]
        if not files:
            raise SystemExit(f"--photographs={args.photographs} holds no .jpg.")
        return [decode_image(file) for file in files]
    shapes = ShapesConfig(height=(480, 480), width=(640, 640), seed=args.seed)
    return [draw_image(shapes, 0, number)[0] for number in range(args.images)]


def encoded(images: Sequence[np.ndarray], grain: float, seed: int) -> list[Memory]:
    """As JPEGs of quality 92, with so much noise."""
    rng = np.random.default_rng(seed)
    found = []
    for image in images:
        noisy = np.clip(image + rng.normal(0, grain, image.shape), 0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
        found.append(Memory(data, (image.shape[0], image.shape[1])))
    return found


def as_heavy_as_coco(images: Sequence[np.ndarray], seed: int) -> list[Memory]:
    """With the grain that makes the first few weigh `COCO_BYTES` on average."""
    low, high = 0.0, 40.0
    for _ in range(7):
        middle = (low + high) / 2
        weight = np.mean([len(one.data) for one in encoded(images[:4], middle, seed)])
        low, high = (middle, high) if weight < COCO_BYTES else (low, middle)
    return encoded(images, low, seed)


# measuring


def on_canvas(image: np.ndarray, size: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """Resized and padded."""
    batch = np.zeros((*canvas, 3), np.uint8)
    batch[: size[0], : size[1]] = resize(image, size)
    return batch


def compare_decoders(source: str, images: Sequence[Memory], args: Args) -> list[Row]:
    """Processor milliseconds of decoding alone and of the whole, and how far the pixels are from ours."""
    cases = decoders()
    need = [resized_size(*one.size, args.short_side, 1333) for one in images]
    ours = [on_canvas(decode_image(one, one.size), size, args.canvas) for one, size in zip(images, need, strict=True)]
    decoding: dict[str, list[float]] = {name: [] for name in cases}
    whole: dict[str, list[float]] = {name: [] for name in cases}
    differences: dict[str, float] = {}
    for turn in range(1 + args.repeats):
        for name, decode in cases.items():
            start = time.process_time()
            decoded = [decode(one, size) for one, size in zip(images, need, strict=True)]
            middle = time.process_time()
            placed = [on_canvas(one, size, args.canvas) for one, size in zip(decoded, need, strict=True)]
            end = time.process_time()
            if turn == 0:  # to warm up, and to look at the pixels
                parts = [np.abs(a.astype(np.int16) - b).mean() for a, b in zip(ours, placed, strict=True)]
                differences[name] = float(np.mean(parts))
                continue
            decoding[name].append((middle - start) / len(images))
            whole[name].append((end - start) / len(images))
    return [
        {
            "source": source,
            "decoder": name,
            "mean_file_bytes": float(np.mean([len(one.data) for one in images])),
            "decoding": spread(decoding[name]),
            "whole": spread(whole[name]),
            "images_per_core_second": 1 / spread(whole[name])["median_seconds"],
            "mean_difference": differences[name],
        }
        for name in cases
    ]


def write_files(images: Sequence[Memory], folder: Path) -> CocoSet:
    """The images as files, without objects."""
    folder.mkdir()
    records = []
    for number, one in enumerate(images):
        path = folder / f"{number:04d}.jpg"
        path.write_bytes(one.data)
        no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
        records.append(ImageRecord(number, path, one.size[1], one.size[0], no_boxes, no_labels))
    return CocoSet((ClassInfo(1, "thing"),), tuple(records), LoadReport(), ())


def compare_places(dataset: CocoSet, folder: Path, repeats: int) -> list[Row]:
    """Processor milliseconds to get an image's bytes from its file (in the page cache) and from a record."""
    tree = dataset.ground_truth()
    names = [(one.path.name, one.path) for one in dataset.images]
    write_records(json.dumps(tree).encode(), names, folder, 2, lambda count: None)
    places = {"file": dataset, "ArrayRecord": load_records(str(folder))}
    seconds: dict[str, list[float]] = {name: [] for name in places}
    for turn in range(1 + repeats):
        for name, one in places.items():
            start = time.process_time()
            for record in one.images:
                record.path.read_bytes()
            if turn:
                seconds[name].append((time.process_time() - start) / len(one.images))
    return [{"place": name, "reading": spread(found)} for name, found in seconds.items()]


def handing_over(canvas: tuple[int, int], repeats: int) -> Row:
    """Processor milliseconds an image that Grain's way from a worker process takes: into fresh shared memory."""
    images = np.zeros((4, *canvas, 3), np.uint8)
    seconds = []
    for _ in range(1 + repeats):
        start = time.process_time()
        memory = shared_memory.SharedMemory(create=True, size=images.nbytes)
        np.ndarray(images.shape, images.dtype, buffer=memory.buf)[:] = images
        memory.close()
        memory.unlink()
        seconds.append((time.process_time() - start) / len(images))
    return {"place": "a worker process, by shared memory (an image on its canvas)", "reading": spread(seconds[1:])}


def compare_pipelines(dataset: CocoSet, args: Args) -> list[Row]:
    """The whole pipeline by threads and workers: by the clock, and in processor time an image."""
    cases = [(threads, 0) for threads in args.threads] + [(1, workers) for workers in args.workers]
    rounds: dict[tuple[int, int], list[dict[str, Any]]] = {case: [] for case in cases}
    batch = 4
    count = max(1, 2 * args.images // batch)  # processor time of workers is told in hundredths of a second
    for _ in range(args.repeats):
        for threads, workers in cases:
            data = DataConfig(
                train_short_side=(args.short_side, args.short_side),
                buckets=(args.canvas,),
                threads=threads,
                workers=workers,
                prefetch_batches=2,
            )
            rounds[threads, workers].append(measure(dataset, data, batch, count, args.seed))
    rows = []
    for (threads, workers), found in rounds.items():
        clock = spread([one["seconds"] / (count * batch) for one in found])
        processor = spread([one["processor_seconds"] / (count * batch) for one in found])
        rows.append(
            {
                "threads": threads,
                "workers": workers,
                "clock": clock,
                "processor": processor,
                "images_per_second": 1 / clock["median_seconds"],
                "images_per_core_second": 1 / processor["median_seconds"],
            }
        )
    return rows


def cores_needed(pipelines: Sequence[Row], args: Args) -> list[Row]:
    """For every chip: images a second that it trains on, and cores that deliver them by threads and by workers.

    By this rule an H200 takes 305; NVIDIA's submission, which the share comes from, reached 301.
    """
    rows = []
    for chip in CHIPS.values():
        rate = args.share_of_peak * chip.bfloat16 / (args.tflop_an_image * 1e12)
        row: Row = {"chip": chip.name, "images_per_second": rate}
        for kind in ("threads", "workers"):
            found = [one["images_per_core_second"] for one in pipelines if (one["workers"] > 0) == (kind == "workers")]
            row[f"cores_by_{kind}"] = rate / min(found) if found else None
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Decoders, and cores that a chip needs.")
    report = begin_report(NAME, argv, args)
    pictures = photographs(args)
    few = [cv2.resize(one, (4000, 3000), interpolation=cv2.INTER_CUBIC) for one in pictures[: max(1, args.images // 4)]]
    heavy = as_heavy_as_coco(pictures, args.seed)
    sources = {
        "640 × 480 as they are": encoded(pictures, 0, args.seed),
        "640 × 480, as heavy as COCO's": heavy,
        "4000 × 3000": encoded(few, 2, args.seed),
    }
    del few
    results = [row for name, images in sources.items() for row in compare_decoders(name, images, args)]
    print_table(
        f"Processor time of one image to {args.canvas[0]} × {args.canvas[1]}, one thread",
        ["source", "kB", "decoder", "decoding, ms", "with resize and pad, ms", "images/s a core", "mean difference"],
        [
            [
                row["source"],
                row["mean_file_bytes"] / 1000,
                row["decoder"],
                ms(row["decoding"]),
                ms(row["whole"]),
                row["images_per_core_second"],
                row["mean_difference"],
            ]
            for row in results
        ],
    )
    with tempfile.TemporaryDirectory() as name:
        dataset = write_files(heavy, Path(name) / "images")
        places = compare_places(dataset, Path(name) / "records", args.repeats)
        places.append(handing_over(args.canvas, args.repeats))
        pipelines = compare_pipelines(dataset, args)
    print_table("Getting the bytes", ["from", "ms"], [[row["place"], ms(row["reading"])] for row in places])
    print_table(
        "The pipeline, files as heavy as COCO's",
        ["threads", "workers", "images/s by the clock", "processor ms an image", "images/s a core"],
        [
            [
                row["threads"],
                row["workers"],
                row["images_per_second"],
                ms(row["processor"]),
                row["images_per_core_second"],
            ]
            for row in pipelines
        ],
    )
    cores = cores_needed(pipelines, args)
    columns = ("chip", "images_per_second", "cores_by_threads", "cores_by_workers")
    print_table(
        f"Cores that feed a chip at {args.share_of_peak:.0%} of its peak, {args.tflop_an_image:g} TFLOP an image",
        ["chip", "images/s", "cores, by threads", "cores, by workers"],
        [[row[column] for column in columns] for row in cores],
    )
    return finish_report(report, args, results=results, places=places, pipelines=pipelines, cores=cores)


if __name__ == "__main__":
    main()
