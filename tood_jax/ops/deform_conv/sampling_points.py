"""The points at which the taps of a deformable convolution sample a map, with bilinear weights and mask.

Axes: as in deform_conv2d.py; n = (H + 2)·(W + 2) locations of a map with a border of zeros around it.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

SIZE = 3
TAPS = SIZE * SIZE


class SamplingPoints(NamedTuple):
    """Points in a map of H × W locations with a border of zeros: row 0 is the border, row 1 the first of the map."""

    top: Int[Array, "*k"]  # 0…H, row of the upper corners; 0 for points outside
    left: Int[Array, "*k"]  # 0…W
    down: Float[Array, "*k"]  # 0–1, distance from the upper corners
    right: Float[Array, "*k"]
    inside: Bool[Array, "*k"]  # False for points that are a whole location or more outside the map
    mask: Float[Array, "*k"]  # weight of the sample; 0 outside

    def corner_weights(self) -> Float[Array, "4 ..."]:
        """Return the bilinear weights of the four corners; they sum to 1."""
        down, right = self.down, self.right
        return jnp.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right])

    def gradients(self, dots: Float[Array, "4 ..."]) -> tuple[Float[Array, "*k 2"], Float[Array, "*k"]]:
        """Return the gradients of offsets and mask, given products of the samples' cotangent with the four corners."""
        top_left, top_right, bottom_left, bottom_right = dots = jnp.where(self.inside, dots, 0)
        to_mask = (self.corner_weights() * dots).sum(0)
        to_row = (bottom_left - top_left) * (1 - self.right) + (bottom_right - top_right) * self.right
        to_column = (top_right - top_left) * (1 - self.down) + (bottom_right - bottom_left) * self.down
        return jnp.stack([to_row, to_column], axis=-1) * self.mask[..., None], to_mask


def sampling_points(
    offsets: Float[Array, "*k 2"],
    mask: Float[Array, "*k"],
    rows: Any,
    columns: Any,
    tap: Any,
    height: int,
    width: int,
) -> SamplingPoints:
    """Return the sampling points of taps; the padding is 1. A point at exactly −1 or H is outside (as published).

    Args:
        rows, columns: of the map's location under the centre of the kernel; they broadcast to the mask, as `tap` does.
        tap: 0–8, row by row.
    """
    y = (rows + tap // SIZE).astype(offsets.dtype) + offsets[..., 0]  # the border makes up for the −1 of the first tap
    x = (columns + tap % SIZE).astype(offsets.dtype) + offsets[..., 1]
    inside = (y > 0) & (y < height + 1) & (x > 0) & (x < width + 1)
    y, x = jnp.where(inside, y, 0), jnp.where(inside, x, 0)
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = y - top, x - left
    return SamplingPoints(
        top.astype(jnp.int32), left.astype(jnp.int32), down, right, inside, jnp.where(inside, mask, 0)
    )


def add_border(x: Float[Array, "b hh ww g c"]) -> Float[Array, "g b n c"]:
    """Return the locations of x and of a border of zeros around it, group by group."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    return jnp.moveaxis(padded, 3, 0).reshape(x.shape[3], x.shape[0], -1, x.shape[-1])


def remove_border(values: Float[Array, "g b n c"], height: int, width: int) -> Float[Array, "b hh ww g c"]:
    """Return a map from what `add_border` returned: the locations without the border."""
    padded = values.reshape(*values.shape[:2], height + 2, width + 2, -1)
    return jnp.moveaxis(padded[:, :, 1:-1, 1:-1], 0, 3)


def corner_indices(points: SamplingPoints, width: int) -> Int[Array, "4 ..."]:
    """Return the indices of the four corners among the locations of a map of this width with a border."""
    first = points.top * (width + 2) + points.left
    return jnp.stack([first + step for step in (0, 1, width + 2, width + 3)])
