"""predict.py: detect objects in images, and write drawings and detections in several formats."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from tood_jax.api import TrainedDetector, load_trained_model
from tood_jax.api.rows import import_pyarrow
from tood_jax.checkpoint.store import Checkpoint
from tood_jax.cli.common import (
    parse_with_checkpoint,
    report_errors,
    use_compilation_cache,
)
from tood_jax.cli.outputs import check_output_file, check_output_folder
from tood_jax.cli.prediction.detect import DetectedFrame, Task, detect_in_frames, detect_in_order
from tood_jax.cli.prediction.formats import FORMATS, check_labels_folder, open_writers
from tood_jax.cli.prediction.image_search import LeftOutFiles
from tood_jax.cli.prediction.job import JobFolder, Part
from tood_jax.cli.prediction.progress import Progress
from tood_jax.cli.prediction.readers import Images
from tood_jax.cli.prediction.summary import Summary
from tood_jax.cli.prediction.thresholds import class_thresholds, describe_thresholds
from tood_jax.cli.prediction.unique_names import UniqueNames, drawing_name
from tood_jax.cli.prediction.video import Video, VideoDrawing, find_video
from tood_jax.cli.written_files import WrittenFiles
from tood_jax.config import Config, ConfigError
from tood_jax.data.dataset import ClassInfo
from tood_jax.data.errors import DataError
from tood_jax.data.views import Views, parse_variants
from tood_jax.distributed.host_sync import broadcast_json, gather_json, is_primary, run_on_primary
from tood_jax.distributed.process_group import join
from tood_jax.distributed.signals import EXIT_STATUS, Reason
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line, print_warning
from tood_jax.visualization.draw import draw_detections, encode_image, resize_for_drawing

PROG = "predict.py"
FormatName = Literal["json", "jsonl", "csv", "yolo", "parquet"]
_BATCHES = 16  # of a chunk


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), the folder of one step, or a model of `tood push`: its folder or
    hf://USER/REPO[@REVISION]."""
    step: str = "best"
    """best (by train.best), latest, or the number of a saved step."""
    images: tuple[str, ...] = ()
    """Image files, folders (searched recursively), globs in quotes, text files with a path per line (@FILE or
    FILE.txt), tar files, folders of records; also gs://…; or one video: a file, the number of a camera, rtsp://…"""
    out: str = "predictions"
    """Folder for the drawings and detections."""
    format: tuple[FormatName, ...] = ("json",)
    """json (COCO results), jsonl (a line per image), csv, yolo (a text file per image), parquet; one or several."""
    threshold: float | None = None
    """Smallest score of a detection that is drawn; the files have all detections. By default that of each class with
    the highest F1 in the last evaluation of the checkpoint, or 0.3 where it has none."""
    draw: bool = True
    """Draw images; False writes only the detections."""
    batch: int = 0
    """Images per step of each process; 0 means 8 per GPU or TPU, 1 per CPU device."""
    tiles: int = 0
    """Detect in a larger image also in tiles of this side, pixels of the image, and merge; 0 means no tiles."""
    overlap: float = 0.2
    """Smallest share of a tile's side that neighbouring tiles have in common, 0 to 0.9."""
    tta: str = ""
    """Test-time augmentation: detect also in variants of the image, and merge: flip, scales, such as flip,0.8,1.2."""
    resume: bool = False
    """Continue an interrupted job; the same options must be given."""


@dataclass
class Plan:
    """What to read and to write."""

    images: Images
    video: Video | None  # instead of images
    count: int | None  # of images; None if a video doesn't tell it
    views: Views
    out: Path
    written: WrittenFiles
    job: JobFolder
    left_out: LeftOutFiles


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run `predict.py`."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Detect objects in images, draw them and write them in several formats."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        join()
        plan = plan_job(args)
        with contextlib.closing(plan.job):
            _run(args, config, checkpoint, plan, prog)


def _run(args: Args, config: Config, checkpoint: Checkpoint, plan: Plan, prog: str) -> None:
    """Detect in all images and write all results, or say that this was done before."""
    batch_rows = _batch_rows(args, plan)
    if _begin(args, plan, _describe(args, plan, config, checkpoint, batch_rows)):
        if is_primary():
            print_line(f"The job in {printable(args.out)}/ is complete.")
        return
    detector = TrainedDetector(load_trained_model(checkpoint, config), config, _devices(batch_rows))
    thresholds = class_thresholds(args.threshold, checkpoint.about, len(detector.classes))
    summary = Summary()
    try:
        _detect(args.draw, plan, detector, batch_rows, thresholds)
        gather_json(None)
        run_on_primary(lambda: _write_results(args.format, plan, detector.classes, batch_rows, thresholds, summary))
    except BaseException as error:
        if is_primary():
            print_warning(
                f"{prog}: the detections so far are in {printable(plan.job.path)}/; the same command with --resume "
                "continues."
            )
        if not isinstance(error, KeyboardInterrupt) or jax.process_count() > 1:
            raise
        raise SystemExit(EXIT_STATUS[Reason.INTERRUPT]) from None
    if is_primary():
        _report(args.out, plan, thresholds, summary)


