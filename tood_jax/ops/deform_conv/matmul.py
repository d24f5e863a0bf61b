"""Deformable convolution by matrix products, for TPUs, whose gathers and scatters are slow; and its gradient.

Image by image and output row by output row, the nine taps of all locations are sampled by one product of bilinear
weights with a window of the map's rows. A window covers offsets up to one and a half locations; where they reach
farther, more windows follow, so that any offset is exact. The columns of one image are in memory at a time.

Axes: H, W locations of the input · h, w of the output · T = 9 taps · G deformable groups, each of c channels · R rows
of a window · K = R·W locations of a window · O output channels.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from tood_jax.ops.conv.block_diagonal import LANES, block_count, in_blocks
from tood_jax.ops.deform_conv.sampling_points import TAPS, SamplingPoints, sampling_points
from tood_jax.precision import at_least_float32, sum_type

_ROWS = 6


def convolve(
    x: Float[Array, "b hh ww g c"],
    offsets: Float[Array, "b h w g 9 2"],
    mask: Float[Array, "b h w g 9"],
    kernel: Float[Array, "9 i o"],
    stride: int,
    groups: int,
) -> Float[Array, "b h w o"]:
    """Return the convolution, summed in float32 and rounded to the type of x."""

    def of_image(arguments):
        x, offsets, mask = arguments

        def of_row(arguments):
            row, offsets, mask = arguments
            return _multiply(_sample(x, _sampling_points(row, offsets, mask, stride, *x.shape[:2])), blocks)

        return lax.map(of_row, (jnp.arange(len(offsets)), offsets, mask))

    blocks = in_blocks(kernel, groups, block_count(kernel.shape[1], groups, LANES))
    return lax.map(of_image, (x, offsets, mask)).astype(x.dtype)


def gradients(x, offsets, mask, kernel, cotangent, stride: int, groups: int) -> tuple[Array, Array, Array, Array]:
    """Return the gradients of x, offsets, mask and kernel, each in its type, from the output's cotangent."""
    cotangent = at_least_float32(cotangent)

    def of_image(to_blocks, arguments):
        x, offsets, mask, cotangent = arguments

        def of_row(sums, arguments):
            to_x, to_blocks = sums
            row, offsets, mask, cotangent = arguments
            (to_sampled,) = jax.linear_transpose(lambda sampled: _multiply(sampled, blocks), like)(cotangent)
            points = _sampling_points(row, offsets, mask, stride, *x.shape[:2])
            to_x, sampled, to_offsets, to_mask = _sample_gradients(x, to_x, points, to_sampled)
            (more,) = jax.linear_transpose(lambda blocks: _multiply(sampled, blocks), whole)(cotangent)
            return (to_x, to_blocks + more), (to_offsets, to_mask)

        like = jax.ShapeDtypeStruct((offsets.shape[1], TAPS, *x.shape[2:]), x.dtype)
        rows = (jnp.arange(len(offsets)), offsets, mask, cotangent)
        (to_x, to_blocks), pulled = lax.scan(of_row, (jnp.zeros(x.shape, sum_type(x)), to_blocks), rows)
        return to_blocks, (to_x, *pulled)

    count = block_count(kernel.shape[1], groups, LANES)
    blocks, to_kernel = jax.vjp(lambda kernel: in_blocks(kernel, groups, count), at_least_float32(kernel))
    whole = jax.ShapeDtypeStruct(blocks.shape, blocks.dtype)
    blocks = blocks.astype(kernel.dtype)
    to_blocks, pulled = lax.scan(of_image, jnp.zeros(blocks.shape, sum_type(blocks)), (x, offsets, mask, cotangent))
    to_x, to_offsets, to_mask = pulled
    return to_x.astype(x.dtype), to_offsets, to_mask, to_kernel(to_blocks)[0].astype(kernel.dtype)


def _multiply(sampled: Float[Array, "w t g c"], blocks: Float[Array, "t k i o"]) -> Float[Array, "w o_"]:
    """Return the samples times the kernel, in float32."""
    sampled = sampled.reshape(*sampled.shape[:2], blocks.shape[1], -1)
    out = jnp.einsum("wtki,tkio->wko", sampled, blocks, preferred_element_type=sum_type(blocks))
    return out.reshape(len(out), -1)


def _sampling_points(row: Int[Array, ""], offsets, mask, stride: int, height: int, width: int) -> SamplingPoints:
    """Return the points [w, T, G] of all taps of one output row."""
    columns = jnp.arange(len(offsets))[:, None, None] * stride
    offsets, mask = jnp.swapaxes(offsets, 1, 2), jnp.swapaxes(mask, 1, 2)
    return sampling_points(offsets, mask, row * stride, columns, jnp.arange(TAPS)[:, None], height, width)


