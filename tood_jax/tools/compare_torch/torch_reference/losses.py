"""The losses of a batch in both phases (TOOD, section 3.2.2).

Axes: B images · N locations · C classes. Boxes are xyxy in pixels unless the name says strides.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tood_jax.tools.compare_torch.torch_reference.assigners import Assignment, Objects, assign_atss, assign_task_aligned
from tood_jax.tools.compare_torch.torch_reference.boxes import Locations, centerness, giou, locations_in_image


class Predictions(NamedTuple):
    """Predictions of the head for all locations, the levels in one row."""

    scores: Float[Tensor, "b n c"]  # 0–1
    boxes: Float[Tensor, "b n 4"]  # xyxy in strides


class Hyperparameters(NamedTuple):
    """Parameters of the assigners and the losses."""

    atss_topk: int = 9
    topk: int = 13
    alpha: float = 1.0
    beta: float = 6.0
    gamma: float = 2.0
    box_loss_weight: float = 2.0


class Losses(NamedTuple):
    """Losses per level, [5] each, and the assignment of each image."""

    cls: Tensor
    box: Tensor
    assignments: list[Assignment]


def focal_loss(prob: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the focal loss of probabilities, element by element (Lin et al. 2017); targets are 0 or 1."""
    error = torch.where(target > 0, 1 - prob, prob)
    balance = alpha * target + (1 - alpha) * (1 - target)
    return balance * error**gamma * F.binary_cross_entropy(prob, target, reduction="none")


def quality_focal_loss(prob: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Return |t̂ − p|^γ · BCE(p, t̂), element by element (equation 11)."""
    return (target - prob).abs() ** gamma * F.binary_cross_entropy(prob, target, reduction="none")


def detection_losses(
    pred: Predictions,
    locations: Locations,
    sizes: list[tuple[int, int]],
    objects: list[Objects],
    *,
    in_tal_phase: bool,
    hyperparameters: Hyperparameters,
) -> Losses:
    """Return the losses of a batch per level.

    Args:
        pred: predictions of the head.
        locations: all locations.
        sizes: (height, width) of each image's own area, pixels; locations outside it (padded to 32) are ignored.
        objects: ground truth of each image.
        in_tal_phase: False in the ATSS warm-up (focal loss, centerness-weighted boxes), True in the task-aligned phase.
        hyperparameters: of the assigners and the losses.
    """
    num_classes = pred.scores.shape[-1]
    cls_sums, box_sums, assignments = torch.zeros_like(locations.strides), torch.zeros_like(locations.strides), []
    target_sum, weight_sum = torch.zeros(()).to(locations.strides), torch.zeros(()).to(locations.strides)
    for scores, boxes, size, truth in zip(pred.scores, pred.boxes, sizes, objects, strict=True):
        valid = locations_in_image(locations, *size)
        if in_tal_phase:
            assignment = assign_task_aligned(
                scores, boxes * locations.strides[:, None], locations, valid, truth,
                topk=hyperparameters.topk, alpha=hyperparameters.alpha, beta=hyperparameters.beta,
            )  # fmt: skip
        else:
            assignment = assign_atss(locations, valid, truth, hyperparameters.atss_topk)
        positive = assignment.gt_index >= 0
        gt_index = assignment.gt_index[positive]
        gt_boxes, soft_label = truth.boxes[gt_index], assignment.soft_label[positive]

        target = torch.zeros_like(scores)
        target[positive] = F.one_hot(truth.labels[gt_index], num_classes).to(target) * soft_label[:, None]
        cls = quality_focal_loss(scores, target, hyperparameters.gamma) if in_tal_phase else focal_loss(scores, target)
        cls_sums = cls_sums + cls.sum(dim=-1) * valid
        target_sum = target_sum + soft_label.sum()

        weight = soft_label if in_tal_phase else centerness(locations.points[positive], gt_boxes)
        distance = 1 - giou(boxes[positive], gt_boxes / locations.strides[positive, None])
        box_sums = box_sums.index_add(0, positive.nonzero()[:, 0], distance * weight)
        weight_sum = weight_sum + weight.sum()
        assignments.append(assignment)
    cls_sums = cls_sums / target_sum.clamp(min=1)
    box_sums = hyperparameters.box_loss_weight * box_sums / weight_sum.clamp(min=1)
    return Losses(_sum_per_level(cls_sums, locations), _sum_per_level(box_sums, locations), assignments)


def _sum_per_level(values: Float[Tensor, " n"], locations: Locations) -> Float[Tensor, "5"]:
    return torch.stack([part.sum() for part in values.split(locations.level_sizes)])
