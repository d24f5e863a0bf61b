"""Deformable convolution with the samples of all nine taps in memory, the columns, and one product; and its gradient.

For GPUs: they gather and scatter fast, but tap by tap the sum over the taps is read and written nine times, and each
tap is some ten launches. The gradient samples again, so that columns are in memory only during the layer's own work.
Everything is mapped over the images, not flattened with them, so that no map of a batch that is sharded over devices
has to be communicated.

Axes: as in deform_conv2d.py; n locations of a map with a border of zeros around it · K blocks of the kernel, of i input
channels each · S parts of the channels, s = C/S each; a part belongs to one deformable group and to one block.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from tood_jax.ops.conv.block_diagonal import block_count, in_blocks
from tood_jax.ops.deform_conv.sampling_points import (
    TAPS,
    SamplingPoints,
    add_border,
    corner_indices,
    remove_border,
    sampling_points,
)
from tood_jax.ops.materialize import compute_once
from tood_jax.precision import at_least_float32, sum_type

_WIDTH = 64  # channels of a block, where groups of a kernel are narrower: a cache line of bfloat16


def convolve(
    x: Float[Array, "b hh ww g c"],
    offsets: Float[Array, "b h w g 9 2"],
    mask: Float[Array, "b h w g 9"],
    kernel: Float[Array, "9 i o"],
    stride: int,
    groups: int,
) -> Float[Array, "b h w o"]:
    """Return the convolution, summed in float32 and rounded to the type of x."""
    count = _block_count(kernel, groups, x.shape[3])
    padded = add_border(_by_part(x, count))
    columns = _sample(padded, *_corners(_sampling_points(x, offsets, mask, stride), len(padded), x.shape[2]))
    return _multiply(columns, in_blocks(kernel, groups, count)).astype(x.dtype)


def gradients(x, offsets, mask, kernel, cotangent, stride: int, groups: int) -> tuple[Array, Array, Array, Array]:
    """Return the gradients of x, offsets, mask and kernel, each in its type, from the output's cotangent."""
    # Without the barrier XLA would keep the columns that `convolve` computed, of every layer, until now.
    x, offsets, mask, cotangent = compute_once((x, offsets, mask, cotangent))
    height, width = x.shape[1:3]
    count = _block_count(kernel, groups, x.shape[3])
    padded = add_border(_by_part(x, count))
    points = _sampling_points(x, offsets, mask, stride)
    corners = _corners(points, len(padded), width)
    blocks, to_kernel = jax.vjp(lambda kernel: in_blocks(kernel, groups, count), at_least_float32(kernel))
    blocks = blocks.astype(kernel.dtype)
    to_blocks = _block_gradients(_sample(padded, *corners), cotangent, blocks)
    to_columns = _column_gradients(cotangent, blocks, len(padded))
    # Without the barrier the corners, four times the columns, would be kept from the first gather for the second.
    padded, to_columns, to_blocks = compute_once((padded, to_columns, to_blocks))
    to_x, dots = _sample_gradients(padded, *corners, to_columns)
    dots = dots.reshape(4, len(points.mask), -1, *dots.shape[2:]).sum(2)  # the parts of each deformable group
    to_offsets, to_mask = points.gradients(dots)
    to_x = remove_border(to_x, height, width).reshape(x.shape).astype(x.dtype)
    (to_kernel,) = to_kernel(to_blocks)
    return to_x, jnp.moveaxis(to_offsets, 0, 3), jnp.moveaxis(to_mask, 0, 3), to_kernel.astype(kernel.dtype)


def _block_count(kernel, groups: int, deformable_groups: int) -> int:
    """Return K, a multiple of the deformable groups or a divisor of them."""
    count = block_count(kernel.shape[1], groups, _WIDTH)
    shared = math.gcd(count, deformable_groups)
    return count if shared == deformable_groups else shared


def _by_part(x: Float[Array, "b hh ww g c"], count: int) -> Float[Array, "b hh ww s c_"]:
    return x.reshape(*x.shape[:3], max(count, x.shape[3]), -1)


def _sampling_points(x, offsets, mask, stride: int) -> SamplingPoints:
    """Return the points [G, B, h, w, T] of all taps for all output locations."""
    offsets, mask = jnp.moveaxis(offsets, 3, 0), jnp.moveaxis(mask, 3, 0)
    rows, columns = (jnp.arange(length) * stride for length in mask.shape[2:4])
    return sampling_points(offsets, mask, rows[:, None, None], columns[:, None], jnp.arange(TAPS), *x.shape[1:3])


