"""COCO AP of a model on a data set."""

import jax
from jax.sharding import Mesh

from tood_jax.config import Config
from tood_jax.data.coco import CocoSet
from tood_jax.data.pipeline import eval_batches
from tood_jax.evaluation.coco_ap import CocoMetrics, coco_results, evaluate
from tood_jax.evaluation.predict import DetectStep, ImageDetections, detect_batches
from tood_jax.training.state import Tree


def evaluate_set(
    detect_step: DetectStep, params: Tree, batch_stats: Tree, dataset: CocoSet, config: Config, mesh: Mesh
) -> tuple[CocoMetrics, list[ImageDetections], list[dict]]:
    """Detect in every image of the set once, and compare with its annotations.

    Returns:
        The twelve numbers, the detections image by image, and the same as COCO results.
    """
    batches = eval_batches(
        dataset,
        config.data,
        batch_size=config.train.eval_batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    found = list(detect_batches(detect_step, params, batch_stats, batches, mesh))
    results = coco_results(
        [(one.boxes, one.scores, one.labels) for one in found],
        [dataset.images[one.image_index].id for one in found],
        [one.id for one in dataset.classes],
    )
    return evaluate(dataset.ground_truth(), results), found, results