def plan_job(args: Args) -> Plan:
    """Find the images and check that no output replaces an input or a file that predict.py did not write.

    Raises:
        ConfigError: an option is invalid, or an output would replace a file.
        DataError: there are no images.
    """
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ConfigError(f"--threshold={args.threshold} must be a number from 0 to 1.")
    if args.batch < 0:
        raise ConfigError(f"--batch={args.batch} must be at least 1, or 0 for the default.")
    if not args.format:
        raise ConfigError(f"--format is empty: name one of {', '.join(FORMATS)}.")
    views = Views(args.tiles, args.overlap, parse_variants(args.tta))
    check_output_folder("--out", args.out)
    out = Path(args.out)
    source = find_video(args.images)
    video = None if source is None else _open_video(args, source)
    images, left_out = Images(args.images, out), LeftOutFiles()
    written = WrittenFiles(out)
    for name in args.format:
        path, writer = out / FORMATS[name].NAME, FORMATS[name]
        if name == "parquet":
            import_pyarrow()  # checked now, because the file is written at the end
        if name == "yolo":
            check_output_folder("--out", path)
            check_labels_folder(path)
        else:
            sources = [pattern.removeprefix("@") for pattern in args.images]
            check_output_file("--out", path, partial(writer.is_own, path), sources)
    job = JobFolder(out)
    count: int | None
    if video is not None:
        count = video.count
        if args.draw:
            check_output_file("--out", out / video.drawing, lambda _: written.has(video.drawing), args.images)
    elif args.draw:
        count = _check_drawings(out, images, written, left_out)
    else:
        count = sum(1 for _ in images.find(left_out))
    out.mkdir(parents=True, exist_ok=True)
    return Plan(images, video, count, views, out, written, job, left_out)


def _open_video(args: Args, source: str) -> Video:
    """Open a video. Raises ConfigError for what only images can do, and DataError."""
    if args.resume:
        raise ConfigError("--resume continues a job of images; a video is read from its start.")
    if jax.process_count() > 1:
        raise ConfigError("a video is read by one process: start predict.py without the launcher.")
    return Video(source)


def _check_drawings(out: Path, images: Images, written: WrittenFiles, left_out: LeftOutFiles) -> int:
    """Return the number of images; raise ConfigError if a drawing would replace an input or another program's file."""
    existing: dict[tuple[int, int], str] = {}
    names, count = UniqueNames(), 0
    for count, path in enumerate(images.find(left_out), 1):  # noqa: B007  the number is used below
        name = names(drawing_name(path.name))
        if os.path.lexists(out / name):
            status = os.stat(out / name) if (out / name).exists() else os.lstat(out / name)
            existing[status.st_dev, status.st_ino] = name
    for path in images.find() if existing else ():
        if not (isinstance(path, Path) and path.exists()):
            continue
        status = path.stat()
        if name := existing.get((status.st_dev, status.st_ino), ""):
            raise ConfigError(
                f"--out={printable(out)}: the drawing {printable(name)} would replace an input image: name another "
                "folder."
            )
    for name in existing.values():
        if not written.has(name):
            raise ConfigError(
                f"--out={printable(out)} has a file {printable(name)} that predict.py did not write, and a drawing "
                "would replace it: name another folder, or set --draw False."
            )
    return count


