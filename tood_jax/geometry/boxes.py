"""Boxes: formats, overlaps and decodings.

The format stands in the name: xyxy = (x0, y0, x1, y1), xywh = (x0, y0, width, height). No unit is assumed, but both
arguments of a function must share it. Everything is float32 and differentiable unless said otherwise.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

# Widths and heights are limited to this factor of the anchor's when decoded (as in every published COCO detector).
MAX_LOG_RATIO = math.log(1000 / 16)


def not_negative(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """max(x, 0) whose slope at 0 is 1, as PyTorch's clamp has it: a box without width can still learn to have one."""
    return jnp.where(x >= 0, x, 0)


def area_xyxy(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Area; negative widths or heights multiply as they are."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection_and_union(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"], eps: float):
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])  # [..., 2] (width, height)
    sides = not_negative(sides)
    intersection = sides[..., 0] * sides[..., 1]
    union = jnp.maximum(area_xyxy(a) + area_xyxy(b) - intersection, eps)
    return intersection, union


def aligned_iou(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"], eps: float = 1e-6) -> Float[Array, "*n"]:
    """IoU (0–1) of boxes pair by pair; leading axes broadcast."""
    intersection, union = _intersection_and_union(a, b, eps)
    return intersection / union


def pairwise_iou(a: Float[Array, "p 4"], b: Float[Array, "q 4"], eps: float = 1e-6) -> Float[Array, "p q"]:
    """IoU (0–1) of every box of `a` with every box of `b`."""
    return aligned_iou(a[:, None], b[None, :], eps)


def aligned_coverage(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"], eps: float = 1e-6) -> Float[Array, "*n"]:
    """Share (0–1) of the area of each box of `a` that lies in the box of `b`; leading axes broadcast."""
    intersection, _ = _intersection_and_union(a, b, eps)
    return intersection / jnp.maximum(area_xyxy(a), eps)


def aligned_giou(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"], eps: float = 1e-6) -> Float[Array, "*n"]:
    """Generalised IoU (-1–1) pair by pair (Rezatofighi et al. 2019)."""
    intersection, union = _intersection_and_union(a, b, eps)
    hull = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    hull = not_negative(hull)
    hull_area = jnp.maximum(hull[..., 0] * hull[..., 1], eps)
    return intersection / union - (hull_area - union) / hull_area


def distances_to_xyxy(points: Float[Array, "*n 2"], distances: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """Box from a point (x, y) and its distances to the (left, top, right, bottom) sides; points broadcast."""
    return jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], axis=-1)


def deltas_to_xyxy(
    anchors: Float[Array, "*n 4"],
    deltas: Float[Array, "*b 4"],
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
) -> Float[Array, "*b 4"]:
    """Box from an anchor (xyxy) and its deltas (dx, dy, dw, dh), divided by `stds`; anchors broadcast."""
    deltas = deltas * jnp.asarray(stds, deltas.dtype)
    size = anchors[..., 2:] - anchors[..., :2]
    center = (anchors[..., 2:] + anchors[..., :2]) / 2 + size * deltas[..., :2]
    half = size * jnp.exp(jnp.clip(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO)) / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def xyxy_to_distances(points: Float[Array, "*#b 2"], boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """Distances from a point (x, y) to a box's (left, top, right, bottom) sides; negative outside."""
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def xyxy_to_deltas(
    anchors: Float[Array, "*#b 4"],
    boxes: Float[Array, "*b 4"],
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
) -> Float[Array, "*b 4"]:
    """Deltas (dx, dy, dw, dh), divided by `stds`, that `deltas_to_xyxy` brings from the anchors to boxes with area."""
    size = anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2 / size
    deltas = jnp.concatenate([shift, jnp.log((boxes[..., 2:] - boxes[..., :2]) / size)], axis=-1)
    return deltas / jnp.asarray(stds, deltas.dtype)


def inside_distance(points: Float[Array, "*#n 2"], boxes: Float[Array, "*#n 4"]) -> Float[Array, "*n"]:
    """How deep a point lies in a box: the smallest distance to a side, negative outside."""
    return jnp.minimum(points - boxes[..., :2], boxes[..., 2:] - points).min(axis=-1)


def centerness(points: Float[Array, "*#n 2"], boxes: Float[Array, "*#n 4"]) -> Float[Array, "*n"]:
    """Centerness (0–1) of a point in a box (FCOS, equation 3); 0 on or outside the border."""
    near = jnp.minimum(points - boxes[..., :2], boxes[..., 2:] - points)  # [..., 2] over (x, y)
    far = jnp.maximum(points - boxes[..., :2], boxes[..., 2:] - points)
    ratio = jnp.maximum(near, 0) / jnp.maximum(far, 1e-6)
    return jnp.sqrt(ratio[..., 0] * ratio[..., 1])
