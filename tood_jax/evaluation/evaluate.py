"""COCO AP of a model on a data set."""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from tood_jax.config import Config
from tood_jax.data.coco import CocoSet
from tood_jax.data.pipeline import eval_batches
from tood_jax.evaluation.coco_ap import CocoMetrics, coco_results, evaluate
from tood_jax.evaluation.predict import DetectStep, ImageDetections, detect_batches
from tood_jax.training.messages import from_first
from tood_jax.training.reporting import counts_of_all
from tood_jax.training.state import Tree


class Evaluation(NamedTuple):
    """What an evaluation found."""

    metrics: CocoMetrics
    found: list[ImageDetections]  # image by image
    results: list[dict[str, Any]]  # the same as COCO results
    left_out: str  # what had to be left out of the data, as a sentence; empty if nothing


def evaluate_set(
    detect_step: DetectStep, params: Tree, batch_stats: Tree, dataset: CocoSet, config: Config, mesh: Mesh
) -> Evaluation:
    """Detect in every image of the set once, and compare with its annotations.

    Many processes share the images; each of them gets all detections, and the numbers that the first one computes.
    """
    batches = eval_batches(
        dataset,
        config.data,
        batch_size=config.train.eval_batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with contextlib.closing(batches):
        found = list(detect_batches(detect_step, params, batch_stats, batches, mesh))
    results = coco_results(
        [(one.boxes, one.scores, one.labels) for one in found],
        [dataset.images[one.image_index].id for one in found],
        [one.id for one in dataset.classes],
    )
    told = from_first(lambda: dataclasses.asdict(evaluate(dataset.ground_truth(), results)))
    metrics = CocoMetrics(**{**told, "class_ap": tuple(told["class_ap"])})
    return Evaluation(metrics, found, results, counts_of_all(batches.counts).summary())
