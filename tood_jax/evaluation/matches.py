"""Which detections are right, and what follows: AP, its uncertainty, precision, recall, and the best thresholds.

hotcoco matches detections and objects by COCO's rules; the functions here count. Arrays of detections are sorted by
class and, within a class, by falling score.

Axes: D detections · G objects that count (no crowds) · T COCO's IoU thresholds · C classes · S bootstrap samples.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tood_jax.evaluation.coco_ap import numbered, run_engine

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SAMPLES = 200  # of a bootstrap
_SEED = 0
_TAILS = (2.5, 97.5)  # percent; between them lie 95 % of the samples


class Matches(NamedTuple):
    """Detections of a data set and whether each is right at each IoU threshold."""

    image: np.ndarray  # [D] position of the image by its id
    label: np.ndarray  # [D] 0…C-1
    score: np.ndarray  # [D]
    status: np.ndarray  # [T, D] int8: 1 true positive, 0 false positive, -1 ignored (on a crowd)
    object_image: np.ndarray  # [G]
    object_label: np.ndarray  # [G]
    images: int
    classes: int


class ClassCounts(NamedTuple):
    """A class at the score threshold with the highest F1, at IoU 0.5; NaN where there is nothing to count."""

    threshold: float  # detections of at least this score are kept
    precision: float
    recall: float
    f1: float
    objects: int
    images: int  # with an object of the class


def match(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], thresholds: int = 10) -> Matches:
    """Match COCO results with the ground truth at the first `thresholds` of IOU_THRESHOLDS.

    Raises:
        ValueError: as `coco_ap.evaluate`.
    """
    truth, found = numbered(ground_truth, results)
    return read_matches(run_engine(truth, found), truth, found, thresholds)


def read_matches(engine: Any, truth: dict[str, Any], found: dict[str, Any], thresholds: int = 10) -> Matches:
    """Return the matches of `run_engine(truth, found)`."""
    annotations, objects = found["annotations"], [one for one in truth["annotations"] if not one["iscrowd"]]
    image, label = (_column(annotations, key) - 1 for key in ("image_id", "category_id"))
    score = np.asarray([one["score"] for one in annotations], float)
    status = np.full((thresholds, len(annotations)), -1, np.int8)
    for row, iou in zip(status, engine.params.iouThrs, strict=False):
        outcome = engine.image_diagnostics(iou, score_thr=2)["dt_status"]  # above all scores: no list of label errors
        row[np.fromiter(outcome, np.int64, len(outcome)) - 1] = [word == "tp" for word in outcome.values()]
    order = np.lexsort((image, -score, label))
    return Matches(
        image[order],
        label[order],
        score[order],
        status[:, order],
        _column(objects, "image_id") - 1,
        _column(objects, "category_id") - 1,
        len(truth["images"]),
        len(truth["categories"]),
    )


def _column(annotations: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.asarray([one[key] for one in annotations], np.int64)


class AveragePrecision:
    """Computes AP for any number of copies of each image.

    Only true positives matter to the precision curve, so that a sample costs one pass over the detections and a few
    over the true positives.
    """

    def __init__(self, matches: Matches):
        self._matches = matches
        self._first = np.searchsorted(matches.label, np.arange(matches.classes))  # detection of each class
        self._right = [np.flatnonzero(row == 1) for row in matches.status]
        self._ignored = [np.flatnonzero(row == -1) for row in matches.status]

    def __call__(self, copies: np.ndarray | None = None) -> np.ndarray:
        """Return AP [T, C], NaN for a class without objects, where image i occurs `copies[i]` times (once)."""
        m = self._matches
        copies = np.ones(m.images, np.int64) if copies is None else copies
        weight = copies[m.image]
        kept = _sums(weight)
        objects = np.bincount(m.object_label, copies[m.object_image], m.classes).astype(np.int64)
        needed = np.maximum(_objects_for_recall(objects), 1)  # [C, 101]
        return np.stack(
            [
                self._at_threshold(weight, kept, needed, objects, right, ignored)
                for right, ignored in zip(self._right, self._ignored, strict=True)
            ]
        )

    def _at_threshold(
        self,
        weight: np.ndarray,
        kept: np.ndarray,
        needed: np.ndarray,
        objects: np.ndarray,
        right: np.ndarray,
        ignored: np.ndarray,
    ) -> np.ndarray:
        """Return AP [C] at one IoU threshold: the mean of the highest precision at each recall or beyond it."""
        label = self._matches.label[right]
        first, last = np.searchsorted(right, self._first), np.searchsorted(right, [*self._first[1:], len(weight)])
        found = _sums(weight[right])
        dropped = _sums(weight[ignored])
        begin = self._first[label]
        counted = kept[right + 1] - kept[begin]
        counted -= dropped[np.searchsorted(ignored, right)] - dropped[np.searchsorted(ignored, begin)]
        precision = (found[1:] - found[first][label]) / np.maximum(counted, 1)
        # From the right, class by class: a later class has lower numbers, so that its maximum never enters.
        envelope = np.maximum.accumulate((precision - label)[::-1])[::-1] + label
        at = np.searchsorted(found[1:], found[first][:, None] + needed)
        reached = at < last[:, None]
        values = np.append(envelope, 0)[np.where(reached, at, -1)]
        return np.where(objects > 0, values.mean(axis=1), np.nan)


def _sums(values: np.ndarray) -> np.ndarray:
    """Return the sums of the first 0, 1, …, n values."""
    return np.concatenate([[0], np.cumsum(values)])


def _objects_for_recall(objects: np.ndarray) -> np.ndarray:
    """Return how many of `objects` [C] must be found for each of RECALLS, [C, 101]; exact as COCO's division."""
    number = np.maximum(objects, 1)[:, None]
    enough = np.floor(RECALLS * number).astype(np.int64)
    return enough + (enough / number < RECALLS)