def _corners(
    points: SamplingPoints, parts: int, width: int
) -> tuple[Int[Array, "s b 4 h w t"], Float[Array, "s b 4 h w t"]]:
    """Return indices and masked weights of the four corners for every part."""
    corners = corner_indices(points, width), points.corner_weights() * points.mask
    indices, weights = (jnp.moveaxis(jnp.repeat(x, parts // x.shape[1], axis=1), 0, 2) for x in corners)
    return indices, weights


@jax.vmap
@jax.vmap
def _gather(rows: Float[Array, "n s"], indices: Int[Array, "h w t"]) -> Float[Array, "h w t s"]:
    return rows.at[indices].get(mode="promise_in_bounds")


@jax.vmap
@jax.vmap
def _scatter(
    total: Float[Array, "n s"], indices: Int[Array, "4 h w t"], rows: Float[Array, "4 h w t s"]
) -> Float[Array, "n s"]:
    return total.at[indices].add(rows, mode="promise_in_bounds")


def _sample(padded: Float[Array, "s b n c_"], indices, weights) -> Float[Array, "s b h w t c_"]:
    """Return the columns, weighted in float32."""
    corners = (_gather(padded, indices[:, :, k]) * weights[:, :, k, ..., None] for k in range(4))
    return sum(corners).astype(padded.dtype)


def _multiply(columns: Float[Array, "s b h w t c_"], blocks: Float[Array, "t k i o"]) -> Float[Array, "b h w o_"]:
    """Return the product in float32. An einsum, here and for the gradient of the columns, would transpose them."""
    contracted = ((1, 5, 6), (2, 0, 3)), ((0,), (1,))
    columns, blocks = _by_block(columns, blocks), _by_parts(blocks, len(columns))
    out = jnp.moveaxis(lax.dot_general(columns, blocks, contracted, preferred_element_type=sum_type(blocks)), 0, 3)
    return out.reshape(*out.shape[:3], -1)


def _block_gradients(columns, cotangent: Float[Array, "b h w o_"], blocks) -> Float[Array, "t k i o"]:
    """Return the gradient of the blocks through `_multiply`, in float32."""
    cotangent = cotangent.reshape(*cotangent.shape[:3], blocks.shape[1], -1)
    columns = _by_block(columns, blocks)
    gradient = jnp.einsum("kpbhwtc,bhwko->tkpco", columns, cotangent, preferred_element_type=sum_type(cotangent))
    return gradient.reshape(blocks.shape)


def _column_gradients(cotangent: Float[Array, "b h w o_"], blocks, parts: int) -> Float[Array, "s b h w t c_"]:
    """Return the gradient of the columns through `_multiply`, in the type of the cotangent."""
    cotangent = cotangent.reshape(*cotangent.shape[:3], blocks.shape[1], -1)
    contracted, blocks = (((4,), (4,)), ((3,), (1,))), _by_parts(blocks, parts)
    gradient = lax.dot_general(cotangent, blocks, contracted, preferred_element_type=sum_type(blocks))
    gradient = jnp.moveaxis(gradient.astype(cotangent.dtype), 5, 1)  # [K, S/K, B, h, w, T, s]
    return gradient.reshape(parts, *gradient.shape[2:])


def _by_block(columns: Float[Array, "s b h w t c_"], blocks) -> Float[Array, "k p b h w t c_"]:
    return columns.reshape(blocks.shape[1], -1, *columns.shape[1:])


def _by_parts(blocks: Float[Array, "t k i o"], parts: int) -> Float[Array, "t k p c_ o"]:
    taps, count, _, outputs = blocks.shape
    return blocks.reshape(taps, count, parts // count, -1, outputs)


def _sample_gradients(
    padded: Float[Array, "s b n c_"], indices, weights, to_columns: Float[Array, "s b h w t c_"]
) -> tuple[Float[Array, "s b n c_"], Float[Array, "4 s b h w t"]]:
    """Return the gradient of the padded map through `_sample`, and products of the cotangent with the four corners."""
    cotangent = at_least_float32(to_columns)
    dots = jnp.stack([(_gather(padded, indices[:, :, k]) * cotangent).sum(-1) for k in range(4)])
    rows = weights[..., None] * cotangent[:, :, None]
    return _scatter(jnp.zeros(padded.shape, cotangent.dtype), indices, rows), dots
