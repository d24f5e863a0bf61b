"""Deformable convolution by matrix products, for TPUs, whose gathers and scatters are slow; and its gradient.

Image by image and output row by output row, the nine taps of all places are sampled by one product of bilinear weights
with a window of the map's rows. A window holds what offsets up to a cell and a half reach; where they reach farther,
more windows follow, so that any offset is exact. The columns of one image lie in memory at a time.

Axes: H, W the input's cells · h, w the output's cells · T = 9 taps · G deformable groups, each of c channels · R rows
of a window · K = R·W cells of a window · O output channels.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from tood_jax.networks.deformable_places import TAPS, Places, places_of
from tood_jax.networks.kernel_blocks import LANES, block_count, in_blocks
from tood_jax.networks.layers import Dtype

_ROWS = 6


def convolve(
    x: Float[Array, "b hh ww g c"],
    offsets: Float[Array, "b h w g 9 2"],
    mask: Float[Array, "b h w g 9"],
    kernel: Float[Array, "9 i o"],
    stride: int,
    groups: int,
) -> Float[Array, "b h w o"]:
    """The convolution, summed in float32 and in x's dtype."""

    def of_image(arguments):
        x, offsets, mask = arguments

        def of_row(arguments):
            row, offsets, mask = arguments
            return _multiply(_sample(x, _places(row, offsets, mask, stride, *x.shape[:2])), blocks)

        return lax.map(of_row, (jnp.arange(len(offsets)), offsets, mask))

    blocks = in_blocks(kernel, groups, block_count(kernel.shape[1], groups, LANES))
    return lax.map(of_image, (x, offsets, mask)).astype(x.dtype)


def pull_back(x, offsets, mask, kernel, cotangent, stride: int, groups: int) -> tuple[Array, Array, Array, Array]:
    """Gradients of x, offsets, mask and kernel, each in its dtype, from the output's cotangent."""
    cotangent = cotangent.astype(jnp.float32)

    def of_image(to_blocks, arguments):
        x, offsets, mask, cotangent = arguments

        def of_row(sums, arguments):
            to_x, to_blocks = sums
            row, offsets, mask, cotangent = arguments
            (to_sampled,) = jax.linear_transpose(lambda sampled: _multiply(sampled, blocks), like)(cotangent)
            places = _places(row, offsets, mask, stride, *x.shape[:2])
            to_x, sampled, to_offsets, to_mask = _pull(x, to_x, places, to_sampled)
            (more,) = jax.linear_transpose(lambda blocks: _multiply(sampled, blocks), whole)(cotangent)
            return (to_x, to_blocks + more), (to_offsets, to_mask)

        like = jax.ShapeDtypeStruct((offsets.shape[1], TAPS, *x.shape[2:]), x.dtype)
        rows = (jnp.arange(len(offsets)), offsets, mask, cotangent)
        (to_x, to_blocks), pulled = lax.scan(of_row, (jnp.zeros(x.shape, jnp.float32), to_blocks), rows)
        return to_blocks, (to_x, *pulled)

    count = block_count(kernel.shape[1], groups, LANES)
    blocks, to_kernel = jax.vjp(lambda kernel: in_blocks(kernel, groups, count), kernel.astype(jnp.float32))
    whole = jax.ShapeDtypeStruct(blocks.shape, jnp.float32)
    blocks = blocks.astype(kernel.dtype)
    to_blocks, pulled = lax.scan(of_image, jnp.zeros(blocks.shape, jnp.float32), (x, offsets, mask, cotangent))
    to_x, to_offsets, to_mask = pulled
    return to_x.astype(x.dtype), to_offsets, to_mask, to_kernel(to_blocks)[0].astype(kernel.dtype)


def _multiply(sampled: Float[Array, "w t g c"], blocks: Float[Array, "t k i o"]) -> Float[Array, "w o_"]:
    """What the taps see times the kernel, in float32."""
    sampled = sampled.reshape(*sampled.shape[:2], blocks.shape[1], -1)
    out = jnp.einsum("wtki,tkio->wko", sampled, blocks, preferred_element_type=jnp.float32)
    return out.reshape(len(out), -1)


def _places(row: Int[Array, ""], offsets, mask, stride: int, height: int, width: int) -> Places:
    """[w, T, G]: where the taps of one output row look."""
    columns = jnp.arange(len(offsets))[:, None, None] * stride
    offsets, mask = jnp.swapaxes(offsets, 1, 2), jnp.swapaxes(mask, 1, 2)
    return places_of(offsets, mask, row * stride, columns, jnp.arange(TAPS)[:, None], height, width)


