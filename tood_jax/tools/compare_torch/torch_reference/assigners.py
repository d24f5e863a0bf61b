"""Assignment of objects to the locations of an image: ATSS in the warm-up, then task-aligned assignment.

Axes: N locations · M objects · C classes. Boxes are xyxy in pixels. Gradients never flow through an assignment.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tood_jax.tools.compare_torch.torch_reference.boxes import Locations, inside_distance, iou
from tood_jax.tools.compare_torch.torch_reference.head import ANCHOR_SCALE

MIN_INSIDE_DISTANCE = 0.01  # least distance in pixels of a positive location from the sides of its box
EPS = 1e-7


class Assignment(NamedTuple):
    """The object of each location."""

    gt_index: Int[Tensor, " n"]  # position of the object, or -1
    soft_label: Float[Tensor, " n"]  # t̂ 0–1 (ATSS: 1); 0 without an object


class Objects(NamedTuple):
    """Ground truth of an image."""

    boxes: Float[Tensor, "m 4"]
    labels: Int[Tensor, " m"]


@torch.no_grad()
def assign_atss(locations: Locations, valid: Bool[Tensor, " n"], objects: Objects, topk: int = 9) -> Assignment:
    """Adaptive training sample selection (Zhang et al. 2020, algorithm 1).

    The candidates of an object are the `topk` locations per level that are nearest to its center. Positive are those
    whose anchor reaches the mean plus the standard deviation of the candidates' IoU, and that are inside the box.
    """
    half = locations.strides[:, None] * ANCHOR_SCALE / 2
    anchors = torch.cat([locations.points - half, locations.points + half], dim=-1)
    positives, ious = [], []
    for box in objects.boxes:
        distance = (locations.points - (box[:2] + box[2:]) / 2).norm(dim=-1)
        candidates = []
        start = 0
        for size in locations.level_sizes:
            on_level = torch.arange(start, start + size)[valid[start : start + size]]
            nearest = distance[on_level].topk(min(topk, len(on_level)), largest=False).indices
            candidates.append(on_level[nearest])
            start += size
        candidate = torch.cat(candidates)
        overlap = iou(anchors, box)
        deviation = overlap[candidate].std() if len(candidate) > 1 else 0
        good = overlap[candidate] >= overlap[candidate].mean() + deviation
        inside = inside_distance(locations.points[candidate], box) > MIN_INSIDE_DISTANCE
        positives.append(_mask(candidate[good & inside], len(valid)))
        ious.append(overlap)
    gt_index = resolve_conflicts(positives, ious, len(valid))
    return Assignment(gt_index, (gt_index >= 0).to(locations.points))


@torch.no_grad()
def assign_task_aligned(
    scores: Float[Tensor, "n c"],
    boxes: Float[Tensor, "n 4"],
    locations: Locations,
    valid: Bool[Tensor, " n"],
    objects: Objects,
    *,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Assignment:
    """Task-aligned assignment (TOOD, section 3.2.1): the `topk` locations per object with the largest t = s^α·u^β.

    Args:
        scores: predicted scores, 0–1.
        boxes: predicted boxes, pixels.
        locations: all locations.
        valid: False for locations outside the image.
        objects: the ground truth.
        topk: m, the largest number of positives of an object.
        alpha: exponent of the score.
        beta: exponent of the IoU.
    """
    positives, ious, metrics = [], [], []
    for box, label in zip(objects.boxes, objects.labels, strict=True):
        overlap = iou(boxes, box)
        metric = scores[:, label] ** alpha * overlap**beta
        metric = metric.masked_fill(~valid, -1)
        best, candidate = metric.topk(min(topk, len(metric)))
        inside = inside_distance(locations.points[candidate], box) > MIN_INSIDE_DISTANCE
        positives.append(_mask(candidate[(best > 0) & inside], len(valid)))
        ious.append(overlap)
        metrics.append(metric)
    gt_index = resolve_conflicts(positives, ious, len(valid))
    soft_label = torch.zeros_like(boxes[:, 0])
    for i in range(len(objects.boxes)):
        mine = gt_index == i
        if mine.any():  # t̂: the largest t becomes the largest IoU (section 3.2.1)
            soft_label[mine] = metrics[i][mine] / (metrics[i][mine].max() + EPS) * ious[i][mine].max()
    return Assignment(gt_index, soft_label)


def resolve_conflicts(positives: list[Tensor], ious: list[Tensor], num_locations: int) -> Int[Tensor, " n"]:
    """Return the object of each location: the one with the highest IoU, or the first of equal ones; -1 for none."""
    gt_index = torch.full((num_locations,), -1)
    if not positives:
        return gt_index
    best = torch.full_like(ious[0], -1)
    for i, (positive, overlap) in enumerate(zip(positives, ious, strict=True)):
        better = positive & (overlap > best)
        gt_index[better], best[better] = i, overlap[better]
    return gt_index


def _mask(positions: Tensor, size: int) -> Bool[Tensor, " n"]:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[positions] = True
    return mask
