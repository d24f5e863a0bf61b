"""Task-aligned assignment (paper section 3.2.1): the m best-aligned locations of each object learn it.

Axes: N locations · M padded objects · C classes · G objects per chunk. Boxes are xyxy in canvas pixels.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.assigners.base import MIN_INSIDE_DISTANCE, Candidates, map_in_chunks, resolve_conflicts, scatter
from tood_jax.geometry.boxes import inside_distance, pairwise_iou
from tood_jax.types import Assignment

EPS = 1e-7  # keeps t / max t finite (published code)


def alignment_metric(score: Float[Array, "*n"], iou: Float[Array, "*n"], alpha: float, beta: float):
    """Return t = s^α · u^β (equation 9); whole exponents are multiplied out, which is faster and exact."""

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
    min_iou: float = 0.0,
    chunk: int = 64,
) -> Assignment:
    """Assign one image's locations by their predictions; no gradient flows through it.

    The candidates of an object are its `topk` valid locations of largest alignment metric; of these, locations whose
    point is not inside the box are dropped. A candidate of several objects goes to that of highest IoU (the published
    code; the paper says the smallest object).

    Args:
        scores: 0–1, aligned class scores.
        boxes: predicted boxes, pixels.
        points: the locations' points, pixels.
        valid: False for locations outside the image's padded area.
        gt_boxes: padded objects, pixels.
        gt_labels: their classes, 0…C-1.
        gt_mask: True for objects, False for padding.
        topk: m; clamped to N.
        alpha: exponent of the score.
        beta: exponent of the IoU.
        min_iou: an object none of whose candidates has this IoU gets no location, and is True in `rescued`: its targets
            would be too small to learn from (`rescue.py` assigns it by ATSS). 0 for none, as published.
        chunk: objects processed at a time; memory grows with chunk · N.

    Returns:
        Assignment over [N]; `soft_label` is t̂ = t / (max t + 1e-7) · max IoU, maxima per object. `rescued` is None if
        min_iou is 0.
    """
    scores, boxes, points, gt_boxes = lax.stop_gradient(jax.tree.map(jnp.asarray, (scores, boxes, points, gt_boxes)))
    num_locations = boxes.shape[0]
    topk = min(topk, num_locations)
    scores_by_class = scores.T  # [C, N]: a class's scores are one row

    def select(gt_boxes, gt_labels, gt_mask) -> Candidates:
        iou = pairwise_iou(gt_boxes, boxes)  # [G, N]
        metric = alignment_metric(scores_by_class[gt_labels], iou, alpha, beta)
        metric = jnp.where(valid & gt_mask[:, None], metric, -1.0)
        best, location = lax.top_k(metric, topk)  # [G, m]
        inside = inside_distance(points[location], gt_boxes[:, None]) > MIN_INSIDE_DISTANCE
        return Candidates(location, (best > 0) & inside, jnp.take_along_axis(iou, location, axis=1), best)

    candidates = map_in_chunks(select, (gt_boxes, gt_labels, gt_mask), chunk)
    rescued = None
    if min_iou > 0:
        best_iou = jnp.where(candidates.positive, candidates.iou, 0).max(axis=1, initial=0)  # [M]
        rescued = gt_mask & (best_iou < min_iou)
        candidates = candidates._replace(positive=candidates.positive & ~rescued[:, None])
    gt_index, kept = resolve_conflicts(candidates, num_locations)
    metric = jnp.where(kept, candidates.metric, 0)
    iou = jnp.where(kept, candidates.iou, 0)
    largest = metric.max(axis=1, keepdims=True, initial=0), iou.max(axis=1, keepdims=True, initial=0)  # [M, 1]
    soft_label = metric / (largest[0] + EPS) * largest[1]
    metric, iou, soft_label = (scatter(x, candidates, kept, num_locations) for x in (metric, iou, soft_label))
    return Assignment(gt_index, metric, iou, soft_label, rescued)


def assign_task_aligned_batch(scores, boxes, points, valid, gt_boxes, gt_labels, gt_mask, **options) -> Assignment:
    """Apply `assign_task_aligned` to a batch: every argument except `points` has B in front."""
    return jax.vmap(lambda *image: assign_task_aligned(*image, **options), in_axes=(0, 0, None, 0, 0, 0, 0))(
        scores, boxes, points, valid, gt_boxes, gt_labels, gt_mask
    )
