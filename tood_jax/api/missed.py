"""Why objects were missed, and what other thresholds would find: over a data set.

`tood_jax/evaluation/missed.py` defines the causes.
"""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tood_jax.api.subject import Subject, analyze_images
from tood_jax.config import Config, DetectConfig
from tood_jax.evaluation.missed import CAUSES, MATCH_IOU, Setting, count_found, diagnose
from tood_jax.models.detector import canvas_pyramid
from tood_jax.untrusted.printable import printable

_THRESHOLDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
_NMS_IOUS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
_TOP_KS = (100, 300, 1000, 2000)
_DTYPES = (np.float32, np.float32, np.int32)  # of the fields of Setting


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


def cause_rows(fates: list[ObjectFate]) -> list[tuple[str, int, float, float, float]]:
    """Return (cause, number of objects, their share, mean IoU, mean score) of each cause; NaN: no objects."""
    rows = []
    for i, name in enumerate(CAUSES):
        own = [fate for fate in fates if fate.cause == i]
        iou, score = (
            float(np.mean([getattr(fate, key) for fate in own])) if own else math.nan for key in ("iou", "score")
        )
        rows.append((name, len(own), len(own) / max(1, len(fates)), iou, score))
    return rows


def describe_options(detect: DetectConfig) -> str:
    """Return the options by which objects were missed."""
    return (
        f"threshold {detect.score_threshold:g}, top-k {detect.candidates_per_level}, NMS IoU {detect.nms_iou:g}, "
        f"at most {detect.max_detections} detections; found: matched at IoU {MATCH_IOU:g}"
    )


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
        sorted({*_THRESHOLDS, detect.score_threshold}),
        sorted({*_NMS_IOUS, detect.nms_iou}),
        sorted({*_TOP_KS, detect.candidates_per_level}),
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


def setting_rows(counted: list[dict[str, Any]], detect: DetectConfig) -> list[tuple[str, int, int, int]]:
    """Return (setting, objects found, change of these, detections) of the present setting, of those that differ from it
    in one option, and of the best of all."""
    present = {
        "score_threshold": detect.score_threshold,
        "nms_iou": detect.nms_iou,
        "candidates_per_level": detect.candidates_per_level,
    }
    now = next(row for row in counted if all(row[key] == value for key, value in present.items()))
    named = [("present", now)]
    for key in present:
        alone = [row for row in counted if sum(row[k] != present[k] for k in present) == (row[key] != present[key])]
        named += [(f"{key} {row[key]:g}", row) for row in alone if row is not now]
    best = max(counted, key=lambda row: (row["found"], -row["detections"]))
    named.append((f"best: {', '.join(f'{best[key]:g}' for key in present)}", best))
    return [(name, row["found"], row["found"] - now["found"], row["detections"]) for name, row in named]
