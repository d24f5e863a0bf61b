"""Assignment of an object's fovea, the middle of its box, on the levels of its size (FoveaBox: Kong et al. 2020).

Axes: N locations · M padded objects · G objects per chunk · L levels. Boxes are xyxy in canvas pixels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tood_jax.assigners.base import fold_in_chunks, full_assignment
from tood_jax.geometry.boxes import area_xyxy
from tood_jax.geometry.locations import STRIDES
from tood_jax.types import Assignment

INFINITY = float("inf")
# √area of the objects that P3 … P7 learn, pixels; neighbouring levels share some (section III-C, η = 2).
SCALE_RANGES = ((1.0, 64.0), (32.0, 128.0), (64.0, 256.0), (128.0, 512.0), (256.0, 2048.0))


def assign_fovea(
    valid: Bool[Array, " n"],
    gt_boxes: Float[Array, "m 4"],
    gt_mask: Bool[Array, " m"],
    *,
    level_shapes: tuple[tuple[int, int], ...],
    strides: tuple[int, ...] = STRIDES,
    scale_ranges: tuple[tuple[float, float], ...] = SCALE_RANGES,
    sigma: float = 0.4,
    chunk: int = 64,
) -> Assignment:
    """Assign one image's locations by geometry alone.

    On every level whose range holds the object's √area, the object takes the locations whose middle lies in its box
    shrunk about the centre to `sigma` of its size; the first and last row and column are clamped to the map, so a fovea
    that lies beyond the map takes the border. Of several objects a location learns the smallest (the last of equals).

    Args:
        valid: False for locations outside the image's padded area.
        gt_boxes: padded objects, pixels.
        gt_mask: True for objects, False for padding.
        level_shapes: (height, width) of each level in locations; N is their sum.
        strides: of each level, pixels.
        scale_ranges: smallest and largest √area per level, both included, pixels.
        sigma: 0–1.
        chunk: objects processed at a time; memory grows with chunk · N.

    Returns:
        Assignment over [N]; metric and soft_label are 1 on positives, iou is 0: only locations take part.

    Raises:
        ValueError: not one stride and one range per level, or N is not the number of locations.
    """
    valid, gt_boxes, gt_mask = (jnp.asarray(x) for x in (valid, gt_boxes, gt_mask))
    num_locations = sum(height * width for height, width in level_shapes)
    if not len(level_shapes) == len(strides) == len(scale_ranges):
        raise ValueError(
            f"There are {len(level_shapes)} levels, {len(strides)} strides and {len(scale_ranges)} scale ranges; "
            "give one of each per level."
        )
    if valid.shape != (num_locations,):
        raise ValueError(f"valid has {valid.shape[0]} locations, but the levels have {num_locations}.")

    def fold(state, index, gt_boxes, gt_mask):
        smallest, owner = state
        size = jnp.sqrt(jnp.maximum(area_xyxy(gt_boxes), 0))  # [G]
        takes = []
        for shape, stride, (least, most) in zip(level_shapes, strides, scale_ranges, strict=True):
            inside = _fovea(gt_boxes / stride, shape, sigma)
            takes.append(inside & ((size >= least) & (size <= most))[:, None])
        takes = jnp.concatenate(takes, axis=1) & valid & gt_mask[:, None]  # [G, N]
        size = jnp.where(takes, size[:, None], INFINITY)[::-1]  # the last object first, to win among equals
        lowest, last = size.min(axis=0), index[::-1][size.argmin(axis=0)]
        wins = (lowest <= smallest) & (lowest < INFINITY)
        return jnp.minimum(smallest, lowest), jnp.where(wins, last, owner)

    start = jnp.full(num_locations, INFINITY), jnp.full(num_locations, -1, jnp.int32)
    objects = jnp.arange(gt_boxes.shape[0], dtype=jnp.int32), gt_boxes, gt_mask
    _, owner = fold_in_chunks(fold, start, objects, chunk)
    return full_assignment(owner, None, gt_boxes)


def _fovea(boxes: Float[Array, "g 4"], shape: tuple[int, int], sigma: float) -> Bool[Array, "g n"]:
    """The locations of one level in each fovea; boxes in strides."""
    height, width = shape
    last = jnp.asarray([width - 1, height - 1])
    half = 0.5 * (boxes[:, 2:] - boxes[:, :2])  # [G, 2] over (x, y)
    first_location = jnp.clip(jnp.ceil(boxes[:, :2] + (1 - sigma) * half - 0.5), 0, last)
    last_location = jnp.clip(jnp.floor(boxes[:, :2] + (1 + sigma) * half - 0.5), 0, last)
    row, column = np.mgrid[:height, :width]
    location = jnp.asarray(np.stack([column.ravel(), row.ravel()], axis=1))  # [N, 2]
    return ((location >= first_location[:, None]) & (location <= last_location[:, None])).all(axis=-1)


def assign_fovea_batch(valid, gt_boxes, gt_mask, **options) -> Assignment:
    """Apply `assign_fovea` to a batch: every argument has B in front."""
    return jax.vmap(lambda *image: assign_fovea(*image, **options))(valid, gt_boxes, gt_mask)
