"""Where the taps of a deformable convolution look, between which cells, and how much they count there.

Axes: as in deformable.py; n = (H + 2)·(W + 2) cells of a map with a ring of zeros around it.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

SIZE = 3
TAPS = SIZE * SIZE


class Places(NamedTuple):
    """Places in a map of H × W cells with a ring of zeros around it: row 0 is the ring, row 1 the map's first."""

    top: Int[Array, "*k"]  # 0…H, row of the upper corners; 0 where it looks outside
    left: Int[Array, "*k"]  # 0…W
    down: Float[Array, "*k"]  # 0–1, distance from the upper corners
    right: Float[Array, "*k"]
    inside: Bool[Array, "*k"]  # False where the place is a whole cell or more outside the map
    mask: Float[Array, "*k"]  # what the sample counts; 0 outside

    def corner_weights(self) -> Float[Array, "4 ..."]:
        """The bilinear weights; they sum to 1."""
        down, right = self.down, self.right
        return jnp.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right])

    def gradients(self, dots: Float[Array, "4 ..."]) -> tuple[Float[Array, "*k 2"], Float[Array, "*k"]]:
        """Gradients of offsets and mask, from the products of the samples' cotangent with the four corners."""
        top_left, top_right, bottom_left, bottom_right = dots = jnp.where(self.inside, dots, 0)
        to_mask = (self.corner_weights() * dots).sum(0)
        to_row = (bottom_left - top_left) * (1 - self.right) + (bottom_right - top_right) * self.right
        to_column = (top_right - top_left) * (1 - self.down) + (bottom_right - bottom_left) * self.down
        return jnp.stack([to_row, to_column], axis=-1) * self.mask[..., None], to_mask


def places_of(
    offsets: Float[Array, "*k 2"],
    mask: Float[Array, "*k"],
    rows: Any,
    columns: Any,
    tap: Any,
    height: int,
    width: int,
) -> Places:
    """Where taps look; the padding is 1. A place at exactly −1 or H counts as outside (as published).

    Args:
        rows, columns: of the map's cells under the middle of the kernel; they broadcast to the mask, as `tap` does.
        tap: 0–8, row by row.
    """
    y = (rows + tap // SIZE).astype(offsets.dtype) + offsets[..., 0]  # the ring makes up for the first tap's −1
    x = (columns + tap % SIZE).astype(offsets.dtype) + offsets[..., 1]
    inside = (y > 0) & (y < height + 1) & (x > 0) & (x < width + 1)
    y, x = jnp.where(inside, y, 0), jnp.where(inside, x, 0)
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = y - top, x - left
    return Places(top.astype(jnp.int32), left.astype(jnp.int32), down, right, inside, jnp.where(inside, mask, 0))


def ring(x: Float[Array, "b hh ww g c"]) -> Float[Array, "g b n c"]:
    """The cells of x and of a ring of zeros around it, group by group."""
    ringed = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    return jnp.moveaxis(ringed, 3, 0).reshape(x.shape[3], len(x), -1, x.shape[-1])


def unring(cells: Float[Array, "g b n c"], height: int, width: int) -> Float[Array, "b hh ww g c"]:
    """The other way round."""
    ringed = cells.reshape(*cells.shape[:2], height + 2, width + 2, -1)
    return jnp.moveaxis(ringed[:, :, 1:-1, 1:-1], 0, 3)


def corner_cells(places: Places, width: int) -> Int[Array, "4 ..."]:
    """Positions of the corners among the cells of a ringed map of this width."""
    first = places.top * (width + 2) + places.left
    return jnp.stack([first + step for step in (0, 1, width + 2, width + 3)])
