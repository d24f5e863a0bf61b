"""Bring images to their canvas inside a compiled program, with the pixels and sizes of `data.preprocess`.

Axes: B images · h, w of the array of original images · H, W of the canvas. Sizes are (height, width) in pixels.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from tood_jax.config import DataConfig

_WHOLE = 2048  # sum of OpenCV's weights of two neighbours
_DROPPED = 16  # divides a row's sum, before it is multiplied by the weights of the rows
_TO_FOURS = 65536  # divides that product, which leaves four times the value of the pixel


def canvas_sizes(
    sizes: Int[Array, "b 2"], canvas: tuple[int, int], data: DataConfig
) -> tuple[Int[Array, "b 2"], Float[Array, "b 2"]]:
    """Return the size of each image on a canvas, and its scale: those of `data.preprocess.to_canvas`.

    Args:
        sizes: of the original images.
        canvas: the one that `choose_canvas` chooses for all of the images.
    """
    with jax.enable_x64(True):  # in float64, as on the host: rounding decides about a pixel
        original = sizes.astype(jnp.float64)
        long, short = original.max(axis=1, keepdims=True), original.min(axis=1, keepdims=True)
        scale = jnp.minimum(data.max_long_side / long, data.eval_short_side / short)
        resized = jnp.maximum(1, jnp.floor(original * scale + 0.5))
        factor = (jnp.asarray(canvas, jnp.float64) / resized).min(axis=1, keepdims=True)
        fitted = jnp.where(factor < 1, jnp.maximum(1, jnp.floor(resized * factor)), resized)
        return fitted.astype(jnp.int32), (fitted / original).astype(jnp.float32)


def resize(
    images: UInt8[Array, "b h w 3"], sizes: Int[Array, "b 2"], new_sizes: Int[Array, "b 2"], canvas: tuple[int, int]
) -> UInt8[Array, "b hc wc 3"]:
    """Resize each image from its size to its new size on the canvas, with the bits of OpenCV's INTER_LINEAR.

    Pixels outside of the new sizes have no meaning.
    """
    top, bottom, weights_y = _neighbours(sizes[:, 0], new_sizes[:, 0], canvas[0])
    left, right, weights_x = _neighbours(sizes[:, 1], new_sizes[:, 1], canvas[1])
    # Where both neighbours are one column, OpenCV takes it with the whole weight; rows keep their two weights.
    weights_x = jnp.where((left == right)[..., None], jnp.asarray([_WHOLE, 0]), weights_x)

    def one(image, top, bottom, left, right, weights_y, weights_x):
        fours = jnp.zeros((), jnp.int32)
        for rows, weight in ((top, weights_y[:, 0]), (bottom, weights_y[:, 1])):
            of_rows = image[rows]
            sums = of_rows[:, left].astype(jnp.int32) * weights_x[:, 0, None]
            sums += of_rows[:, right].astype(jnp.int32) * weights_x[:, 1, None]
            fours += lax.div(lax.div(sums, _DROPPED) * weight[:, None, None], _TO_FOURS)
        return lax.div(fours + 2, 4).astype(jnp.uint8)

    return jax.vmap(one)(images, top, bottom, left, right, weights_y, weights_x)


def _neighbours(
    old: Int[Array, " b"], new: Int[Array, " b"], length: int
) -> tuple[Int[Array, "b n"], Int[Array, "b n"], Int[Array, "b n 2"]]:
    """Return for each of `length` pixels of an axis its neighbours in the original, and their weights.

    Args:
        old, new: number of pixels of the image along the axis, before and after.
    """
    with jax.enable_x64(True):
        step = old.astype(jnp.float64) / new.astype(jnp.float64)
        centers = lax.iota(jnp.float64, length) + 0.5
        position = (centers * step[:, None] - 0.5).astype(jnp.float32)
    first = jnp.floor(position)
    fraction = position - first
    weights = jnp.stack([1 - fraction, fraction], axis=-1) * _WHOLE
    first, last = first.astype(jnp.int32), old[:, None] - 1
    return jnp.clip(first, 0, last), jnp.clip(first + 1, 0, last), jnp.round(weights).astype(jnp.int32)