class _Window:
    """R rows of a map from some row on, with the weights of their cells in the samples of one output row."""

    def __init__(
        self, x: Float[Array, "hh ww g c"], places: Places, first: Int[Array, ""], index: Int[Array, ""] | int
    ):
        """The `index`-th window of those that begin at row `first`."""
        height, width = x.shape[:2]
        self.rows = min(_ROWS, height)
        begin = first + index * self.rows
        self.begin = jnp.minimum(begin, height - self.rows)
        row = self.begin + jnp.arange(self.rows)  # rows above `begin` belong to the window before
        above = jnp.where(row >= begin, row, -2) - places.top[..., None]  # the ring makes row 0 of the map row 1
        beside = jnp.arange(width) - places.left[..., None]
        inside = places.inside[..., None]
        self.along = _tent(above, places.down, inside)  # [w, T, G, R]
        self.along_slope = _tent_slope(above, inside)
        self.across = _tent(beside, places.right, inside)  # [w, T, G, W]
        self.across_slope = _tent_slope(beside, inside)
        self.mask = places.mask
        self.seen = lax.dynamic_slice_in_dim(x, self.begin, self.rows).reshape(-1, *x.shape[2:])  # [K, G, c]

    def weights(self, dtype: Dtype) -> Float[Array, "w t g k"]:
        """Bilinear weights times the mask."""
        along = self.along * self.mask[..., None]
        weights = along[..., :, None] * self.across[..., None, :]
        return weights.reshape(*weights.shape[:3], -1).astype(dtype)


def _tent(distance, part, inside):
    """1 − part for the cell before the place, part for the cell behind it, 0 for all others."""
    behind = jnp.where(distance == 0, part[..., None], 0)
    return jnp.where(inside, jnp.where(distance == -1, 1 - part[..., None], behind), 0)


def _tent_slope(distance, inside):
    """Its derivative in `part`."""
    return jnp.where(inside, (distance == 0).astype(jnp.float32) - (distance == -1), 0)


def _windows(places: Places, height: int) -> tuple[Array, Array]:
    """The first row of the map that a place touches, and how many windows reach the last; 0 where all look outside."""
    above, below = jnp.maximum(places.top - 1, 0), jnp.minimum(places.top, height - 1)
    first = jnp.where(places.inside, above, height - 1).min()
    last = jnp.where(places.inside, below, -1).max()
    return first, jnp.maximum(-(-(last + 1 - first) // min(_ROWS, height)), 0)


def _sample(x: Float[Array, "hh ww g c"], places: Places) -> Float[Array, "w t g c"]:
    """What the taps of one output row see, times the mask, weighed in float32."""
    first, count = _windows(places, len(x))

    def see(index, sampled):
        window = _Window(x, places, first, index)
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        return sampled + product("wtgk,kgc->wtgc", window.weights(x.dtype), window.seen)

    # The first window is no part of the loop, which seldom runs.
    return lax.fori_loop(1, count, see, see(0, jnp.float32(0))).astype(x.dtype)


def _pull(x, to_x, places: Places, to_sampled: Float[Array, "w t g c"]):
    """Back through `_sample`: more gradient of x, and (the samples again, gradients of offsets and mask)."""
    first, count = _windows(places, len(x))
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def see(index, sums):
        to_x, sampled, to_mask, to_offsets = sums
        window = _Window(x, places, first, index)
        weights = window.weights(x.dtype)
        sampled = sampled + product("wtgk,kgc->wtgc", weights, window.seen)
        dots = product("wtgc,kgc->wtgk", to_sampled, window.seen)
        dots = dots.reshape(*dots.shape[:3], window.rows, -1)
        beside, sideways = ((dots * across[..., None, :]).sum(-1) for across in (window.across, window.across_slope))
        to_mask = to_mask + (window.along * beside).sum(-1)
        slopes = (window.along_slope * beside).sum(-1), (window.along * sideways).sum(-1)
        to_offsets = to_offsets + jnp.stack(slopes, -1) * window.mask[..., None]
        more = product("wtgk,wtgc->kgc", weights, to_sampled).reshape(window.rows, *x.shape[1:])
        old = lax.dynamic_slice_in_dim(to_x, window.begin, window.rows)
        return lax.dynamic_update_slice_in_dim(to_x, old + more, window.begin, 0), sampled, to_mask, to_offsets

    nothing = jnp.float32(0)
    sums = lax.fori_loop(1, count, see, see(0, (to_x, nothing, nothing, nothing)))
    to_x, sampled, to_mask, to_offsets = sums
    return to_x, sampled.astype(x.dtype), jnp.swapaxes(to_offsets, 1, 2), jnp.swapaxes(to_mask, 1, 2)