class _Window:
    """R consecutive rows of a map, with the weights of their locations in the samples of one output row."""

    def __init__(
        self, x: Float[Array, "hh ww g c"], points: SamplingPoints, first: Int[Array, ""], index: Int[Array, ""] | int
    ):
        """Make the `index`-th window of those that begin at row `first`."""
        height, width = x.shape[:2]
        self.rows = min(_ROWS, height)
        begin = first + index * self.rows
        self.begin = jnp.minimum(begin, height - self.rows)
        row = self.begin + jnp.arange(self.rows)  # rows above `begin` belong to the window before
        above = jnp.where(row >= begin, row, -2) - points.top[..., None]  # with the border, row 0 of the map is row 1
        beside = jnp.arange(width) - points.left[..., None]
        inside = points.inside[..., None]
        self.along = _tent(above, points.down, inside)  # [w, T, G, R]
        self.along_slope = _tent_slope(above, inside, self.along.dtype)
        self.across = _tent(beside, points.right, inside)  # [w, T, G, W]
        self.across_slope = _tent_slope(beside, inside, self.across.dtype)
        self.mask = points.mask
        self.values = lax.dynamic_slice_in_dim(x, self.begin, self.rows).reshape(-1, *x.shape[2:])  # [K, G, c]

    def weights(self, dtype: jnp.dtype) -> Float[Array, "w t g k"]:
        """Return the bilinear weights times the mask."""
        along = self.along * self.mask[..., None]
        weights = along[..., :, None] * self.across[..., None, :]
        return weights.reshape(*weights.shape[:3], -1).astype(dtype)


def _tent(distance, part, inside):
    """Return 1 − part for the location before the point, part for the one after it, 0 for all others."""
    after = jnp.where(distance == 0, part[..., None], 0)
    return jnp.where(inside, jnp.where(distance == -1, 1 - part[..., None], after), 0)


def _tent_slope(distance, inside, dtype: jnp.dtype):
    """Return the derivative of `_tent` with respect to `part`."""
    return jnp.where(inside, (distance == 0).astype(dtype) - (distance == -1), 0)


def _windows(points: SamplingPoints, height: int) -> tuple[Array, Array]:
    """Return the first row of the map that a point reads, and how many windows reach the last; 0 if all are outside."""
    above, below = jnp.maximum(points.top - 1, 0), jnp.minimum(points.top, height - 1)
    first = jnp.where(points.inside, above, height - 1).min()
    last = jnp.where(points.inside, below, -1).max()
    return first, jnp.maximum(-(-(last + 1 - first) // min(_ROWS, height)), 0)


def _sample(x: Float[Array, "hh ww g c"], points: SamplingPoints) -> Float[Array, "w t g c"]:
    """Return the samples of one output row, times the mask, weighted in float32."""
    first, count = _windows(points, len(x))

    def add_window(index, sampled):
        window = _Window(x, points, first, index)
        product = partial(jnp.einsum, preferred_element_type=sum_type(x))
        return sampled + product("wtgk,kgc->wtgc", window.weights(x.dtype), window.values)

    # The first window is not part of the loop, which rarely runs.
    return lax.fori_loop(1, count, add_window, add_window(0, jnp.zeros((), sum_type(x)))).astype(x.dtype)


def _sample_gradients(x, to_x, points: SamplingPoints, to_sampled: Float[Array, "w t g c"]):
    """Return `to_x` plus the gradient of x through `_sample`, the samples, and the gradients of offsets and mask."""
    first, count = _windows(points, len(x))
    product = partial(jnp.einsum, preferred_element_type=sum_type(x))

    def add_window(index, sums):
        to_x, sampled, to_mask, to_offsets = sums
        window = _Window(x, points, first, index)
        weights = window.weights(x.dtype)
        sampled = sampled + product("wtgk,kgc->wtgc", weights, window.values)
        dots = product("wtgc,kgc->wtgk", to_sampled, window.values)
        dots = dots.reshape(*dots.shape[:3], window.rows, -1)
        along_row, slope_along_row = (
            (dots * across[..., None, :]).sum(-1) for across in (window.across, window.across_slope)
        )
        to_mask = to_mask + (window.along * along_row).sum(-1)
        slopes = (window.along_slope * along_row).sum(-1), (window.along * slope_along_row).sum(-1)
        to_offsets = to_offsets + jnp.stack(slopes, -1) * window.mask[..., None]
        more = product("wtgk,wtgc->kgc", weights, to_sampled).reshape(window.rows, *x.shape[1:])
        old = lax.dynamic_slice_in_dim(to_x, window.begin, window.rows)
        return lax.dynamic_update_slice_in_dim(to_x, old + more, window.begin, 0), sampled, to_mask, to_offsets

    zero = jnp.zeros((), sum_type(x))
    sums = lax.fori_loop(1, count, add_window, add_window(0, (to_x, zero, zero, zero)))
    to_x, sampled, to_mask, to_offsets = sums
    return to_x, sampled.astype(x.dtype), jnp.swapaxes(to_offsets, 1, 2), jnp.swapaxes(to_mask, 1, 2)
