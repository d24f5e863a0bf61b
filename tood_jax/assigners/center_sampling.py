"""Assignment of points near an object's centre, each size of object to its own level (FCOS: Tian et al. 2019, 2020).

Axes: N points · M padded objects · G objects per chunk · L levels. Boxes are xyxy in canvas pixels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tood_jax.assigners.base import fold_in_chunks, full_assignment, near_center
from tood_jax.geometry.boxes import area_xyxy, inside_distance
from tood_jax.types import Assignment

INFINITY = float("inf")
# The longest distance from point to side, in pixels, that P3 … P7 are to learn (2019, section 3.2).
REGRESS_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, INFINITY))


def assign_center_sampling(
    points: Float[Array, "n 2"],
    strides: Float[Array, " n"],
    valid: Bool[Array, " n"],
    gt_boxes: Float[Array, "m 4"],
    gt_mask: Bool[Array, " m"],
    *,
    level_slices: tuple[slice, ...],
    radius: float = 1.5,
    ranges: tuple[tuple[float, float], ...] = REGRESS_RANGES,
    chunk: int = 64,
) -> Assignment:
    """Assign one image's points by geometry alone.

    A point learns an object if it lies inside the object, within `radius` strides of its centre (in x and in y), and if
    the farthest of the object's four sides is as far away as its level is to learn. Of several such objects it learns
    the smallest (the first of equals).

    Args:
        points: (x, y), the middle of each location: (j + 0.5, i + 0.5)·stride, pixels.
        strides: of each point's level, pixels.
        valid: False for points outside the image's padded area.
        gt_boxes: padded objects, pixels.
        gt_mask: True for objects, False for padding.
        level_slices: which part of N each level is.
        radius: in strides.
        ranges: smallest and largest distance to the farthest side per level, both included, pixels.
        chunk: objects processed at a time; memory grows with chunk · N.

    Returns:
        Assignment over [N]; metric and soft_label are 1 on positives, iou is 0: only points take part.

    Raises:
        ValueError: not as many ranges as levels.
    """
    points, strides, valid, gt_boxes, gt_mask = (jnp.asarray(x) for x in (points, strides, valid, gt_boxes, gt_mask))
    num_points = points.shape[0]
    if len(ranges) != len(level_slices):
        raise ValueError(f"There are {len(ranges)} ranges for {len(level_slices)} levels; give one per level.")
    locations = [s.stop - s.start for s in level_slices]
    nearest, farthest = np.repeat(np.asarray(ranges, np.float32), locations, axis=0).T  # [N] each

    def fold(state, index, gt_boxes, gt_mask):
        smallest, owner = state
        boxes = gt_boxes[:, None]
        reach = jnp.maximum(points - boxes[..., :2], boxes[..., 2:] - points).max(
            axis=-1
        )  # [G, N] to the farthest side
        learns = near_center(points, strides, gt_boxes, radius) & (inside_distance(points, boxes) > 0)
        learns &= (reach >= nearest) & (reach <= farthest) & valid & gt_mask[:, None]
        area = jnp.where(learns, area_xyxy(boxes), INFINITY)  # [G, N]
        least, first = area.min(axis=0), index[area.argmin(axis=0)]
        return jnp.minimum(smallest, least), jnp.where(least < smallest, first, owner)

    start = jnp.full(num_points, INFINITY), jnp.full(num_points, -1, jnp.int32)
    objects = jnp.arange(gt_boxes.shape[0], dtype=jnp.int32), gt_boxes, gt_mask
    _, owner = fold_in_chunks(fold, start, objects, chunk)
    return full_assignment(owner, None, gt_boxes)


def assign_center_sampling_batch(points, strides, valid, gt_boxes, gt_mask, **options) -> Assignment:
    """Apply `assign_center_sampling` to a batch: every argument except `points` and `strides` has B in front."""
    return jax.vmap(lambda *image: assign_center_sampling(*image, **options), in_axes=(None, None, 0, 0, 0))(
        points, strides, valid, gt_boxes, gt_mask
    )
