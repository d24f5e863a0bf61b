"""predict.py: detect objects in images, and write drawings and detections in several formats."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np

from tood_jax.api import TrainedDetector, load_trained_model
from tood_jax.checkpoint.store import Checkpoint
from tood_jax.cli.common import (
    parse_with_checkpoint,
    report_errors,
    use_compilation_cache,
)
from tood_jax.cli.prediction.detect import DetectedFrame, Task, detect_in_frames, detect_in_order
from tood_jax.cli.prediction.formats import FORMATS, open_writers
from tood_jax.cli.prediction.job import Part
from tood_jax.cli.prediction.options import Args, FormatName
from tood_jax.cli.prediction.plan import Plan, plan_job
from tood_jax.cli.prediction.progress import Progress
from tood_jax.cli.prediction.summary import Summary
from tood_jax.cli.prediction.thresholds import class_thresholds, describe_thresholds
from tood_jax.cli.prediction.unique_names import UniqueNames, drawing_name
from tood_jax.cli.prediction.video import VideoDrawing
from tood_jax.config import Config, ConfigError
from tood_jax.data.dataset import ClassInfo
from tood_jax.data.errors import DataError
from tood_jax.distributed.host_sync import broadcast_json, gather_json, is_primary, run_on_primary
from tood_jax.distributed.process_group import join
from tood_jax.distributed.signals import EXIT_STATUS, Reason
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line, print_warning
from tood_jax.visualization.draw import draw_detections, encode_image, resize_for_drawing

PROG = "predict.py"
_BATCHES = 16  # of a chunk


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
