"""Boxes (always xyxy), their overlaps, and the locations of the pyramid.

The N locations of all levels are in one row, P3 first, row by row; location (i, j) of a level is at (j, i)·stride.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)
IMAGE_MULTIPLE = 32  # an image counts as padded up to a multiple of this
DELTA_STDS = (0.1, 0.1, 0.2, 0.2)
MAX_LOG_RATIO = math.log(1000 / 16)


class Locations(NamedTuple):
    """All locations of a canvas."""

    points: Float[Tensor, "n 2"]  # (x, y) pixels
    strides: Float[Tensor, " n"]  # pixels
    level_sizes: tuple[int, ...]  # number of locations per level


def locations_of(shapes: Sequence[tuple[int, int]], like: Tensor) -> Locations:
    """Return the locations of levels with these (height, width), in the dtype of `like`."""
    points, strides = [], []
    for (height, width), stride in zip(shapes, STRIDES, strict=True):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        points.append(torch.stack([x, y], dim=-1).reshape(-1, 2) * stride)
        strides.append(torch.full((height * width,), stride))
    sizes = tuple(height * width for height, width in shapes)
    return Locations(torch.cat(points).to(like), torch.cat(strides).to(like), sizes)


def locations_in_image(locations: Locations, height: int, width: int) -> Bool[Tensor, " n"]:
    """Return which locations are in an image of this size in pixels, padded to a multiple of 32."""
    padded_height, padded_width = (-(-side // IMAGE_MULTIPLE) * IMAGE_MULTIPLE for side in (height, width))
    return (locations.points[:, 0] < padded_width) & (locations.points[:, 1] < padded_height)


def deltas_to_xyxy(anchors: Float[Tensor, "*n 4"], deltas: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """Return boxes of anchors and their deltas (dx, dy, dw, dh), which are divided by DELTA_STDS."""
    deltas = deltas * torch.tensor(DELTA_STDS, dtype=deltas.dtype)
    size = anchors[..., 2:] - anchors[..., :2]
    center = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
    return torch.cat([center - half, center + half], dim=-1)


def area(boxes: Float[Tensor, "*n 4"]) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*m 4"], eps: float = 1e-6) -> Tensor:
    """Return the IoU of pairs; leading axes broadcast."""
    intersection, union = _intersection_and_union(a, b, eps)
    return intersection / union


def giou(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*m 4"], eps: float = 1e-6) -> Tensor:
    """Return the generalized IoU of pairs (Rezatofighi et al. 2019)."""
    intersection, union = _intersection_and_union(a, b, eps)
    sides = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    hull = sides.prod(dim=-1).clamp(min=eps)
    return intersection / union - (hull - union) / hull


def inside_distance(points: Float[Tensor, "*n 2"], boxes: Float[Tensor, "*m 4"]) -> Tensor:
    """Return the smallest distance of a point to the sides of a box; negative outside."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1).amin(dim=-1)


def centerness(points: Float[Tensor, "*n 2"], boxes: Float[Tensor, "*m 4"]) -> Tensor:
    """Return √(min(l, r)/max(l, r) · min(t, b)/max(t, b)) of points inside boxes (FCOS, equation 3)."""
    near = torch.minimum(points - boxes[..., :2], boxes[..., 2:] - points)
    far = torch.maximum(points - boxes[..., :2], boxes[..., 2:] - points)
    return (near / far).prod(dim=-1).sqrt()


def _intersection_and_union(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = sides.prod(dim=-1)
    return intersection, (area(a) + area(b) - intersection).clamp(min=eps)
