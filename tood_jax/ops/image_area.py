"""Each image's own area on its canvas: its size, padded up to a multiple of 32 pixels, at every stride of the network.

What an image's predictions are computed from lies in this area alone: maps are zero outside before every operation that
mixes locations, and statistics and means leave the outside out. Predictions therefore depend neither on the canvas nor
on the other images of the batch; they are those of the image on a canvas of its own, as in mmdetection's tests.

A mask is None where the whole canvas counts. Axes: B images · H, W locations of a map · F channels.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.geometry.locations import padded_sizes
from tood_jax.precision import sum_type

Mask = Bool[Array, "_ _ _ 1"] | None
COUNT = 8  # strides 1, 2, 4, …, 128
WHOLE: tuple[Mask, ...] = (None,) * COUNT


def image_areas(sizes: Int[Array, "b 2"], height: int, width: int) -> tuple[Mask, ...]:
    """Return the mask of each image's own area in maps of stride 1, 2, 4, …, 128.

    Args:
        sizes: (height, width) of each image in the canvas, pixels.
        height, width: of the canvas, pixels.
    """
    sizes, areas = padded_sizes(sizes)[:, :, None, None, None], []
    for _ in range(COUNT):
        shape = (sizes.shape[0], height, width, 1)
        rows, columns = (lax.broadcasted_iota(sizes.dtype, shape, axis) for axis in (1, 2))
        areas.append((rows < sizes[:, 0]) & (columns < sizes[:, 1]))
        height, width, sizes = -(-height // 2), -(-width // 2), -(-sizes // 2)
    return tuple(areas)


def clear_outside(x: Array, inside: Mask) -> Array:
    """Return a map with zeros outside of the images' areas."""
    return x if inside is None else jnp.where(inside, x, 0)


def count_inside(x: Float[Array, "b h w f"], inside: Mask) -> int | Float[Array, "b 1"]:
    """Return the number of locations in each image's area."""
    return x.shape[1] * x.shape[2] if inside is None else inside.sum(axis=(1, 2), dtype=sum_type(x))


def mean_inside(x: Float[Array, "b h w f"], inside: Mask) -> Float[Array, "b 1 1 f"]:
    """Return the mean of a map over each image's area.

    Args:
        x: zero outside of the areas.
    """
    if inside is None:
        return x.mean(axis=(1, 2), keepdims=True)
    total = x.sum(axis=(1, 2), dtype=sum_type(x)) / count_inside(x, inside)
    return total.astype(x.dtype)[:, None, None]
