"""Adaptive training sample selection (Zhang et al. 2020, algorithm 1), TOOD's assignment during warm-up.

Axes: N cells · M padded objects · K candidates an object (topk a level) · G objects a chunk. Boxes: xyxy, pixels.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from tood_jax.assigners.claims import MIN_INSIDE_DISTANCE, Claims, claim_in_chunks, settle, spread
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
    """Assign one image's cells by geometry alone.

    An object's candidates are the `topk` anchors a level whose centres are nearest to its own (fewer on a level with
    fewer valid cells). It claims those whose IoU reaches the mean plus the standard deviation (n − 1) over its
    candidates and whose centre lies inside it. A cell claimed twice goes to the object of highest IoU.

    Args:
        anchors: one square a cell, pixels.
        valid: False for cells outside the image's padded area.
        gt_boxes, gt_mask: padded objects.
        level_slices: where each level's cells lie in N.
        topk: candidates a level, clamped to the level's cells.
        chunk: objects worked off at a time; memory grows with chunk · N.

    Returns:
        Assignment over [N]; metric and soft_label are 1 on positives.
    """
    anchors, valid = jnp.asarray(anchors), jnp.asarray(valid)
    num_cells = anchors.shape[0]
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2

    def claim(gt_boxes, gt_mask) -> Claims:
        gt_centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
        distance = jnp.linalg.norm(centers[None] - gt_centers[:, None], axis=-1)  # [G, N]
        distance = jnp.where(valid, distance, jnp.inf)
        nearest = [lax.top_k(-distance[:, s], min(topk, s.stop - s.start))[1] + s.start for s in level_slices]
        cell = jnp.concatenate(nearest, axis=1)  # [G, K]
        usable = valid[cell]
        iou = aligned_iou(anchors[cell], gt_boxes[:, None])
        count = usable.sum(axis=1, keepdims=True)
        mean = jnp.sum(iou, axis=1, keepdims=True, where=usable) / jnp.maximum(count, 1)
        variance = jnp.sum((iou - mean) ** 2, axis=1, keepdims=True, where=usable) / jnp.maximum(count - 1, 1)
        inside = inside_distance(centers[cell], gt_boxes[:, None]) > MIN_INSIDE_DISTANCE
        positive = (iou >= mean + jnp.sqrt(variance)) & inside & usable & gt_mask[:, None]
        return Claims(cell, positive, iou, jnp.ones_like(iou))

    claims = claim_in_chunks(claim, (gt_boxes, gt_mask), chunk)
    gt_index, granted = settle(claims, num_cells)
    ones = (gt_index >= 0).astype(jnp.float32)
    return Assignment(gt_index, ones, spread(claims.iou, claims, granted, num_cells), ones)


def assign_atss_batch(anchors, valid, gt_boxes, gt_mask, **options) -> Assignment:
    """`assign_atss` for a batch: every argument but `anchors` has B in front."""
    return jax.vmap(lambda *image: assign_atss(*image, **options), in_axes=(None, 0, 0, 0))(
        anchors, valid, gt_boxes, gt_mask
    )
