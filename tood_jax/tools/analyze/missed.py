"""tood analyze missed: why objects were missed, and what other thresholds would find.

`tood_jax/evaluation/missed.py` defines the causes.
"""

import csv
import dataclasses
import io
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tood_jax.cli.common import parse_with_checkpoint, report_errors, use_compilation_cache
from tood_jax.cli.outputs import check_output_file, check_output_folder, starts_with_keys
from tood_jax.cli.tables import format_table
from tood_jax.config import Config, ConfigError, DetectConfig
from tood_jax.data.dataset import class_names
from tood_jax.evaluation.missed import CAUSES, FOUND, MATCH_IOU, SUPPRESSED, Setting, count_found, diagnose
from tood_jax.files import write_atomically
from tood_jax.models.detector import canvas_pyramid
from tood_jax.tools.analyze.missed_pictures import write_pictures
from tood_jax.tools.analyze.subject import Subject, analyze_images, load_subject
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line

PROG = "tood analyze missed"
THRESHOLDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
NMS_IOUS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
TOP_KS = (100, 300, 1000, 2000)
_DTYPES = (np.float32, np.float32, np.int32)  # of the fields of Setting
CSV_HEADER = (
    "image", "file", "object", "class", "x0", "y0", "x1", "y1", "cause", "level", "iou", "score", "other_class",
    "other_score", "explanation",
)  # fmt: skip


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), or the folder of one step. Its config is used; every field can be overridden."""
    step: str = "best"
    """best (by train.best), latest, or the number of a saved step."""
    settings: bool = True
    """Also count what several hundred other thresholds, NMS IoUs and top-k would find."""
    csv: str = ""
    """Also write a row for each object to this file."""
    json: str = ""
    """Also write the causes and the results of all settings to this file."""
    pictures: str = ""
    """Also draw missed objects in this folder, one picture each."""
    max_pictures: int = 50
    """Largest number of pictures."""


class ObjectFate(NamedTuple):
    """What happened to one object. Boxes are xyxy in pixels of the original image."""

    image: int  # position in the data set
    position: int  # of the object in its image
    label: int
    gt_box: np.ndarray
    cause: int  # position in CAUSES
    level: int  # of the prediction, 0 for P3
    iou: float
    score: float
    box: np.ndarray
    other_label: int  # -1: none
    other_box: np.ndarray  # zeros: none
    other_score: float


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print the causes of missed objects, and what other settings would find."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Follow every object through detection, and count why objects were missed."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        check_outputs(args)
        subject = load_subject(checkpoint, config)
        names = class_names(subject.dataset.classes)
        fates = follow_objects(subject)
        print_line(f"Step {checkpoint.step} of {args.checkpoint} on {config.data.val.source}:")
        print_line(describe_causes(fates, config.detect))
        counted = count_settings(subject) if args.settings else []
        if counted:
            print_line(f"\n{describe_settings(counted, config.detect, len(fates))}")
        if args.csv:
            write_atomically(Path(args.csv), to_csv(fates, subject, names).encode())
        if args.json:
            causes = {name: sum(fate.cause == i for fate in fates) for i, name in enumerate(CAUSES)}
            content = {"checkpoint": args.checkpoint, "step": checkpoint.step, "causes": causes, "settings": counted}
            write_atomically(Path(args.json), json.dumps(content, indent=1).encode())
        if args.pictures:
            missed = [fate for fate in fates if fate.cause != FOUND][: args.max_pictures]
            texts = [explain(fate, names) for fate in missed]
            write_pictures(Path(args.pictures), missed, texts, subject.dataset, config.data.bit_depth)
            print_line(f"{len(missed)} pictures written to {args.pictures}")


def check_outputs(args: Args) -> None:
    """Refuse outputs that would replace other files, before anything is computed. Raises ConfigError."""
    if args.max_pictures < 1:
        raise ConfigError(f"--max_pictures={args.max_pictures} must be at least 1.")
    if args.csv:
        header = ",".join(CSV_HEADER).encode()
        check_output_file("--csv", args.csv, lambda start: start.startswith(header), [args.checkpoint])
    if args.json:
        check_output_file("--json", args.json, starts_with_keys("checkpoint", "step", "causes"), [args.checkpoint])
    if args.pictures:
        check_output_folder("--pictures", args.pictures)


def follow_objects(subject: Subject) -> list[ObjectFate]:
    """Return what happened to each object of a data set, in its order."""
    fates = []
    per_location = subject.config.head.anchors_per_location
    for index, batch, row, found in analyze_images(subject, lambda pred, batch: diagnose(pred, batch, subject.config)):
        ends = [part.stop for part in canvas_pyramid(batch, per_location).level_slices]
        image = subject.dataset.images[index]
        for m in np.flatnonzero(batch.gt_mask[row]).tolist():
            level = int(np.searchsorted(ends, found.location[m], side="right"))
            rest = found.iou[m], found.score[m], found.box[m], found.other_label[m], found.other_box[m]
            fate = ObjectFate(
                index, m, int(image.labels[m]), image.boxes[m], int(found.cause[m]), level, *rest, found.other_score[m]
            )
            fates.append(fate)
    return sorted(fates, key=lambda fate: (fate.image, fate.position))


def describe_causes(fates: list[ObjectFate], detect: DetectConfig) -> str:
    """Return a table of the causes."""
    rows = []
    for i, name in enumerate(CAUSES):
        own = [fate for fate in fates if fate.cause == i]
        means = [f"{np.mean([getattr(fate, key) for fate in own]):.2f}" if own else "–" for key in ("iou", "score")]
        rows.append((name, str(len(own)), f"{len(own) / max(1, len(fates)):.1%}".replace("%", " %"), *means))
    header = ("cause", "objects", "share", "mean IoU", "mean score")
    options = (
        f"threshold {detect.score_threshold:g}, top-k {detect.candidates_per_level}, NMS IoU {detect.nms_iou:g}, "
        f"at most {detect.max_detections} detections; found: matched at IoU {MATCH_IOU:g}"
    )
    return f"{format_table(header, rows, right=header[1:])}\n{options}"


def explain(fate: ObjectFate, names: tuple[str, ...]) -> str:
    """Return one sentence on what happened to an object."""
    prediction = f"P{fate.level + 3} predicts IoU {fate.iou:.2f}, score {fate.score:.2f}"
    details = {
        "found": prediction,
        "poor box": f"the best box, on {prediction.replace(' predicts', ', has')}",
        "wrong class": f"{prediction}, but {fate.other_score:.2f} for {names[fate.other_label]}",
        "below threshold": prediction,
        "not in top-k": f"{prediction}, but others of its level score higher",
        "suppressed by NMS": f"{prediction}, removed by a box of score {fate.other_score:.2f}",
        "beyond max_detections": f"{prediction}, after the last detection",
        "matched to another": f"{prediction}, but it matches another object",
    }
    cause = CAUSES[fate.cause]
    return f"{printable(names[fate.label])}: {cause}: {details[cause]}"


def settings_of(detect: DetectConfig) -> list[tuple[float, float, int]]:
    """Return (threshold, NMS IoU, top-k) of all settings, among them the present one."""
    axes = (
        sorted({*THRESHOLDS, detect.score_threshold}),
        sorted({*NMS_IOUS, detect.nms_iou}),
        sorted({*TOP_KS, detect.candidates_per_level}),
    )
    return list(itertools.product(*axes))


def count_settings(subject: Subject) -> list[dict[str, Any]]:
    """Return for each setting its options, the objects that it finds and the boxes that it detects."""
    config = subject.config
    grid = settings_of(config.detect)
    columns = zip(_DTYPES, zip(*grid, strict=True), strict=True)
    settings = Setting(*(jnp.asarray(column, dtype) for dtype, column in columns))
    loosest = _with_loosest(config, grid)
    images = analyze_images(subject, lambda pred, batch: count_found(pred, batch, settings, loosest))
    results = [found for _, _, _, found in images]
    totals = [np.sum([result[i] for result in results], axis=0, dtype=int) for i in (0, 1)]
    keys = ("score_threshold", "nms_iou", "candidates_per_level", "found", "detections")
    return [
        dict(zip(keys, (*setting, int(found), int(detected)), strict=True))
        for setting, found, detected in zip(grid, *totals, strict=True)
    ]


def _with_loosest(config: Config, grid: list[tuple[float, float, int]]) -> Config:
    threshold, top_k = min(t for t, _, _ in grid), max(k for _, _, k in grid)
    detect = dataclasses.replace(config.detect, score_threshold=threshold, candidates_per_level=top_k)
    return dataclasses.replace(config, detect=detect)


def describe_settings(counted: list[dict[str, Any]], detect: DetectConfig, objects: int) -> str:
    """Return a table of the settings that differ in one option from the present one, and the best of all."""
    present = {
        "score_threshold": detect.score_threshold,
        "nms_iou": detect.nms_iou,
        "candidates_per_level": detect.candidates_per_level,
    }
    now = next(row for row in counted if all(row[key] == value for key, value in present.items()))

    def line(name: str, row: dict[str, Any]) -> tuple[str, ...]:
        return name, str(row["found"]), f"{row['found'] - now['found']:+d}", f"{row['detections']:,}"

    rows = [line("present", now)]
    for key in present:
        alone = [row for row in counted if sum(row[k] != present[k] for k in present) == (row[key] != present[key])]
        rows += [line(f"{key} {row[key]:g}", row) for row in alone if row is not now]
    best = max(counted, key=lambda row: (row["found"], -row["detections"]))
    rows.append(line(f"best: {', '.join(f'{best[key]:g}' for key in present)}", best))
    header = ("setting", "found", "change", "detections")
    covered = f"{len(counted)} settings, {objects} objects; all combinations are in the file of --json."
    return f"{format_table(header, rows, right=header[1:])}\n{covered}"


def to_csv(fates: list[ObjectFate], subject: Subject, names: tuple[str, ...]) -> str:
    """Return a row for each object."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for fate in fates:
        image = subject.dataset.images[fate.image]
        has_other = fate.cause == SUPPRESSED or fate.other_label >= 0
        writer.writerow(
            (
                image.id, printable(image.path.name), fate.position, printable(names[fate.label]),
                *(f"{x:.2f}" for x in fate.gt_box), CAUSES[fate.cause], f"P{fate.level + 3}", f"{fate.iou:.4f}",
                f"{fate.score:.4f}", printable(names[fate.other_label]) if fate.other_label >= 0 else "",
                f"{fate.other_score:.4f}" if has_other else "", explain(fate, names),
            )
        )  # fmt: skip
    return file.getvalue()
