"""How well classification and localization agree: the measures of the paper's Table 6, on the device.

Feng et al. (ICCV 2021) measure two things on COCO val2017:

- Without NMS: for each object, the Pearson correlation between the ranks of classification and of localization of its
  50 most confident predictions, and the mean IoU of the 10 most confident ones; both averaged over the objects.
- With NMS: the number of correct boxes (IoU ≥ 0.5), redundant boxes (IoU ≥ 0.5) and error boxes (0.1 < IoU < 0.5).

The paper leaves the following open. Here

- a prediction belongs to the object with which its box has the largest IoU, if that is above 0.1 (of equal IoU, to the
  first object); predictions in the padding belong to none;
- its confidence is the final score of the object's class: with a quality branch, after the product (or the root of it);
- the rank of localization is that of the IoU; equal values share the mean of their ranks;
- an object with fewer predictions uses those that it has; one with fewer than two, or with constant ranks, has no
  correlation, and one without predictions has a mean IoU of 0;
- boxes with NMS are the detections of `detect`, with its threshold and limit. Matching is COCO's: a detection that
  takes an object is correct; another one whose IoU with an object of its class is at least 0.5 is redundant; one whose
  largest IoU with the objects of its class is between 0.1 and 0.5 is an error. Crowd regions count as background.

Axes: B images · N locations · C classes · M padded objects. Boxes are xyxy in canvas pixels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.config import Config
from tood_jax.evaluation.matching import match_detections
from tood_jax.geometry.boxes import aligned_iou
from tood_jax.geometry.locations import locations_in_image
from tood_jax.models.detector import canvas_pyramid, detections
from tood_jax.types import Batch, Predictions

CORRELATED, AVERAGED = 50, 10  # most confident predictions per object: of the correlation, and of the mean IoU
CORRECT_IOU, ERROR_IOU = 0.5, 0.1
MIN_IOU = 0.1  # a prediction belongs to an object above it
_OBJECTS_AT_ONCE = 16  # bounds memory


class Alignment(NamedTuple):
    """Measures of the objects and detections of a batch."""

    correlation: Float[Array, "b m"]  # -1–1; NaN where it is undefined, and for padding
    mean_iou: Float[Array, "b m"]  # 0–1; NaN for padding
    correct: Int[Array, " b"]
    redundant: Int[Array, " b"]
    error: Int[Array, " b"]


def measure_alignment(pred: Predictions, batch: Batch, config: Config) -> Alignment:
    """Return the measures of a batch, for any head."""
    pyramid = canvas_pyramid(batch, config.head.anchors_per_location)
    correlation, mean_iou = jax.vmap(object_alignment)(
        confidences(pred, config),
        pred.boxes * pyramid.strides[:, None],
        locations_in_image(pyramid, batch.sizes),
        batch.gt_boxes,
        batch.gt_labels,
        batch.gt_mask,
    )
    found = detections(pred, batch, config)
    gt_boxes = original_boxes(batch)
    counts = jax.vmap(count_boxes)(found.boxes, found.labels, gt_boxes, batch.gt_labels, batch.gt_mask)
    return Alignment(correlation, mean_iou, *counts)


def confidences(pred: Predictions, config: Config) -> Float[Array, "b n c"]:
    """Return the final scores of all predictions, as `detect` ranks them before NMS."""
    if pred.quality is None:
        return pred.scores
    product = pred.scores * nn.sigmoid(pred.quality)[..., None]
    return jnp.sqrt(product) if config.detect.quality_fusion == "geometric_mean" else product


def original_boxes(batch: Batch) -> Float[Array, "b m 4"]:
    """Return the objects' boxes in pixels of the original images."""
    return batch.gt_boxes / jnp.tile(batch.scales[:, None, ::-1], 2)


def object_alignment(
    scores: Float[Array, "n c"],
    boxes: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    gt_boxes: Float[Array, "m 4"],
    gt_labels: Int[Array, " m"],
    gt_mask: Bool[Array, " m"],
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Return (correlation, mean IoU) of each object of one image; the module defines both."""
    owner, iou = owners(boxes, gt_boxes, gt_mask)
    count = min(CORRELATED, len(boxes))

    def one(index, label, is_object):
        is_own = valid & (owner == index)
        confidence, location = lax.top_k(jnp.where(is_own, scores[:, label], -1), count)
        exists, quality = is_own[location], iou[location]
        averaged = exists & (jnp.arange(count) < AVERAGED)
        mean_iou = jnp.where(averaged, quality, 0).sum() / jnp.maximum(averaged.sum(), 1)
        correlation = _pearson(_ranks(confidence, exists), _ranks(quality, exists), exists)
        return jnp.where(is_object, correlation, jnp.nan), jnp.where(is_object, mean_iou, jnp.nan)

    objects = jnp.arange(len(gt_boxes)), gt_labels, gt_mask
    return lax.map(lambda arguments: one(*arguments), objects, batch_size=_OBJECTS_AT_ONCE)


def owners(
    boxes: Float[Array, "n 4"], gt_boxes: Float[Array, "m 4"], gt_mask: Bool[Array, " m"]
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Return the object that each box belongs to (-1 for none) and its IoU with it, without an array of N·M."""

    def compare(best, gt):
        gt_box, is_object, index = gt
        iou = jnp.where(is_object, aligned_iou(boxes, gt_box), 0)
        is_better = (iou > best[1]) & (iou > MIN_IOU)
        return (jnp.where(is_better, index, best[0]), jnp.where(is_better, iou, best[1])), None

    none = jnp.full(len(boxes), -1, jnp.int32), jnp.zeros(len(boxes), boxes.dtype)
    return lax.scan(compare, none, (gt_boxes, gt_mask, jnp.arange(len(gt_boxes), dtype=jnp.int32)))[0]


def count_boxes(
    boxes: Float[Array, "k 4"],
    labels: Int[Array, " k"],
    gt_boxes: Float[Array, "m 4"],
    gt_labels: Int[Array, " m"],
    gt_mask: Bool[Array, " m"],
) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Return the numbers of correct, redundant and error boxes among the detections of one image.

    Detections of label -1 are padding.
    """
    found = match_detections(boxes, labels, gt_boxes, gt_labels, gt_mask, CORRECT_IOU)
    is_correct = found.gt_index >= 0
    is_redundant = ~is_correct & (found.largest_iou >= CORRECT_IOU)
    is_error = (found.largest_iou > ERROR_IOU) & (found.largest_iou < CORRECT_IOU)
    correct, redundant, error = (x.sum(dtype=jnp.int32) for x in (is_correct, is_redundant, is_error))
    return correct, redundant, error


def _ranks(values: Float[Array, " k"], exists: Bool[Array, " k"]) -> Float[Array, " k"]:
    """Return the rank of each value among those that exist, from 0; equal values share the mean of their ranks."""
    smaller = (values < values[:, None]) & exists
    equal = (values == values[:, None]) & exists
    return smaller.sum(axis=1) + (equal.sum(axis=1) - 1) / 2


def _pearson(a: Float[Array, " k"], b: Float[Array, " k"], exists: Bool[Array, " k"]) -> Float[Array, ""]:
    """Return Pearson's correlation of the values that exist; NaN where one of both is constant."""
    count = jnp.maximum(exists.sum(), 1)
    a, b = (jnp.where(exists, x - jnp.where(exists, x, 0).sum() / count, 0) for x in (a, b))
    scale = jnp.sqrt((a**2).sum() * (b**2).sum())
    return jnp.where(scale > 0, (a * b).sum() / jnp.where(scale > 0, scale, 1), jnp.nan)
