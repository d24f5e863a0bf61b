"""Measure the processor time per image of decoders and of the pipeline, and the CPU cores that a chip needs.

    python -m benchmarks.cases.image_decoding --photographs ../shared/data/bccd/train

Photographs of 640 × 480 (given, or else generated) are resized to 1067 × 800 on an 800 × 1344 canvas: unchanged, with
noise that makes a file as large as COCO's are on average, and enlarged to 12 megapixels. Decoders that are not
installed are left out (`pip install simplejpeg PyTurboJPEG`; the latter needs the system's libturbojpeg). Processor
time is measured instead of wall time, because it hardly depends on other work of the machine; the report has
`load_average`.
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

import cv2
import numpy as np

from benchmarks.harness.input_throughput import Throughput, measure_throughput
from benchmarks.harness.options import Options, read_options
from benchmarks.harness.report import Report, Row, begin_report, finish_report
from benchmarks.harness.tables import format_milliseconds, print_table
from benchmarks.harness.timing import timing_summary
from tood_jax.data.dataset import AnnotatedImage, ClassInfo, Dataset
from tood_jax.data.formats.array_record import load_array_record, write_array_record
from tood_jax.data.image_io import decode_image
from tood_jax.data.load_report import LoadReport
from tood_jax.data.synthetic import ShapesConfig, draw_image
from tood_jax.data.transforms import resize, resized_size
from tood_jax.tools.compile_for.chips import CHIPS

NAME = "image_decoding"
COCO_BYTES = 162_000  # a file of train2017: 19.2 GB in 118,287 files
Decoder = Callable[["EncodedImage", tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class Args(Options):
    """Options of the case."""

    images: int = 32
    """Images of each source in each round (a quarter as many of 12 megapixels)."""
    photographs: str = ""
    """Folder of JPEGs; empty means generated images."""
    short_side: int = 800
    """Short side after resizing, pixels (the long side is at most 1333)."""
    canvas: tuple[int, int] = (800, 1344)
    """Height and width of the canvas, pixels."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of the pipeline, without workers."""
    workers: tuple[int, ...] = (1, 2)
    """Worker processes of the pipeline, with one thread each."""
    tflop_an_image: float = 1.2
    """TFLOP per image of a training step of TOOD-R50 at 800 × 1344."""
    share_of_peak: float = 0.37
    """Share of a chip's bfloat16 peak that training reaches: NVIDIA's tuned RetinaNet on H200, 300 images/s."""


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image in memory, with the interface of a path, and its (height, width)."""

    data: bytes
    size: tuple[int, int]
    name: str = "memory"

    def read_bytes(self) -> bytes:
        return self.data


def decoders() -> dict[str, Decoder]:
    """Return the installed decoders by name: (encoded image, size that is needed) to [h, w, 3] uint8 RGB."""
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

        def pillow(image: EncodedImage, need: tuple[int, int] | None) -> np.ndarray:
            opened = Image.open(io.BytesIO(image.data))
            if need is not None:
                opened.draft("RGB", need[::-1])
            return np.asarray(opened.convert("RGB"))

        found["Pillow"] = lambda image, need: pillow(image, None)
        found["Pillow, scaled (draft)"] = pillow
    return found


def photographs(args: Args) -> list[np.ndarray]:
    """Return the 640 × 480 images, RGB."""
    if args.photographs:
        files = sorted(Path(args.photographs).glob("*.jpg"))[: args.images]
        if not files:
            raise SystemExit(f"--photographs={args.photographs} contains no .jpg file.")
        return [decode_image(file) for file in files]
    shapes = ShapesConfig(height=(480, 480), width=(640, 640), seed=args.seed)
    return [draw_image(shapes, 0, number)[0] for number in range(args.images)]


def encode(images: Sequence[np.ndarray], noise: float, seed: int) -> list[EncodedImage]:
    """Encode images as JPEGs of quality 92, after adding normal noise of a standard deviation (of 255)."""
    rng = np.random.default_rng(seed)
    found = []
    for image in images:
        noisy = np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
        found.append(EncodedImage(data, (image.shape[0], image.shape[1])))
    return found


def encode_at_coco_size(images: Sequence[np.ndarray], seed: int) -> list[EncodedImage]:
    """Encode images with the noise that makes files of the first four `COCO_BYTES` large on average."""
    low, high = 0.0, 40.0
    for _ in range(7):
        middle = (low + high) / 2
        size = np.mean([len(image.data) for image in encode(images[:4], middle, seed)])
        low, high = (middle, high) if size < COCO_BYTES else (low, middle)
    return encode(images, low, seed)


def fit_into_canvas(image: np.ndarray, size: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """Resize an image and pad it to the canvas."""
    padded = np.zeros((*canvas, 3), np.uint8)
    padded[: size[0], : size[1]] = resize(image, size)
    return padded


def compare_decoders(source: str, images: Sequence[EncodedImage], args: Args) -> list[Row]:
    """Measure the processor time of decoding alone and with resizing, and how far the pixels are from tood_jax's."""
    variants = decoders()
    need = [resized_size(*image.size, args.short_side, 1333) for image in images]
    expected = [
        fit_into_canvas(decode_image(image, image.size), size, args.canvas)
        for image, size in zip(images, need, strict=True)
    ]
    decoding: dict[str, list[float]] = {name: [] for name in variants}
    whole: dict[str, list[float]] = {name: [] for name in variants}
    differences: dict[str, float] = {}
    for round_index in range(1 + args.repeats):
        for name, decode in variants.items():
            start = time.process_time()
            decoded = [decode(image, size) for image, size in zip(images, need, strict=True)]
            middle = time.process_time()
            padded = [fit_into_canvas(image, size, args.canvas) for image, size in zip(decoded, need, strict=True)]
            end = time.process_time()
            if round_index == 0:  # warms up, and compares the pixels
                parts = [np.abs(a.astype(np.int16) - b).mean() for a, b in zip(expected, padded, strict=True)]
                differences[name] = float(np.mean(parts))
                continue
            decoding[name].append((middle - start) / len(images))
            whole[name].append((end - start) / len(images))
    return [
        {
            "source": source,
            "decoder": name,
            "mean_file_bytes": float(np.mean([len(image.data) for image in images])),
            "decoding": timing_summary(decoding[name]),
            "whole": timing_summary(whole[name]),
            "images_per_core_second": 1 / timing_summary(whole[name])["median_seconds"],
            "mean_difference": differences[name],
        }
        for name in variants
    ]


