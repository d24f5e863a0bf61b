"""The numbers of an evaluation report: what hotcoco counts, arranged by class and by image."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tood_jax.evaluation.coco_ap import CocoMetrics, Interval, number_ids, numbered, run_engine
from tood_jax.evaluation.matches import (
    ClassCounts,
    Matches,
    bootstrap,
    count_classes,
    interval,
    mean_defined,
    read_matches,
)

WORST_IMAGES = 16
DEFAULT_THRESHOLD = 0.3  # of classes without a best one
_AT_IOU = {"AP50": 0, "AP75": 5, "AP90": 8}  # row of IOU_THRESHOLDS


class ClassAp(NamedTuple):
    """AP of a class, 0–1; NaN without objects."""

    ap: float
    ap50: float
    ap75: float
    interval: Interval  # of ap: 95 % of the bootstrap samples lie in it


class ImageErrors(NamedTuple):
    """Errors in one image at the best thresholds. Boxes are xyxy in pixels of the original image."""

    image_id: Any
    right: list[dict[str, Any]]  # detections, as COCO results
    wrong: list[dict[str, Any]]
    missed: list[dict[str, Any]]  # annotations


class Suspect(NamedTuple):
    """A confident detection that contradicts the annotations."""

    image_id: Any
    kind: str  # "wrong_label" or "missing_annotation", as hotcoco names them
    annotated: int | None  # label of the overlapping object
    detected: int  # label
    score: float
    iou: float
    box: list[float]  # x, y, width, height of the detection


class Analysis(NamedTuple):
    """The numbers of a report."""

    metrics: CocoMetrics
    intervals: dict[str, Interval]  # of AP, AP50, AP75 and AP90
    class_ap: list[ClassAp]
    counts: list[ClassCounts]
    matches: Matches
    confusion: np.ndarray  # [C + 1, C + 1], rows: object, columns: detection; the last ones: none
    calibration: dict[str, Any]  # as hotcoco returns it: ece, mce, bins
    errors: dict[str, Any]  # TIDE, as hotcoco returns it: delta_ap, counts
    worst: list[ImageErrors]  # most errors first
    suspects: list[Suspect]  # highest score first


def analyze(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], metrics: CocoMetrics) -> Analysis:
    """Return the numbers of COCO results for a COCO instances file; needs the packages of the extra `report`.

    Args:
        ground_truth: as of `coco_ap.evaluate`.
        results: as of `coco_ap.evaluate`.
        metrics: what `coco_ap.evaluate` returned for both.
    """
    truth, found = numbered(ground_truth, results)
    engine = run_engine(truth, found)
    matches = read_matches(engine, truth, found)
    (samples,) = bootstrap([matches])  # [S, T, C]
    counts = count_classes(matches)
    kept = _kept(engine, found, [count.threshold for count in counts])
    at_best = run_engine(truth, kept)
    outcome = at_best.image_diagnostics(0.5, 0.5)
    engine.accumulate()
    return Analysis(
        metrics=metrics,
        intervals=ap_intervals(samples),
        class_ap=_class_ap(engine.eval["precision"], samples),
        counts=counts,
        matches=matches,
        confusion=np.asarray(at_best.confusion_matrix(0.5)["matrix"], np.int64),
        calibration=engine.calibration(),
        errors=engine.tide_errors(),
        worst=_worst_images(outcome, ground_truth, results),
        suspects=_suspects(outcome, ground_truth, results),
    )


def ap_intervals(samples: np.ndarray) -> dict[str, Interval]:
    """Return the intervals of the means over classes, of bootstrap samples [S, T, C] of AP."""
    values = {"AP": mean_defined(samples, (1, 2))}
    values |= {name: mean_defined(samples[:, row], 1) for name, row in _AT_IOU.items()}
    return {name: tuple(interval(value).tolist()) for name, value in values.items()}


def _class_ap(precision: np.ndarray, samples: np.ndarray) -> list[ClassAp]:
    values = precision[..., 0, -1].copy()  # [T, R, C]: objects of all sizes, most detections
    values[values < 0] = np.nan
    by_class = mean_defined(values, 1)  # [T, C]
    bounds = interval(mean_defined(samples, 1))  # [2, C]
    return [
        ClassAp(float(mean_defined(ap)), float(ap[_AT_IOU["AP50"]]), float(ap[_AT_IOU["AP75"]]), tuple(ends))
        for ap, ends in zip(by_class.T, bounds.T.tolist(), strict=True)
    ]


def _kept(engine: Any, found: dict[str, Any], thresholds: Sequence[float]) -> dict[str, Any]:
    """Return the detections at or above the threshold of their class, without those on crowds."""
    limits = np.nan_to_num(np.asarray(thresholds), nan=DEFAULT_THRESHOLD)
    counted = engine.image_diagnostics(0.5, score_thr=2)["dt_status"]
    kept = [
        one for one in found["annotations"] if one["score"] >= limits[one["category_id"] - 1] and one["id"] in counted
    ]
    return {**found, "annotations": kept}


def _worst_images(
    outcome: dict[str, Any], ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> list[ImageErrors]:
    """Return the images with most false positives and missed objects."""
    ids = {number: id_ for id_, number in number_ids(image["id"] for image in ground_truth["images"]).items()}
    summary = outcome["img_summary"]
    errors = {number: row["fp"] + row["fn"] for number, row in summary.items()}
    ranked = sorted((number for number in errors if errors[number]), key=lambda number: (-errors[number], number))
    worst = {ids[number]: ImageErrors(ids[number], [], [], []) for number in ranked}
    for number, status in outcome["dt_status"].items():
        result = results[number - 1]
        if result["image_id"] in worst:
            errors_of = worst[result["image_id"]]
            (errors_of.right if status == "tp" else errors_of.wrong).append(dict(result))
    for number, status in outcome["gt_status"].items():
        annotation = ground_truth["annotations"][number - 1]
        if status == "fn" and annotation["image_id"] in worst:
            worst[annotation["image_id"]].missed.append(dict(annotation))
    return list(worst.values())


def _suspects(
    outcome: dict[str, Any], ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> list[Suspect]:
    rows = []
    for one in outcome["label_errors"]:
        result = results[one["dt_id"] - 1]
        annotated = None if one["gt_category_id"] is None else one["gt_category_id"] - 1
        rows.append(
            Suspect(
                result["image_id"],
                one["type"],
                annotated,
                one["dt_category_id"] - 1,
                one["dt_score"],
                one["iou"],
                list(result["bbox"]),
            )
        )
    return sorted(rows, key=lambda row: -row.score)
