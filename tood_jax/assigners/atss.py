"""Adaptive training sample selection (Zhang et al. 2020, algorithm 1), TOOD's assignment during warm-up.

Axes: N locations · M padded objects · K candidates per object (topk per level) · G objects per chunk. Boxes: xyxy,
pixels.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from tood_jax.assigners.base import MIN_INSIDE_DISTANCE, Candidates, map_in_chunks, resolve_conflicts, scatter
from tood_jax.geometry.boxes import aligned_iou, inside_distance
from tood_jax.types import Assignment


def assign_atss(
    anchors: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    gt_boxes: Float[Array, "m 4"],
    gt_mask: Bool[Array, " m"],
    *,
    level_slices: tuple[slice, ...],
    topk: int = 9,
    chunk: int = 64,
) -> Assignment:
    """Assign one image's locations by geometry alone.

    The candidates of an object are the `topk` anchors per level whose centres are nearest to its own (fewer on a level
    with fewer valid locations). Positive are those whose IoU reaches the mean plus the standard deviation (n − 1) over
    its candidates and whose centre is inside it. A location of several objects goes to that of highest IoU.

    Args:
        anchors: one square per location, pixels.
        valid: False for locations outside the image's padded area.
        gt_boxes: padded objects, pixels.
        gt_mask: True for objects, False for padding.
        level_slices: which part of N each level is.
        topk: candidates per level, clamped to the level's locations.
        chunk: objects processed at a time; memory grows with chunk · N.

    Returns:
        Assignment over [N]; metric and soft_label are 1 on positives.
    """
    anchors, valid = jnp.asarray(anchors), jnp.asarray(valid)
    num_locations = anchors.shape[0]
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2

    def select(gt_boxes, gt_mask) -> Candidates:
        gt_centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
        distance = jnp.linalg.norm(centers[None] - gt_centers[:, None], axis=-1)  # [G, N]
        distance = jnp.where(valid, distance, jnp.inf)
        nearest = [lax.top_k(-distance[:, s], min(topk, s.stop - s.start))[1] + s.start for s in level_slices]
        location = jnp.concatenate(nearest, axis=1)  # [G, K]
        usable = valid[location]
        iou = aligned_iou(anchors[location], gt_boxes[:, None])
        count = usable.sum(axis=1, keepdims=True)
        mean = jnp.sum(iou, axis=1, keepdims=True, where=usable) / jnp.maximum(count, 1)
        variance = jnp.sum((iou - mean) ** 2, axis=1, keepdims=True, where=usable) / jnp.maximum(count - 1, 1)
        inside = inside_distance(centers[location], gt_boxes[:, None]) > MIN_INSIDE_DISTANCE
        positive = (iou >= mean + jnp.sqrt(variance)) & inside & usable & gt_mask[:, None]
        return Candidates(location, positive, iou, jnp.ones_like(iou))

    candidates = map_in_chunks(select, (gt_boxes, gt_mask), chunk)
    gt_index, kept = resolve_conflicts(candidates, num_locations)
    ones = (gt_index >= 0).astype(candidates.iou.dtype)
    return Assignment(gt_index, ones, scatter(candidates.iou, candidates, kept, num_locations), ones)


def assign_atss_batch(anchors, valid, gt_boxes, gt_mask, **options) -> Assignment:
    """Apply `assign_atss` to a batch: every argument except `anchors` has B in front."""
    return jax.vmap(lambda *image: assign_atss(*image, **options), in_axes=(None, 0, 0, 0))(
        anchors, valid, gt_boxes, gt_mask
    )
