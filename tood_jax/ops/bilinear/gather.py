"""Bilinear sampling of box sides by a gather of the four corners, whose gradient is a scatter.

Axes: B images · N locations of some levels in a row, each level row by row · S sides.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tood_jax.geometry.locations import Shapes


def sample(boxes: Float[Array, "b n s"], offsets: Float[Array, "b n s 2"], shapes: Shapes) -> Float[Array, "b n s"]:
    """Return what `sample_sides.sample_sides_of_levels` returns, with one gather of the four corners."""
    start, row, column, height, width = (jnp.asarray(x[:, None]) for x in _grid(shapes))  # [N, 1] each
    rows, columns = row + offsets[..., 0], column + offsets[..., 1]  # [B, N, S]
    top, left = lax.stop_gradient(jnp.floor(rows)), lax.stop_gradient(jnp.floor(columns))
    down, right = rows - top, columns - left  # 0–1, fractions

    corner_rows = jnp.stack([top, top, top + 1, top + 1], axis=1)  # [B, 4, N, S]
    corner_columns = jnp.stack([left, left + 1, left, left + 1], axis=1)
    weights = jnp.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=1)
    inside = (corner_rows >= 0) & (corner_rows < height) & (corner_columns >= 0) & (corner_columns < width)
    corner_rows, corner_columns = jnp.clip(corner_rows, 0, height - 1), jnp.clip(corner_columns, 0, width - 1)
    index = start + corner_rows.astype(jnp.int32) * width + corner_columns.astype(jnp.int32)
    index = index.reshape(boxes.shape[0], -1, boxes.shape[-1])
    values = jnp.take_along_axis(boxes, index, axis=1, mode="promise_in_bounds").reshape(weights.shape)
    return jnp.where(inside, values * weights, 0).sum(axis=1)


def _grid(shapes: Shapes) -> tuple[np.ndarray, ...]:
    """Return, for each location [N] int32: first index of its level, row, column, and height and width of the level."""
    levels, start = [], 0
    for height, width in shapes:
        rows, columns = np.mgrid[:height, :width].reshape(2, -1)
        levels.append(
            np.stack([np.full_like(rows, start), rows, columns, *np.broadcast_arrays(height, width, rows)[:2]])
        )
        start += height * width
    return tuple(np.concatenate(levels, axis=1).astype(np.int32))
