"""Task-aligned assignment (paper section 3.2.1): the m best-aligned cells of each object learn it.

Axes: N cells · M padded objects · C classes · G objects a chunk. Boxes are xyxy in canvas pixels.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.assigners.claims import MIN_INSIDE_DISTANCE, Claims, claim_in_chunks, settle, spread
from tood_jax.geometry.boxes import inside_distance, pairwise_iou
from tood_jax.types import Assignment

EPS = 1e-7  # keeps t / max t finite (published code)


def alignment_metric(score: Float[Array, "*n"], iou: Float[Array, "*n"], alpha: float, beta: float):
    """t = s^α · u^β (equation 6); whole exponents are multiplied out, which is faster and exact."""

    def power(x, exponent):
        return x ** int(exponent) if float(exponent).is_integer() else x**exponent

    return power(score, alpha) * power(iou, beta)


def assign_task_aligned(
    scores: Float[Array, "n c"],
    boxes: Float[Array, "n 4"],
    points: Float[Array, "n 2"],
    valid: Bool[Array, " n"],
    gt_boxes: Float[Array, "m 4"],
    gt_labels: Int[Array, " m"],
    gt_mask: Bool[Array, " m"],
    *,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
    chunk: int = 64,
) -> Assignment:
    """Assign one image's cells by their predictions; no gradient flows through it.

    An object claims its `topk` cells of largest alignment metric (over all valid cells, then those whose point is not
    inside the box are dropped). A cell claimed twice goes to the object of highest IoU (the published code; the paper
    says the smallest object).

    Args:
        scores: 0–1, aligned class scores.
        boxes: predicted boxes, pixels.
        points: the cells' points, pixels.
        valid: False for cells outside the image's padded area.
        gt_boxes, gt_labels, gt_mask: padded objects.
        topk: m; clamped to N.
        alpha, beta: exponents of score and IoU.
        chunk: objects worked off at a time; memory grows with chunk · N.

    Returns:
        Assignment over [N]; `soft_label` is t̂ = t / (max t + 1e-7) · max IoU, an object.
    """
    scores, boxes, points, gt_boxes = lax.stop_gradient(jax.tree.map(jnp.asarray, (scores, boxes, points, gt_boxes)))
    num_cells = boxes.shape[0]
    topk = min(topk, num_cells)
    scores_by_class = scores.T  # [C, N]: a class's scores are one row

    def claim(gt_boxes, gt_labels, gt_mask) -> Claims:
        iou = pairwise_iou(gt_boxes, boxes)  # [G, N]
        metric = alignment_metric(scores_by_class[gt_labels], iou, alpha, beta)
        metric = jnp.where(valid & gt_mask[:, None], metric, -1.0)
        best, cell = lax.top_k(metric, topk)  # [G, m]
        inside = inside_distance(points[cell], gt_boxes[:, None]) > MIN_INSIDE_DISTANCE
        return Claims(cell, (best > 0) & inside, jnp.take_along_axis(iou, cell, axis=1), best)

    claims = claim_in_chunks(claim, (gt_boxes, gt_labels, gt_mask), chunk)
    gt_index, granted = settle(claims, num_cells)
    metric = jnp.where(granted, claims.metric, 0)
    iou = jnp.where(granted, claims.iou, 0)
    largest = metric.max(axis=1, keepdims=True, initial=0), iou.max(axis=1, keepdims=True, initial=0)  # [M, 1]
    soft_label = metric / (largest[0] + EPS) * largest[1]
    return Assignment(gt_index, *(spread(x, claims, granted, num_cells) for x in (metric, iou, soft_label)))


def assign_task_aligned_batch(scores, boxes, points, valid, gt_boxes, gt_labels, gt_mask, **options) -> Assignment:
    """`assign_task_aligned` for a batch: every argument but `points` has B in front."""
    return jax.vmap(lambda *image: assign_task_aligned(*image, **options), in_axes=(0, 0, None, 0, 0, 0, 0))(
        scores, boxes, points, valid, gt_boxes, gt_labels, gt_mask
    )