def write_files(images: Sequence[EncodedImage], folder: Path) -> Dataset:
    """Write the images as files of a set without objects."""
    folder.mkdir()
    records = []
    for number, image in enumerate(images):
        path = folder / f"{number:04d}.jpg"
        path.write_bytes(image.data)
        no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
        records.append(AnnotatedImage(number, path, image.size[1], image.size[0], no_boxes, no_labels))
    return Dataset((ClassInfo(1, "thing"),), tuple(records), LoadReport(), ())


def compare_storage(dataset: Dataset, folder: Path, repeats: int) -> list[Row]:
    """Measure the processor time to read an image's bytes from its file (in the page cache) and from an ArrayRecord."""
    tree = dataset.ground_truth()
    names = [(record.path.name, record.path) for record in dataset.images]
    write_array_record(json.dumps(tree).encode(), names, folder, 2, lambda count: None)
    sources = {"file": dataset, "ArrayRecord": load_array_record(str(folder))}
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for round_index in range(1 + repeats):
        for name, source in sources.items():
            start = time.process_time()
            for record in source.images:
                record.path.read_bytes()
            if round_index:
                seconds[name].append((time.process_time() - start) / len(source.images))
    return [{"place": name, "reading": timing_summary(found)} for name, found in seconds.items()]


def measure_worker_transfer(canvas: tuple[int, int], repeats: int) -> Row:
    """Measure the processor time per image of Grain's transfer from a worker process: into new shared memory."""
    images = np.zeros((4, *canvas, 3), np.uint8)
    seconds = []
    for _ in range(1 + repeats):
        start = time.process_time()
        memory = shared_memory.SharedMemory(create=True, size=images.nbytes)
        np.ndarray(images.shape, images.dtype, buffer=memory.buf)[:] = images
        memory.close()
        memory.unlink()
        seconds.append((time.process_time() - start) / len(images))
    return {
        "place": "a worker process, by shared memory (an image on its canvas)",
        "reading": timing_summary(seconds[1:]),
    }


