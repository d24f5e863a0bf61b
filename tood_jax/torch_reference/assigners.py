"""Which cells of one image learn which object: ATSS in the warm-up, task-aligned assignment after it.

Axes: N cells · M objects · C classes. Boxes are xyxy in pixels. Gradients never flow through an assignment.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tood_jax.torch_reference.boxes import Cells, inside_distance, iou
from tood_jax.torch_reference.head import ANCHOR_SCALE

MIN_INSIDE_DISTANCE = 0.01  # pixels by which a candidate's point must lie in the box
EPS = 1e-7


class Assignment(NamedTuple):
    """What each cell learns."""

    gt_index: Int[Tensor, " n"]  # the object, or -1
    soft_label: Float[Tensor, " n"]  # t̂ 0–1 (ATSS: 1); 0 without an object


class Objects(NamedTuple):
    """Ground truth of one image."""

    boxes: Float[Tensor, "m 4"]
    labels: Int[Tensor, " m"]


@torch.no_grad()
def assign_atss(cells: Cells, valid: Bool[Tensor, " n"], objects: Objects, topk: int = 9) -> Assignment:
    """Adaptive training sample selection (Zhang et al. 2020, algorithm 1).

    An object's candidates are the `topk` cells a level nearest to its centre. It claims those whose anchor's IoU
    reaches the candidates' mean plus standard deviation and whose point lies inside it.
    """
    half = cells.strides[:, None] * ANCHOR_SCALE / 2
    anchors = torch.cat([cells.points - half, cells.points + half], dim=-1)
    claims, ious = [], []
    for box in objects.boxes:
        distance = (cells.points - (box[:2] + box[2:]) / 2).norm(dim=-1)
        candidates = []
        start = 0
        for size in cells.level_sizes:
            on_level = torch.arange(start, start + size)[valid[start : start + size]]
            nearest = distance[on_level].topk(min(topk, len(on_level)), largest=False).indices
            candidates.append(on_level[nearest])
            start += size
        candidate = torch.cat(candidates)
        overlap = iou(anchors, box)
        spread = overlap[candidate].std() if len(candidate) > 1 else 0
        good = overlap[candidate] >= overlap[candidate].mean() + spread
        inside = inside_distance(cells.points[candidate], box) > MIN_INSIDE_DISTANCE
        claims.append(_mask(candidate[good & inside], len(valid)))
        ious.append(overlap)
    gt_index = settle(claims, ious, len(valid))
    return Assignment(gt_index, (gt_index >= 0).to(cells.points))


@torch.no_grad()
def assign_task_aligned(
    scores: Float[Tensor, "n c"],
    boxes: Float[Tensor, "n 4"],
    cells: Cells,
    valid: Bool[Tensor, " n"],
    objects: Objects,
    *,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Assignment:
    """Task-aligned assignment (TOOD, section 3.2.1): an object claims its `topk` cells of largest t = s^α·u^β.

    Args:
        scores: predicted, 0–1.
        boxes: predicted, pixels.
    """
    claims, ious, metrics = [], [], []
    for box, label in zip(objects.boxes, objects.labels, strict=True):
        overlap = iou(boxes, box)
        metric = scores[:, label] ** alpha * overlap**beta
        metric = metric.masked_fill(~valid, -1)
        best, candidate = metric.topk(min(topk, len(metric)))
        inside = inside_distance(cells.points[candidate], box) > MIN_INSIDE_DISTANCE
        claims.append(_mask(candidate[(best > 0) & inside], len(valid)))
        ious.append(overlap)
        metrics.append(metric)
    gt_index = settle(claims, ious, len(valid))
    soft_label = torch.zeros_like(boxes[:, 0])
    for i in range(len(objects.boxes)):
        own = gt_index == i
        if own.any():  # t̂: the best cell gets the largest IoU (equation 7)
            soft_label[own] = metrics[i][own] / (metrics[i][own].max() + EPS) * ious[i][own].max()
    return Assignment(gt_index, soft_label)


def settle(claims: list[Tensor], ious: list[Tensor], num_cells: int) -> Int[Tensor, " n"]:
    """Each cell's object: of those that claim it, the one of highest IoU, the first among equals; -1 for none."""
    owner = torch.full((num_cells,), -1)
    if not claims:
        return owner
    best = torch.full_like(ious[0], -1)
    for i, (claim, overlap) in enumerate(zip(claims, ious, strict=True)):
        takes = claim & (overlap > best)
        owner[takes], best[takes] = i, overlap[takes]
    return owner


def _mask(positions: Tensor, size: int) -> Bool[Tensor, " n"]:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[positions] = True
    return mask
