"""Post-processing of an image, as in mmdetection.

Axes: N locations · C classes · S candidates · K detections. Boxes are xyxy.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tood_jax.tools.compare_torch.torch_reference.boxes import Locations, iou


class Detections(NamedTuple):
    """Detections of an image, best first."""

    boxes: Float[Tensor, "k 4"]  # pixels of the original image
    scores: Float[Tensor, " k"]
    labels: Int[Tensor, " k"]


def detect(
    scores: Float[Tensor, "n c"],
    boxes: Float[Tensor, "n 4"],
    locations: Locations,
    valid: Bool[Tensor, " n"],
    scale: tuple[float, float],
    *,
    score_threshold: float = 0.05,
    candidates_per_level: int = 1000,
    nms_iou: float = 0.6,
    max_detections: int = 100,
) -> Detections:
    """Return detections: the best (location, class) pairs of each level, rescaled, after class-wise NMS, the best K.

    Args:
        scores: predicted scores, 0–1.
        boxes: predicted boxes in strides.
        locations: all locations.
        valid: False for locations outside the image's padded area.
        scale: (y, x), canvas pixels per pixel of the original image.
        score_threshold: candidates have a higher score.
        candidates_per_level: candidates that remain before NMS.
        nms_iou: IoU above which NMS removes a box.
        max_detections: K.
    """
    scores = torch.where(valid[:, None], scores, 0)
    found = []
    start = 0
    for size in locations.level_sizes:
        location, label = (scores[start : start + size] > score_threshold).nonzero().unbind(dim=1)
        score, order = scores[start + location, label].sort(descending=True, stable=True)
        order, score = order[:candidates_per_level], score[:candidates_per_level]
        location, label = start + location[order], label[order]
        found.append((boxes[location] * locations.strides[location, None], score, label))
        start += size
    box, score, label = (torch.cat(parts) for parts in zip(*found, strict=True))
    box = box / torch.tensor([*scale[::-1], *scale[::-1]], dtype=box.dtype)
    has_area = (box[:, 2:] > box[:, :2]).all(dim=-1)
    box, score, label = box[has_area], score[has_area], label[has_area]
    keep = nms(box, score, label, nms_iou)[:max_detections]
    return Detections(box[keep], score[keep], label[keep])


def nms(
    boxes: Float[Tensor, "s 4"], scores: Float[Tensor, " s"], labels: Int[Tensor, " s"], threshold: float
) -> Int[Tensor, " k"]:
    """Return the positions of the boxes that greedy suppression within each class keeps, best first."""
    order = scores.sort(descending=True, stable=True).indices
    keep = []
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(best)
        suppressed = (iou(boxes[best], boxes[rest]) > threshold) & (labels[rest] == labels[best])
        order = rest[~suppressed]
    return torch.stack(keep) if keep else order
