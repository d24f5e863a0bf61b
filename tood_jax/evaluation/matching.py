"""Match detections with objects, on the device.

Axes: K detections, best first · M padded objects. Boxes are xyxy in one unit.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.geometry.boxes import pairwise_iou


class Matches(NamedTuple):
    """What each detection of an image matches."""

    gt_index: Int[Array, " k"]  # the object that the detection finds, or -1
    largest_iou: Float[Array, " k"]  # 0–1, with any object of the detection's class; 0 for padding


def match_detections(
    boxes: Float[Array, "k 4"],
    labels: Int[Array, " k"],
    gt_boxes: Float[Array, "m 4"],
    gt_labels: Int[Array, " m"],
    gt_mask: Bool[Array, " m"],
    iou_threshold: float,
) -> Matches:
    """Match the detections of one image as COCO does, at one IoU.

    The detections choose in their order: each takes the object of its class with the largest IoU among those that no
    earlier one took, if that IoU is at least `iou_threshold`. Of equal IoU, the first object is taken.

    Args:
        labels: 0…C-1, or -1 for padding.
        gt_labels: 0…C-1.
        gt_mask: False for padding.
    """
    same_class = (labels[:, None] == gt_labels) & (labels[:, None] >= 0) & gt_mask
    iou = jnp.where(same_class, pairwise_iou(boxes, gt_boxes), 0)  # [K, M]

    def take(is_free, iou):
        candidates = jnp.where(is_free, iou, -1)
        best = candidates.argmax()
        is_match = (candidates[best] >= iou_threshold) & (candidates[best] > 0)
        return is_free.at[best].set(is_free[best] & ~is_match), jnp.where(is_match, best, -1).astype(jnp.int32)

    gt_index = lax.scan(take, gt_mask, iou)[1]
    return Matches(gt_index, iou.max(axis=1, initial=0))
