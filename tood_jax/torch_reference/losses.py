"""What a batch costs in both phases (TOOD, section 3.2.2).

Axes: B images · N cells · C classes. Boxes are xyxy in pixels unless the name says strides.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tood_jax.torch_reference.assigners import Assignment, Objects, assign_atss, assign_task_aligned
from tood_jax.torch_reference.boxes import Cells, cells_in_image, centerness, giou


class Predictions(NamedTuple):
    """What the head says of all cells, levels in a row."""

    scores: Float[Tensor, "b n c"]  # 0–1
    boxes: Float[Tensor, "b n 4"]  # xyxy in strides


class Learning(NamedTuple):
    """The numbers in the method."""

    atss_topk: int = 9
    topk: int = 13
    alpha: float = 1.0
    beta: float = 6.0
    gamma: float = 2.0
    box_loss_weight: float = 2.0


class Losses(NamedTuple):
    """Parts a level, [5] each, and each image's assignment."""

    cls: Tensor
    box: Tensor
    assignments: list[Assignment]


def focal_loss(prob: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss on probabilities, element by element (Lin et al. 2017); targets are 0 or 1."""
    wrongness = torch.where(target > 0, 1 - prob, prob)
    balance = alpha * target + (1 - alpha) * (1 - target)
    return balance * wrongness**gamma * F.binary_cross_entropy(prob, target, reduction="none")


def quality_focal_loss(prob: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """|t̂ − p|^γ · BCE(p, t̂), element by element (equation 8)."""
    return (target - prob).abs() ** gamma * F.binary_cross_entropy(prob, target, reduction="none")


def detection_losses(
    pred: Predictions,
    cells: Cells,
    sizes: list[tuple[int, int]],
    objects: list[Objects],
    *,
    aligned: bool,
    learning: Learning,
) -> Losses:
    """Losses of a batch, a level.

    Args:
        sizes: (height, width) of each image's own area, pixels; cells outside it (padded to 32) count for nothing.
        aligned: False in the ATSS warm-up (focal loss, centerness-weighted boxes), True in the task-aligned phase.
    """
    num_classes = pred.scores.shape[-1]
    cls_sums, box_sums, assignments = torch.zeros_like(cells.strides), torch.zeros_like(cells.strides), []
    target_sum, weight_sum = torch.zeros(()).to(cells.strides), torch.zeros(()).to(cells.strides)
    for scores, boxes, size, truth in zip(pred.scores, pred.boxes, sizes, objects, strict=True):
        valid = cells_in_image(cells, *size)
        if aligned:
            assignment = assign_task_aligned(
                scores, boxes * cells.strides[:, None], cells, valid, truth,
                topk=learning.topk, alpha=learning.alpha, beta=learning.beta,
            )  # fmt: skip
        else:
            assignment = assign_atss(cells, valid, truth, learning.atss_topk)
        positive = assignment.gt_index >= 0
        owner = assignment.gt_index[positive]
        gt_boxes, soft_label = truth.boxes[owner], assignment.soft_label[positive]

        target = torch.zeros_like(scores)
        target[positive] = F.one_hot(truth.labels[owner], num_classes).to(target) * soft_label[:, None]
        cls = quality_focal_loss(scores, target, learning.gamma) if aligned else focal_loss(scores, target)
        cls_sums = cls_sums + cls.sum(dim=-1) * valid
        target_sum = target_sum + soft_label.sum()

        weight = soft_label if aligned else centerness(cells.points[positive], gt_boxes)
        distance = 1 - giou(boxes[positive], gt_boxes / cells.strides[positive, None])
        box_sums = box_sums.index_add(0, positive.nonzero()[:, 0], distance * weight)
        weight_sum = weight_sum + weight.sum()
        assignments.append(assignment)
    cls_sums = cls_sums / target_sum.clamp(min=1)
    box_sums = learning.box_loss_weight * box_sums / weight_sum.clamp(min=1)
    return Losses(_a_level(cls_sums, cells), _a_level(box_sums, cells), assignments)


def _a_level(values: Float[Tensor, " n"], cells: Cells) -> Float[Tensor, "5"]:
    return torch.stack([part.sum() for part in values.split(cells.level_sizes)])
