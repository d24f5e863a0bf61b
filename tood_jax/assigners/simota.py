"""SimOTA: each object takes its cheapest locations, as many as its predictions are good.

YOLOX: Ge et al. 2021, section 2.

Axes: N locations · M padded objects · C classes · K candidates per object · G objects per chunk. Boxes: xyxy, canvas
pixels.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.assigners.base import fold_in_chunks, full_assignment, near_center
from tood_jax.geometry.boxes import inside_distance, pairwise_iou
from tood_jax.types import Assignment

OUTSIDE_COST = 100_000.0  # added where a location isn't both in the box and near its centre (published code)
EPS = 1e-7  # keeps −log IoU finite (published code)


def assign_simota(
    scores: Float[Array, "n c"],
    boxes: Float[Array, "n 4"],
    points: Float[Array, "n 2"],
    strides: Float[Array, " n"],
    valid: Bool[Array, " n"],
    gt_boxes: Float[Array, "m 4"],
    gt_labels: Int[Array, " m"],
    gt_mask: Bool[Array, " m"],
    *,
    center_radius: float = 2.5,
    topk: int = 10,
    iou_weight: float = 3.0,
    cls_weight: float = 1.0,
    chunk: int = 64,
) -> Assignment:
    """Assign one image's locations by their predictions; no gradient flows through it.

    Candidates are the locations that lie in some object or near some object's centre. A candidate costs an object
    `cls_weight` · cross entropy (over all classes, towards 1 at the object's class and 0 elsewhere) − `iou_weight` ·
    log IoU, and far more if it isn't both in that object and near its centre. The object takes its k cheapest
    candidates, k being the whole part of the sum of its `topk` largest IoUs, at least 1. A location taken by several
    goes to the object it costs least, whether or not that one took it (published code).

    Args:
        scores: 0–1, class scores.
        boxes: predicted boxes, pixels.
        points: each location's point (x, y), pixels.
        strides: each location's stride, pixels.
        valid: False for locations outside the image's padded area.
        gt_boxes: padded objects, pixels.
        gt_labels: their classes, 0…C-1.
        gt_mask: True for objects, False for padding.
        center_radius: strides.
        topk: clamped to N.
        chunk: objects processed at a time; memory grows with chunk · N.

    Returns:
        Assignment over [N]; metric and soft_label are 1 on positives, iou is the predicted box's.
    """
    scores, boxes, points, strides, gt_boxes = lax.stop_gradient(
        jax.tree.map(jnp.asarray, (scores, boxes, points, strides, gt_boxes))
    )
    valid, gt_labels, gt_mask = (jnp.asarray(x) for x in (valid, gt_labels, gt_mask))
    num_locations = boxes.shape[0]
    topk = min(topk, num_locations)
    log_yes, log_no = jnp.maximum(jnp.log(scores), -100), jnp.maximum(jnp.log1p(-scores), -100)
    cost_of_none = -log_no.sum(axis=1)  # [N] cross entropy towards no class at all
    yes_instead_of_no = (log_no - log_yes).T  # [C, N]: what it adds that one class is there

    def candidates(state, gt_boxes, gt_mask):
        inside = inside_distance(points, gt_boxes[:, None]) > 0
        near = near_center(points, strides, gt_boxes, center_radius)
        return state | ((inside | near) & gt_mask[:, None]).any(axis=0)

    candidate = valid & fold_in_chunks(candidates, jnp.zeros(num_locations, bool), (gt_boxes, gt_mask), chunk)

    def fold(state, index, gt_boxes, gt_labels, gt_mask):
        least, cheapest, takers, taker = state
        usable = candidate & gt_mask[:, None]  # [G, N]
        iou = jnp.where(usable, pairwise_iou(gt_boxes, boxes), 0)
        inside = inside_distance(points, gt_boxes[:, None]) > 0
        inside &= near_center(points, strides, gt_boxes, center_radius)
        cost = (cost_of_none + yes_instead_of_no[gt_labels]) * cls_weight - jnp.log(iou + EPS) * iou_weight
        cost = jnp.where(usable, cost + jnp.where(inside, 0, OUTSIDE_COST), jnp.inf)

        count = jnp.maximum(lax.top_k(iou, topk)[0].sum(axis=1).astype(jnp.int32), 1)  # [G]
        lowest, location = lax.top_k(-cost, topk)  # [G, K]
        takes = (jnp.arange(topk) < count[:, None]) & (lowest > -jnp.inf)
        location = jnp.where(takes, location, num_locations)  # out of bounds: dropped
        takers = takers.at[location].add(1, mode="drop")
        taker = taker.at[location].max(jnp.broadcast_to(index[:, None], location.shape), mode="drop")

        lowest, first = cost.min(axis=0), index[cost.argmin(axis=0)]
        return jnp.minimum(least, lowest), jnp.where(lowest < least, first, cheapest), takers, taker

    no_object = jnp.full(num_locations, -1, jnp.int32)
    start = jnp.full(num_locations, jnp.inf), no_object, jnp.zeros(num_locations, jnp.int32), no_object
    objects = jnp.arange(gt_boxes.shape[0], dtype=jnp.int32), gt_boxes, gt_labels, gt_mask
    _, cheapest, takers, taker = fold_in_chunks(fold, start, objects, chunk)
    return full_assignment(jnp.where(takers > 1, cheapest, taker), boxes, gt_boxes)


def assign_simota_batch(
    scores, boxes, points, strides, valid, gt_boxes, gt_labels, gt_mask, **options
) -> Assignment:  # fmt: skip
    """Apply `assign_simota` to a batch: every argument except `points` and `strides` has B in front."""
    return jax.vmap(lambda *image: assign_simota(*image, **options), in_axes=(0, 0, None, None, 0, 0, 0, 0))(
        scores, boxes, points, strides, valid, gt_boxes, gt_labels, gt_mask
    )
