"""One location for each object that an assignment left without any, such as an object smaller than a stride.

A location is a candidate of an object in the task-aligned assigner only if its point is inside the box, and the object
of highest IoU takes it. So a small object between two points gets no positive, and neither does one that loses all its
candidates to others: it is background in that step.

Axes: N locations · M padded objects · C classes · K candidates per object · G objects per chunk.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.assigners.base import Candidates, map_in_chunks
from tood_jax.assigners.task_aligned import alignment_metric
from tood_jax.geometry.boxes import inside_distance, pairwise_iou
from tood_jax.types import Assignment

MIN_SOFT_LABEL = 0.1  # of an added location: with a target of 0, where the IoU is 0, the object would learn nothing


class Objects(NamedTuple):
    """The padded objects of an image."""

    boxes: Float[Array, "m 4"]  # xyxy, pixels
    labels: Int[Array, " m"]  # 0…C-1
    mask: Bool[Array, " m"]  # False for padding


def without_positives(gt_index: Int[Array, " n"], gt_mask: Bool[Array, " m"]) -> Bool[Array, " m"]:
    """Return which objects have no location."""
    if len(gt_mask) == 0:
        return gt_mask
    owner = jnp.where(gt_index >= 0, gt_index, len(gt_mask))  # out of bounds: dropped
    return gt_mask & ~jnp.zeros_like(gt_mask).at[owner].set(True, mode="drop")


def add_best_locations(
    assignment: Assignment,
    scores: Float[Array, "n c"],
    boxes: Float[Array, "n 4"],
    points: Float[Array, "n 2"],
    strides: Float[Array, " n"],
    valid: Bool[Array, " n"],
    objects: Objects,
    *,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
    chunk: int = 64,
) -> Assignment:
    """Give each object without positives its best location that no other object has.

    Candidates of an object are the valid locations whose point is in its box enlarged by the location's stride on each
    side: those of largest alignment metric, then, where no predicted box overlaps the object, those nearest to its
    centre; at most `topk`. Objects choose in their order, and an object whose candidates all belong to others stays
    without a positive. Locations that have an object keep it.

    Args:
        assignment: of one image, by `assign_task_aligned` (and `add_rescued`).
        scores: 0–1, aligned class scores.
        boxes: predicted boxes, xyxy in pixels.
        points: the locations, pixels.
        strides: of the locations, pixels.
        valid: False for locations outside of the image's padded area.
        objects: of the image.
        topk: K; clamped to N.
        alpha: exponent of the score in the metric.
        beta: exponent of the IoU in the metric.
        chunk: G, objects processed at a time.

    Returns:
        The assignment; of an added location `soft_label` is its IoU, at least 0.1.
    """
    if len(objects.mask) == 0:
        return assignment
    needy = without_positives(assignment.gt_index, objects.mask)
    topk = min(topk, len(points))
    scores_by_class = scores.T

    def select(gt_boxes, gt_labels, needy) -> Candidates:
        iou = pairwise_iou(gt_boxes, boxes)  # [G, N]
        metric = alignment_metric(scores_by_class[gt_labels], iou, alpha, beta)
        reach = jnp.asarray([-1.0, -1.0, 1.0, 1.0]) * strides[:, None]  # [N, 4]
        is_near = inside_distance(points, gt_boxes[:, None] + reach) > 0
        centers = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2
        distance = jnp.linalg.norm(points - centers, axis=-1)
        rank = jnp.where(metric > 0, metric, -1 - distance)
        rank = jnp.where(is_near & valid & needy[:, None], rank, -jnp.inf)
        best, location = lax.top_k(rank, topk)  # [G, K]
        return Candidates(location, best > -jnp.inf, *(jnp.take_along_axis(x, location, axis=1) for x in (iou, metric)))

    candidates = map_in_chunks(select, (objects.boxes, objects.labels, needy), chunk)

    def choose(state: Assignment, item: tuple[Candidates, Array]) -> tuple[Assignment, None]:
        one, number = item
        is_free = one.positive & (state.gt_index[one.location] < 0)
        first = is_free.argmax()
        location = jnp.where(is_free.any(), one.location[first], len(points))  # out of bounds: dropped
        iou = one.iou[first]
        values = (number, one.metric[first], iou, jnp.maximum(iou, MIN_SOFT_LABEL))
        gt_index, metric, ious, soft_label = (
            array.at[location].set(value, mode="drop") for array, value in zip(state[:4], values, strict=True)
        )
        return Assignment(gt_index, metric, ious, soft_label, state.rescued), None

    numbers = jnp.arange(len(objects.mask), dtype=assignment.gt_index.dtype)
    return lax.scan(choose, assignment, (candidates, numbers))[0]