def _batch_rows(args: Args, plan: Plan) -> int:
    """Return the number of images per step: at most that of all views; a multiple of the devices, or fewer.

    Raises:
        ConfigError: --batch is no multiple of the devices.
        DataError: the processes find different images.
    """
    devices = jax.local_devices()
    found = gather_json([plan.count, len(devices)])
    if any(one != found[0] for one in found):
        raise DataError(
            f"the processes see different images or devices ([images, devices]: {found}): give all of them the same "
            "options, shared folders and equal machines."
        )
    each = 1 if devices[0].platform == "cpu" else 8
    rows = args.batch or each * len(devices)
    if plan.views.is_one and plan.count is not None:
        rows = min(rows, plan.count)
    return rows if rows <= len(devices) else -(-rows // len(devices)) * len(devices)


def _devices(batch_rows: int) -> Sequence[jax.Device]:
    return jax.local_devices()[:batch_rows]


def _describe(args: Args, plan: Plan, config: Config, checkpoint: Checkpoint, batch_rows: int) -> dict[str, Any]:
    """Return what must be equal to continue a job."""
    weights = json.dumps([checkpoint.leaves, asdict(config)], sort_keys=True, default=str)
    return {
        "images": list(args.images) if plan.video is None else [plan.video.name],
        "weights and config": hashlib.sha256(weights.encode()).hexdigest()[:16],
        "batch": batch_rows,
        "processes": jax.process_count(),
        "threshold": args.threshold if args.draw else None,
        "draw": args.draw,
        "tiles": [args.tiles, args.overlap] if args.tiles else None,
        "tta": args.tta or None,
    }


def _begin(args: Args, plan: Plan, description: dict[str, Any]) -> bool:
    """Begin a job, or continue one with --resume; return whether it is complete already.

    Raises:
        ConfigError: the job cannot be continued.
    """

    def begin() -> bool | str:
        try:
            plan.job.lock()
            if not args.resume:
                plan.job.begin(description)
                return False
            is_complete = plan.job.resume(description)
        except ConfigError as error:
            return str(error)
        missing = [name for name in args.format if not (plan.out / FORMATS[name].NAME).exists()]
        if is_complete and missing:
            return f"the job in {printable(plan.out)} is complete, without {missing[0]}: start anew without --resume."
        return is_complete

    result = broadcast_json(begin)
    if isinstance(result, str):
        raise ConfigError(result)
    return result


def _detect(draws: bool, plan: Plan, detector: TrainedDetector, batch_rows: int, thresholds: np.ndarray) -> None:
    """Detect in the images of this process, and write a row for each as it comes."""
    chunk = batch_rows * _BATCHES
    part = Part(plan.job.part(jax.process_index(), jax.process_count()), chunk)
    progress = Progress(plan.count, is_primary(), "images" if plan.video is None else "frames")
    if plan.video is not None:
        draw_frame = partial(_draw, class_names=detector.class_names, thresholds=thresholds) if draws else None
        frames = detect_in_frames(detector, plan.video, plan.views, batch_rows, chunk, draw_frame)
        drawing = VideoDrawing(plan.job.path / plan.video.drawing, plan.video.rate)
        _detect_in_video(plan, part, frames, drawing, progress)
        return

    def draw(name: str, pixels: np.ndarray, found: ImageDetections) -> None:
        drawing = _draw(pixels, found, detector.class_names, thresholds)
        plan.written.write(name, encode_image(name, drawing))

    with contextlib.closing(part), contextlib.closing(progress):
        tasks = _tasks(plan, part, chunk, draws)
        for position, row in detect_in_order(detector, tasks, plan.views, batch_rows, chunk, draw):
            part.append(row)
            progress.update(position + 1)


def _detect_in_video(
    plan: Plan, part: Part, frames: Iterator[DetectedFrame], drawing: VideoDrawing, progress: Progress
) -> None:
    """Write a row and a drawing for each frame as it comes; Ctrl-C ends the video there."""
    with contextlib.closing(part), contextlib.closing(progress), contextlib.closing(drawing):
        try:
            for frame in frames:
                part.append(frame.row)
                if frame.drawing is not None:
                    drawing.add(frame.drawing)
                progress.update(frame.number + 1)
        except KeyboardInterrupt:
            print_warning("stopped: the results have the frames so far.")
    if drawing.path.exists():
        plan.written.move(drawing.path.name, drawing.path)
    if progress.speed > 0:
        print_line(f"{progress.speed:.1f} frames/s")


def _draw(pixels: np.ndarray, found: ImageDetections, class_names: Sequence[str], thresholds: np.ndarray) -> np.ndarray:
    """Return a drawing of the detections."""
    large, boxes = resize_for_drawing(pixels, found.boxes)
    return draw_detections(large, boxes, found.scores, found.labels, class_names, thresholds)


def _tasks(plan: Plan, part: Part, chunk: int, draw: bool) -> Iterator[Task]:
    """Yield the images of this process that have no row yet.

    Raises:
        DataError: they are other images than those of the rows that are kept.
    """
    index, count = jax.process_index(), jax.process_count()
    kept, names = part.kept_paths(), UniqueNames()
    for position, path in enumerate(plan.images.find()):
        drawing = names(drawing_name(path.name)) if draw else ""
        if position // chunk % count != index:
            continue
        former = next(kept, None)
        if former is None:
            yield Task(position, path, drawing)
        elif former != str(path):
            raise DataError(
                f"the images have changed since the job was begun (image {position + 1} was {printable(former)} and is "
                f"{printable(path)}): restore them, or start anew without --resume."
            )


def _write_results(
    formats: Sequence[FormatName],
    plan: Plan,
    classes: Sequence[ClassInfo],
    batch_rows: int,
    thresholds: np.ndarray,
    summary: Summary,
) -> None:
    """Write all formats from the rows of all processes."""
    rows = plan.job.rows(jax.process_count(), batch_rows * _BATCHES)
    with open_writers(formats, plan.job.path, plan.out, classes) as write:
        for row in rows:
            write(row)
            summary.add(row, thresholds)
    plan.job.complete()


def _report(out: str, plan: Plan, thresholds: np.ndarray, summary: Summary) -> None:
    """Print the result. Raises DataError if no file could be read."""
    ended_early = [] if plan.video is None else plan.video.messages()
    for text in [*plan.left_out.messages(), *summary.messages(), *ended_early]:
        print_warning(text)
    unit = "images" if plan.video is None else "frames"
    print_line(
        f"{summary.images} {unit}, {summary.above_threshold} detections of score ≥ "
        f"{describe_thresholds(thresholds)} ({summary.detections} in all) in {printable(out)}/"
    )
    if not summary.images:
        raise DataError("none of the files could be read." if plan.video is None else "the video has no frame.")
