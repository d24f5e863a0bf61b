"""Evaluate a detector on a data set: COCO's metrics and the detections."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from tood_jax.config import DataConfig, DetectConfig
from tood_jax.data.counts import DataCounts
from tood_jax.data.dataset import Dataset
from tood_jax.data.loader import eval_batches
from tood_jax.data.views import PLAIN, Placement, Variant, scaled_data
from tood_jax.distributed.data_counts import sum_over_processes
from tood_jax.distributed.host_sync import broadcast_json
from tood_jax.evaluation.coco_ap import (
    HAS_HOTCOCO,
    CocoMetrics,
    coco_results,
    evaluate,
    numbered,
    read_metrics,
    run_engine,
)
from tood_jax.evaluation.matches import count_classes, read_matches
from tood_jax.evaluation.predict import DetectStep, ImageDetections, LossSums, detect_batches, mean_losses
from tood_jax.evaluation.views import merge_detections
from tood_jax.types import Tree


class Merge(NamedTuple):
    """Test-time augmentation: which variants of each image are detected, and how their detections are merged."""

    variants: tuple[Variant, ...]
    detect: DetectConfig


class Evaluation(NamedTuple):
    """Metrics and detections of a data set."""

    metrics: CocoMetrics  # all NaN for a data set without annotations
    detections: list[ImageDetections]  # one for each image
    results: list[dict[str, Any]]  # the detections as COCO results
    left_out: str  # sentences about images and detections that were left out; "" if there are none
    losses: dict[str, float]  # of `mean_losses`; {} where the step returns no losses
    thresholds: list[float | None] | None = None  # per class the score with the highest F1; None without hotcoco


def evaluate_set(
    detect_step: DetectStep,
    params: Tree,
    batch_stats: Tree,
    dataset: Dataset,
    data: DataConfig,
    batch_size: int,
    mesh: Mesh,
    merge: Merge | None = None,
) -> Evaluation:
    """Detect in every image of a data set, and compare the detections with its annotations.

    Several processes share the images; each of them returns all detections, and the metrics that the first computes.

    Args:
        detect_step: as `compile_detect_step` returns it.
        params: parameters of the model.
        batch_stats: BatchNorm statistics of the model.
        dataset: a split that was read for evaluation.
        data: how images are read and resized.
        batch_size: images per step over all processes.
        mesh: the devices.
        merge: test-time augmentation; the losses and what was left out are those of the plain variant.
    """
    loss_sums: list[LossSums] = []

    def detect(variant: Variant, sums: list[LossSums]) -> tuple[list[ImageDetections], DataCounts]:
        batches = eval_batches(
            dataset,
            scaled_data(data, variant.scale),
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            flip=variant.is_flipped,
        )
        with contextlib.closing(batches):
            found = list(detect_batches(detect_step, params, batch_stats, batches, mesh, sums))
        return found, batches.counts

    detections, counts = detect(PLAIN, loss_sums)
    if merge is not None:
        others = [(variant, detect(variant, [])[0]) for variant in merge.variants if variant != PLAIN]
        detections = _merged(dataset, [(PLAIN, detections), *others], merge.detect)
    left_out = sum_over_processes(counts).summary()
    return evaluate_detections(dataset, detections, left_out, mean_losses(loss_sums))


def evaluate_detections(
    dataset: Dataset, detections: list[ImageDetections], left_out: str = "", losses: dict[str, float] | None = None
) -> Evaluation:
    """Compare detections with the annotations of a data set.

    Args:
        left_out: a sentence about images that were left out, or "".
        losses: for the result.
    """
    results = coco_results(
        [(image.boxes, image.scores, image.labels) for image in detections],
        [dataset.images[image.image_index].id for image in detections],
        [category.id for category in dataset.classes],
    )
    values, thresholds = broadcast_json(lambda: _metrics_and_thresholds(dataset, results))
    metrics = CocoMetrics(**{**values, "class_ap": tuple(values["class_ap"])})
    left_out = " ".join(note for note in (left_out, _describe_non_finite(detections)) if note)
    return Evaluation(metrics, detections, results, left_out, losses or {}, thresholds)


def _merged(
    dataset: Dataset, variants: Sequence[tuple[Variant, list[ImageDetections]]], detect: DetectConfig
) -> list[ImageDetections]:
    """Return the detections of each image from those of each variant, in the order of the first."""
    found: dict[int, list[tuple[Placement, ImageDetections]]] = {}
    for variant, detections in variants:
        for one in detections:
            image = dataset.images[one.image_index]
            area = (0, 0, image.width, image.height)
            placement = Placement((image.height, image.width), area, variant.is_flipped)
            found.setdefault(one.image_index, []).append((placement, one))
    return [merge_detections(views, detect) for views in found.values()]


def _metrics_and_thresholds(
    dataset: Dataset, results: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[float | None] | None]:
    """Return the metrics, all NaN for a data set without annotations, and the best threshold of each class."""
    truth = dataset.ground_truth()
    if not dataset.has_annotations:
        return dataclasses.asdict(evaluate({"images": [], "categories": truth["categories"]}, [])), None
    if not HAS_HOTCOCO:
        return dataclasses.asdict(evaluate(truth, results)), None
    both = numbered(truth, results)
    engine = run_engine(*both)
    best = (count.threshold for count in count_classes(read_matches(engine, *both, thresholds=1)))
    return dataclasses.asdict(read_metrics(engine)), [None if math.isnan(value) else value for value in best]


def _describe_non_finite(detections: list[ImageDetections]) -> str:
    """Return a sentence about candidates that were dropped because they were not finite; "" if there are none."""
    dropped = [image.non_finite for image in detections if image.non_finite]
    if not dropped:
        return ""
    return (
        f"{sum(dropped)} candidates of {len(dropped)} images had a box or score that is NaN or infinite and were "
        "dropped: the weights are damaged, or the learning rate is too high."
    )
