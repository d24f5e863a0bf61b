"""Bilinear sampling of box sides, each at its own learnt offset (paper section 3.1, equation 5)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def sample_sides(boxes: Float[Array, "b h w s"], offsets: Float[Array, "b h w s 2"]) -> Float[Array, "b h w s"]:
    """Sample channel s of a map at (row + dy, column + dx), each cell and each channel at its own place.

    Args:
        boxes: the map of box sides (any unit; sampling is linear in it).
        offsets: (dy, dx) in cells.

    Returns:
        The sampled map. Outside the map lie zeros, so values fade over (−1, 0) and (H−1, H), as in the
        published deformable sampling. Exact gradients to both arguments; at integer places the one-sided
        derivative towards the higher cell.
    """
    batch, height, width, sides = boxes.shape
    rows = lax.broadcasted_iota(offsets.dtype, offsets.shape[:-1], 1) + offsets[..., 0]  # [B, H, W, S]
    columns = lax.broadcasted_iota(offsets.dtype, offsets.shape[:-1], 2) + offsets[..., 1]
    top, left = lax.stop_gradient(jnp.floor(rows)), lax.stop_gradient(jnp.floor(columns))
    down, right = rows - top, columns - left  # 0–1, fractions
    flat = boxes.reshape(batch, height * width, sides)

    def corner(row, column, weight):
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
        index = (row * width + column).astype(jnp.int32).reshape(batch, height * width, sides)
        value = jnp.take_along_axis(flat, index, axis=1, mode="promise_in_bounds").reshape(boxes.shape)
        return jnp.where(inside, value * weight, 0)

    return (
        corner(top, left, (1 - down) * (1 - right))
        + corner(top, left + 1, (1 - down) * right)
        + corner(top + 1, left, down * (1 - right))
        + corner(top + 1, left + 1, down * right)
    )
