"""predict.py: detect objects in image files, and write drawings and detections as JSON."""

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tood_jax.api import TrainedDetector, load_trained_model
from tood_jax.cli.common import (
    parse_with_checkpoint,
    report_errors,
    use_compilation_cache,
)
from tood_jax.cli.image_search import LeftOutFiles, find_images
from tood_jax.cli.json_list_writer import JsonListWriter
from tood_jax.cli.outputs import check_output_file, check_output_folder, is_results_file
from tood_jax.cli.written_files import WrittenFiles
from tood_jax.config import ConfigError, DataConfig
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.image_io import decode_image
from tood_jax.data.preprocess import single_image_batch
from tood_jax.distributed.signals import EXIT_STATUS, Reason
from tood_jax.evaluation.coco_ap import coco_results
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.report.analysis import DEFAULT_THRESHOLD
from tood_jax.types import Batch
from tood_jax.untrusted.bounded_json import as_number
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line, print_warning
from tood_jax.visualization.draw import draw_detections, encode_image, resize_for_drawing

PROG = "predict.py"
RESULTS, PART = "detections.json", "detections.part.json"


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), the folder of one step, or a model of `tood push`: its folder or
    hf://USER/REPO[@REVISION]."""
    step: str = "best"
    """best (by AP), latest, or the number of a saved step."""
    images: tuple[str, ...] = ()
    """Image files, folders (searched recursively) and globs in quotes."""
    out: str = "predictions"
    """Folder for the drawings and detections.json."""
    threshold: float | None = None
    """Smallest score of a detection that is drawn; the JSON has all detections. By default that of each class with the
    highest F1 in the last evaluation of the checkpoint, or 0.3 where it has none."""
    draw: bool = True
    """Draw images; False writes only the JSON."""


@dataclass
class Job:
    """What to read and to write, and what happened to single files."""

    files: list[Path]
    drawing_names: list[str]
    out: Path
    written: WrittenFiles
    left_out: LeftOutFiles
    unreadable: int = 0  # number of files
    notes: list[str] = field(default_factory=list)  # printed after the results


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run `predict.py`."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Detect objects in images, draw them and write them as JSON."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        job = plan_job(args)
        detector = TrainedDetector(load_trained_model(checkpoint, config), config)
        thresholds = class_thresholds(args.threshold, checkpoint.about, len(detector.classes))
        with contextlib.closing(JsonListWriter(job.out / RESULTS, job.out / PART)) as results:
            try:
                above_threshold = _detect(job, args.draw, thresholds, detector, results)
                results.finish()
            except BaseException as error:
                print_warning(f"{prog}: the detections so far ({results.rows}) are in {printable(results.part)}")
                if not isinstance(error, KeyboardInterrupt):
                    raise
                raise SystemExit(EXIT_STATUS[Reason.INTERRUPT]) from None
        for text in [*job.left_out.messages(), *job.notes]:
            print_warning(text)
        print_line(
            f"{len(job.files) - job.unreadable} images, {above_threshold} detections of score ≥ "
            f"{_describe_thresholds(thresholds)} ({results.rows} in all) in {printable(args.out)}/"
        )
        if job.unreadable == len(job.files):
            raise DataError("none of the files could be read.")


def plan_job(args: Args) -> Job:
    """Find the images and check that no output replaces an input or a file that predict.py did not write.

    Raises:
        ConfigError: an option is invalid, or an output would replace a file.
        DataError: there are no images.
    """
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ConfigError(f"--threshold={args.threshold} must be a number from 0 to 1.")
    check_output_folder("--out", args.out)
    out = Path(args.out)
    files, left_out = find_images(args.images, out)
    names = drawing_names(files)
    written = WrittenFiles(out)
    for name in (RESULTS, PART):
        check_output_file("--out", out / name, is_results_file, files)
    if args.draw:
        _check_drawings(out, names, files, written)
    out.mkdir(parents=True, exist_ok=True)
    return Job(files, names, out, written, left_out)