def measure_pipelines(dataset: Dataset, args: Args) -> list[Throughput]:
    """Measure the whole pipeline with several numbers of threads and of workers."""
    batch = 4
    return measure_throughput(
        dataset,
        [(threads, 0) for threads in args.threads] + [(1, workers) for workers in args.workers],
        short_side=args.short_side,
        canvas=args.canvas,
        batch=batch,
        num_batches=max(1, 2 * args.images // batch),  # the system reports workers' processor time in 0.01 s
        repeats=args.repeats,
        seed=args.seed,
    )


def cores_needed(pipelines: Sequence[Throughput], args: Args) -> list[Row]:
    """Return for each chip the images/s that it trains on, and the CPU cores that deliver them by threads or workers.

    By this rule an H200 takes 305; NVIDIA's submission, which the share comes from, reached 301.
    """
    rows = []
    for chip in CHIPS.values():
        rate = args.share_of_peak * chip.bfloat16 / (args.tflop_an_image * 1e12)
        row: Row = {"chip": chip.name, "images_per_second": rate}
        for kind in ("threads", "workers"):
            found = [
                pipeline.images_per_core_second
                for pipeline in pipelines
                if (pipeline.workers > 0) == (kind == "workers")
            ]
            row[f"cores_by_{kind}"] = rate / min(found) if found else None
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Decoders, and cores that a chip needs.")
    report = begin_report(NAME, argv, args)
    images = photographs(args)
    few = [
        cv2.resize(image, (4000, 3000), interpolation=cv2.INTER_CUBIC) for image in images[: max(1, args.images // 4)]
    ]
    at_coco_size = encode_at_coco_size(images, args.seed)
    sources = {
        "640 × 480 as they are": encode(images, 0, args.seed),
        "640 × 480, as heavy as COCO's": at_coco_size,
        "4000 × 3000": encode(few, 2, args.seed),
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
                format_milliseconds(row["decoding"]),
                format_milliseconds(row["whole"]),
                row["images_per_core_second"],
                row["mean_difference"],
            ]
            for row in results
        ],
    )
    with tempfile.TemporaryDirectory() as name:
        dataset = write_files(at_coco_size, Path(name) / "images")
        storage = compare_storage(dataset, Path(name) / "records", args.repeats)
        storage.append(measure_worker_transfer(args.canvas, args.repeats))
        pipelines = measure_pipelines(dataset, args)
    print_table(
        "Getting the bytes", ["from", "ms"], [[row["place"], format_milliseconds(row["reading"])] for row in storage]
    )
    print_table(
        "The pipeline, files as heavy as COCO's",
        ["threads", "workers", "images/s by the clock", "processor ms an image", "images/s a core"],
        [
            [
                *(pipeline.threads, pipeline.workers, pipeline.images_per_second),
                *(format_milliseconds(pipeline.processor_seconds), pipeline.images_per_core_second),
            ]
            for pipeline in pipelines
        ],
    )
    cores = cores_needed(pipelines, args)
    columns = ("chip", "images_per_second", "cores_by_threads", "cores_by_workers")
    print_table(
        f"Cores that feed a chip at {args.share_of_peak:.0%} of its peak, {args.tflop_an_image:g} TFLOP an image",
        ["chip", "images/s", "cores, by threads", "cores, by workers"],
        [[row[column] for column in columns] for row in cores],
    )
    pipeline_rows = [
        {
            "threads": pipeline.threads,
            "workers": pipeline.workers,
            "clock": pipeline.seconds,
            "processor": pipeline.processor_seconds,
            "images_per_second": pipeline.images_per_second,
            "images_per_core_second": pipeline.images_per_core_second,
        }
        for pipeline in pipelines
    ]
    return finish_report(report, args, results=results, places=storage, pipelines=pipeline_rows, cores=cores)


if __name__ == "__main__":
    main()
