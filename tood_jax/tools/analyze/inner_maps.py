"""The quantities inside a head that its predictions no longer show: scores and boxes before alignment.

Axes: N locations, times the anchors per location · C classes · M objects. Boxes are xyxy in canvas pixels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tood_jax.api import TrainedModel
from tood_jax.config import Config
from tood_jax.criterion.assign import assign, batch_locations
from tood_jax.evaluation.alignment import confidences, owners
from tood_jax.geometry.locations import Pyramid
from tood_jax.models.detector import canvas_pyramid, normalize_images
from tood_jax.models.t_head import TaskAlignment
from tood_jax.postprocess import nms
from tood_jax.types import Array, Assignment, Batch, Predictions

SHOWN_SCORE, SHOWN_BOXES = 0.1, 30  # smallest score of a detection that is shown, and their largest number


class InnerMaps(NamedTuple):
    """Numbers of one image at all locations, on the host. P and M are those of the location's best class."""

    pyramid: Pyramid
    valid: np.ndarray  # [N] bool, False in the padding
    cls: np.ndarray  # [N] P after sigmoid, 0–1
    alignment: np.ndarray | None  # [N] M after sigmoid, 0–1; None for a head without alignment
    score: np.ndarray  # [N] final score, 0–1
    label: np.ndarray  # [N] the best class
    boxes_before: np.ndarray  # [N, 4]
    boxes: np.ndarray  # [N, 4]
    offsets: np.ndarray | None  # [N, 4, 2] (dy, dx) in pixels, of left, top, right and bottom
    iou: np.ndarray  # [N] with the object that the box overlaps most; 0 below 0.1 or without annotations
    assignment: Assignment  # of the task-aligned phase, for task_aligned
    detected: np.ndarray  # [k] locations that NMS keeps, best first


def inner_maps(trained: TrainedModel, config: Config, batch: Batch) -> InnerMaps:
    """Return the maps of a batch of one image.

    Args:
        trained: built by a config with train.remat=none, because values that are recomputed cannot be recorded.
        config: of the detector.
        batch: the image, with its objects if they are known.
    """
    pyramid = canvas_pyramid(batch, config.head.anchors_per_location)
    strides = pyramid.strides[:, None]

    def compute(params, batch_stats, batch):
        images = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
        variables = {"params": params, "batch_stats": batch_stats}
        pred, logits, boxes_before = predict_with_parts(trained.model, variables, images, batch.sizes)
        locations = batch_locations(batch, config)
        boxes = pred.boxes[0] * strides
        final = confidences(pred, config)[0]
        best = pred.scores[0].argmax(axis=-1)
        score, aligned, cls = (
            jnp.take_along_axis(x, best[:, None], axis=1)[:, 0] for x in (final, pred.scores[0], nn.sigmoid(logits[0]))
        )
        shown = jnp.where(locations.valid[0] & (score >= SHOWN_SCORE), score, 0)
        keep = nms(boxes, shown, best, iou_threshold=config.detect.nms_iou, max_detections=SHOWN_BOXES)
        return {
            "valid": locations.valid[0],
            "cls": cls,
            "alignment": None if pred.offsets is None else aligned**2 / jnp.maximum(cls, 1e-12),
            "score": score,
            "label": best,
            "boxes_before": boxes_before[0] * strides,
            "boxes": boxes,
            "offsets": None if pred.offsets is None else pred.offsets[0].reshape(-1, 4, 2) * strides[..., None],
            "iou": owners(boxes, batch.gt_boxes[0], batch.gt_mask[0])[1],
            "assignment": jax.tree.map(lambda x: x[0], assign(pred, batch, locations, True, config)),
            "detected": keep,
        }

    found: Any = jax.device_get(jax.jit(compute)(trained.params, trained.batch_stats, batch))
    return InnerMaps(pyramid=pyramid, **{**found, "detected": found["detected"][found["detected"] >= 0]})


def predict_with_parts(
    model: nn.Module, variables: Any, images: Array, sizes: Array
) -> tuple[Predictions, Array, Array]:
    """Return predictions, class logits [B, N, C] and boxes before alignment [B, N, 4] in strides, by any head.

    They are recorded where `TaskAlignment` receives them, which every head calls, also without alignment.
    """
    recorded: list[tuple[Array, Array]] = []

    def record(call, arguments, keywords, context):
        if isinstance(context.module, TaskAlignment) and context.method_name == "__call__":
            recorded.append(arguments[:2])
        return call(*arguments, **keywords)

    with nn.intercept_methods(record):
        pred: Any = model.apply(variables, images, False, sizes)
    parts = zip(*recorded, strict=True)
    shapes = pred.scores.shape, pred.boxes.shape
    logits, boxes = (
        jnp.concatenate([x.reshape(len(x), -1, shape[-1]) for x in part], axis=1)
        for part, shape in zip(parts, shapes, strict=True)
    )
    return pred, logits, boxes