def _check_drawings(out: Path, names: Sequence[str], files: Sequence[Path], written: WrittenFiles) -> None:
    """Raise ConfigError if a drawing would replace an input or a file that predict.py did not write."""
    inputs = {(status.st_dev, status.st_ino) for status in map(os.stat, files)}
    for name in names:
        path = out / name
        if not os.path.lexists(path):
            continue
        status = os.stat(path) if path.exists() else os.lstat(path)
        if (status.st_dev, status.st_ino) in inputs:
            raise ConfigError(
                f"--out={printable(out)}: the drawing {printable(name)} would replace an input image: name another "
                "folder."
            )
        if not written.has(name):
            raise ConfigError(
                f"--out={printable(out)} has a file {printable(name)} that predict.py did not write, and a drawing "
                "would replace it: name another folder, or set --draw False."
            )


def class_thresholds(given: float | None, about: Mapping[str, Any], classes: int) -> np.ndarray:
    """Return the smallest score of each class that is drawn, [C].

    Args:
        given: for all classes; None for the best of each, as `evaluate_set` found it.
        about: of the checkpoint, which may come from elsewhere.
        classes: number of classes.
    """
    metrics = about.get("metrics")
    stored = metrics.get("thresholds") if given is None and isinstance(metrics, Mapping) else None
    if not isinstance(stored, list) or len(stored) != classes:
        return np.full(classes, DEFAULT_THRESHOLD if given is None else given)
    best = (as_number(value) for value in stored)
    return np.asarray([value if value is not None and 0 <= value <= 1 else DEFAULT_THRESHOLD for value in best])


def _describe_thresholds(thresholds: np.ndarray) -> str:
    low, high = thresholds.min(), thresholds.max()
    return f"{low:.3g}" if low == high else f"the best threshold of their class ({low:.2f} to {high:.2f})"


def _detect(job: Job, draw: bool, thresholds: np.ndarray, detector: TrainedDetector, results: JsonListWriter) -> int:
    """Detect in all images and write results as they come; return the number of detections above the threshold."""
    ids, names = [category.id for category in detector.classes], detector.class_names
    name_of = dict(zip(ids, names, strict=True))
    above_threshold = 0
    for index, image, batch in tqdm(
        _read_images(job, detector.config.data), total=len(job.files), unit="image", leave=False
    ):
        found = detector.detect(batch)
        rows = coco_results([(found.boxes, found.scores, found.labels)], [str(job.files[index])], ids)
        results.extend({**row, "category": name_of[row["category_id"]]} for row in rows)
        above_threshold += int((found.scores >= thresholds[found.labels]).sum())
        if draw:
            _draw(job, index, image, found, names, thresholds)
    return above_threshold


def _draw(
    job: Job, index: int, image: np.ndarray, found: ImageDetections, names: Sequence[str], thresholds: np.ndarray
) -> None:
    """Write one drawing; an error becomes a note, and the other drawings are still made."""
    try:
        large, boxes = resize_for_drawing(image, found.boxes)
        drawing = draw_detections(large, boxes, found.scores, found.labels, names, thresholds)
        job.written.write(job.drawing_names[index], encode_image(job.drawing_names[index], drawing))
    except Exception as error:
        reason = printable(error) or type(error).__name__
        job.notes.append(f"not drawn: {printable(job.files[index])} ({reason})")


def drawing_names(files: Sequence[Path]) -> list[str]:
    """Return a file name for each drawing: the image's, with a number if names differ only in case or Unicode form."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        suffix = file.suffix.lower() if file.suffix.lower() in {".png", ".webp"} else ".jpg"
        name, number = f"{file.stem}{suffix}", 2
        while _folded(name) in taken:
            name, number = f"{file.stem}_{number}{suffix}", number + 1
        taken.add(_folded(name))
        names.append(name)
    return names


def _folded(name: str) -> str:
    """Return a name in the form in which case-insensitive file systems compare names."""
    return unicodedata.normalize("NFC", name).casefold()


def _read_images(job: Job, data: DataConfig) -> Iterator[tuple[int, np.ndarray, Batch]]:
    """Yield (position, image, batch of this image) for every readable file; the others become notes."""
    for position, file in enumerate(job.files):
        kinds: list[str] = []
        try:
            if file.exists() and not os.access(file, os.R_OK):  # otherwise the error looks like one of the machine
                raise BrokenImageError(f"{printable(file)} can't be read (permission denied).")
            image = decode_image(file, bit_depth=data.bit_depth, noticed=kinds)
        except BrokenImageError as error:
            job.unreadable += 1
            job.notes.append(f"skipped: {error}")
            continue
        job.notes += [f"note: {printable(file)} is one of the {kind}." for kind in kinds]
        yield position, image, single_image_batch(image, data, position)