def bootstrap(evaluations: Sequence[Matches], samples: int = SAMPLES) -> list[np.ndarray]:
    """Return AP [S, T, C] of each evaluation on resampled images; sample s has the same images in all of them.

    Raises:
        ValueError: the evaluations have different numbers of images.
    """
    images = {one.images for one in evaluations}
    if len(images) != 1:
        raise ValueError(f"The evaluations have {sorted(images)} images; they must be of the same data set.")
    number = images.pop()
    if not number:
        return [np.full((samples, len(one.status), one.classes), np.nan) for one in evaluations]
    rng = np.random.default_rng(_SEED)
    draws = [np.bincount(rng.integers(0, number, number), minlength=number) for _ in range(samples)]
    compute = [AveragePrecision(one) for one in evaluations]
    return [np.stack([ap(copies) for copies in draws]) for ap in compute]


def interval(samples: np.ndarray) -> np.ndarray:
    """Return the bounds [2, …] between which 95 % of the defined samples [S, …] lie; NaN where none is defined."""
    defined = np.isfinite(samples).any(axis=0)
    return np.where(defined, np.nanpercentile(np.where(defined, samples, 0), _TAILS, axis=0), np.nan)


def mean_defined(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """Return the mean without NaN; NaN if nothing is left."""
    count = np.isfinite(values).sum(axis)
    total = np.nansum(values, axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def precision_recall(matches: Matches, label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (scores, precision, recall) of a class at IoU 0.5, for each score as the threshold, falling."""
    of_class = (matches.label == label) & (matches.status[0] >= 0)
    score, right = matches.score[of_class], matches.status[0][of_class]
    ends = np.flatnonzero(np.diff(score, append=-np.inf))  # equal scores are kept or dropped together
    found = np.cumsum(right)[ends]
    return score[ends], found / (ends + 1), found / max(1, (matches.object_label == label).sum())


def count_classes(matches: Matches) -> list[ClassCounts]:
    """Return the counts of each class at its best threshold."""
    return [_count_class(matches, label) for label in range(matches.classes)]


def _count_class(matches: Matches, label: int) -> ClassCounts:
    of_class = matches.object_label == label
    objects, images = int(of_class.sum()), len(np.unique(matches.object_image[of_class]))
    score, precision, recall = precision_recall(matches, label)
    if not objects or not recall.any():
        missed = 0.0 if objects else np.nan
        return ClassCounts(np.nan, np.nan, missed, missed, objects, images)
    f1 = f1_score(precision, recall)
    best = int(np.argmax(f1))
    return ClassCounts(
        float(score[best]), float(precision[best]), float(recall[best]), float(f1[best]), objects, images
    )


def f1_score(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Return the harmonic mean of precision and recall, 0 where both are 0."""
    total = precision + recall
    return np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0)


def has_report_packages() -> bool:
    """Return whether the packages of the extra `report` are installed."""
    return all(importlib.util.find_spec(name) for name in ("hotcoco", "matplotlib"))
