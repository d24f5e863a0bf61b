"""Bilinear sampling of box sides, each at its own learnt offset (paper section 3.1, equation 5).

By a gather of the four corners, whose gradient is a scatter, on CPUs and GPUs; by products, `sampling_products`, on
TPUs, which take the elements of gathers and scatters one after another. The platform that is compiled for decides.

Axes: B images · H, W a level's cells · N the cells of some levels in a row, each level row by row · S sides.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tood_jax.geometry import sampling_products
from tood_jax.geometry.packing import Shapes


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
    in_a_row = boxes.reshape(batch, -1, sides), offsets.reshape(batch, -1, sides, 2)
    return sample_sides_of_levels(*in_a_row, ((height, width),)).reshape(boxes.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def sample_sides_of_levels(
    boxes: Float[Array, "b n s"], offsets: Float[Array, "b n s 2"], shapes: Shapes
) -> Float[Array, "b n s"]:
    """`sample_sides` of several maps of these (height, width) in a row; nothing is seen across levels."""
    gather, products = (partial(function, shapes=shapes) for function in (sample_by_gather, sampling_products.sample))
    return lax.platform_dependent(boxes, offsets, tpu=products, default=gather)


def _forward(boxes, offsets, shapes):
    return sample_sides_of_levels(boxes, offsets, shapes), (boxes, offsets)


def _backward(shapes, arguments, cotangent):
    def through(function):
        return lambda boxes, offsets, cotangent: jax.vjp(partial(function, shapes=shapes), boxes, offsets)[1](cotangent)

    gather, products = map(through, (sample_by_gather, sampling_products.sample))
    return lax.platform_dependent(*arguments, cotangent, tpu=products, default=gather)


sample_sides_of_levels.defvjp(_forward, _backward)


def sample_by_gather(
    boxes: Float[Array, "b n s"], offsets: Float[Array, "b n s 2"], shapes: Shapes
) -> Float[Array, "b n s"]:
    """`sample_sides_of_levels`, the four corners in one gather."""
    start, row, column, height, width = (jnp.asarray(one[:, None]) for one in _places(shapes))  # [N, 1] each
    rows, columns = row + offsets[..., 0], column + offsets[..., 1]  # [B, N, S]
    top, left = lax.stop_gradient(jnp.floor(rows)), lax.stop_gradient(jnp.floor(columns))
    down, right = rows - top, columns - left  # 0–1, fractions

    corner_rows = jnp.stack([top, top, top + 1, top + 1], axis=1)  # [B, 4, N, S]
    corner_columns = jnp.stack([left, left + 1, left, left + 1], axis=1)
    weights = jnp.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=1)
    inside = (corner_rows >= 0) & (corner_rows < height) & (corner_columns >= 0) & (corner_columns < width)
    corner_rows, corner_columns = jnp.clip(corner_rows, 0, height - 1), jnp.clip(corner_columns, 0, width - 1)
    index = start + corner_rows.astype(jnp.int32) * width + corner_columns.astype(jnp.int32)
    index = index.reshape(len(boxes), -1, boxes.shape[-1])
    values = jnp.take_along_axis(boxes, index, axis=1, mode="promise_in_bounds").reshape(weights.shape)
    return jnp.where(inside, values * weights, 0).sum(axis=1)


def _places(shapes: Shapes) -> tuple[np.ndarray, ...]:
    """Of each cell in the row [N] int32: its level's start, its row and column there, its level's height and width."""
    found, start = [], 0
    for height, width in shapes:
        rows, columns = np.mgrid[:height, :width].reshape(2, -1)
        found.append(
            np.stack([np.full_like(rows, start), rows, columns, *np.broadcast_arrays(height, width, rows)[:2]])
        )
        start += height * width
    return tuple(np.concatenate(found, axis=1).astype(np.int32))
