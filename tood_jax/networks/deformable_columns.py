"""Deformable convolution with the samples of all nine taps in memory, the columns, and one product; and its gradient.

For GPUs: they gather and scatter quickly, but tap by tap the sum over the taps travels nine times, and each tap is some
ten launches. The gradient samples again, so that columns live no longer than the layer's own work. Everything is mapped
over the images, not flattened with them, so that of a batch sharded over devices no map has to travel.

Axes: as in deformable.py; n cells of a map with a ring of zeros around it · K blocks of the kernel, of i input channels
each · S parts of the channels, s = C/S each, which lie in one deformable group and in one block.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from tood_jax.networks.deformable_places import TAPS, Places, corner_cells, places_of, ring, unring
from tood_jax.networks.kernel_blocks import block_count, in_blocks

_WIDTH = 64  # channels of a block, where groups of a kernel are narrower: a cache line of bfloat16


def convolve(
    x: Float[Array, "b hh ww g c"],
    offsets: Float[Array, "b h w g 9 2"],
    mask: Float[Array, "b h w g 9"],
    kernel: Float[Array, "9 i o"],
    stride: int,
    groups: int,
) -> Float[Array, "b h w o"]:
    """The convolution, summed in float32 and in x's dtype."""
    count = _block_count(kernel, groups, x.shape[3])
    ringed = ring(_by_part(x, count))
    columns = _sample(ringed, *_corners(_places(x, offsets, mask, stride), len(ringed), x.shape[2]))
    return _multiply(columns, in_blocks(kernel, groups, count)).astype(x.dtype)


def pull_back(x, offsets, mask, kernel, cotangent, stride: int, groups: int) -> tuple[Array, Array, Array, Array]:
    """Gradients of x, offsets, mask and kernel, each in its dtype, from the output's cotangent in that of x."""
    # Or XLA would keep the columns that `convolve` made, of every layer, until now.
    x, offsets, mask, cotangent = lax.optimization_barrier((x, offsets, mask, cotangent))
    height, width = x.shape[1:3]
    count = _block_count(kernel, groups, x.shape[3])
    ringed = ring(_by_part(x, count))
    places = _places(x, offsets, mask, stride)
    corners = _corners(places, len(ringed), width)
    blocks, to_kernel = jax.vjp(lambda kernel: in_blocks(kernel, groups, count), kernel.astype(jnp.float32))
    blocks = blocks.astype(kernel.dtype)
    to_blocks = _pull_blocks(_sample(ringed, *corners), cotangent, blocks)
    to_columns = _pull_columns(cotangent, blocks, len(ringed))
    # Or the corners, four times the columns, would be kept from the first look for the second.
    ringed, to_columns, to_blocks = lax.optimization_barrier((ringed, to_columns, to_blocks))
    to_x, dots = _pull_samples(ringed, *corners, to_columns)
    dots = dots.reshape(4, len(places.mask), -1, *dots.shape[2:]).sum(2)  # the parts of each deformable group
    to_offsets, to_mask = places.gradients(dots)
    to_x = unring(to_x, height, width).reshape(x.shape).astype(x.dtype)
    (to_kernel,) = to_kernel(to_blocks)
    return to_x, jnp.moveaxis(to_offsets, 0, 3), jnp.moveaxis(to_mask, 0, 3), to_kernel.astype(kernel.dtype)


def _block_count(kernel, groups: int, deformable_groups: int) -> int:
    """K, a multiple of the deformable groups or a divisor of them."""
    count = block_count(kernel.shape[1], groups, _WIDTH)
    shared = math.gcd(count, deformable_groups)
    return count if shared == deformable_groups else shared


def _by_part(x: Float[Array, "b hh ww g c"], count: int) -> Float[Array, "b hh ww s c_"]:
    return x.reshape(*x.shape[:3], max(count, x.shape[3]), -1)


def _places(x, offsets, mask, stride: int) -> Places:
    """[G, B, h, w, T]: where all taps look from all output cells."""
    offsets, mask = jnp.moveaxis(offsets, 3, 0), jnp.moveaxis(mask, 3, 0)
    rows, columns = (jnp.arange(length) * stride for length in mask.shape[2:4])
    return places_of(offsets, mask, rows[:, None, None], columns[:, None], jnp.arange(TAPS), *x.shape[1:3])


def _corners(places: Places, parts: int, width: int) -> tuple[Int[Array, "s b 4 h w t"], Float[Array, "s b 4 h w t"]]:
    """Cells and masked weights of the four corners for every part."""
    corners = corner_cells(places, width), places.corner_weights() * places.mask
    cells, weights = (jnp.moveaxis(jnp.repeat(one, parts // one.shape[1], axis=1), 0, 2) for one in corners)
    return cells, weights


@jax.vmap
@jax.vmap
def _gather(rows: Float[Array, "n s"], cells: Int[Array, "h w t"]) -> Float[Array, "h w t s"]:
    return rows.at[cells].get(mode="promise_in_bounds")


@jax.vmap
@jax.vmap
def _scatter(
    total: Float[Array, "n s"], cells: Int[Array, "4 h w t"], rows: Float[Array, "4 h w t s"]
) -> Float[Array, "n s"]:
    return total.at[cells].add(rows, mode="promise_in_bounds")


def _sample(ringed: Float[Array, "s b n c_"], cells, weights) -> Float[Array, "s b h w t c_"]:
    """The columns, weighed in float32."""
    corners = (_gather(ringed, cells[:, :, k]) * weights[:, :, k, ..., None] for k in range(4))
    return sum(corners).astype(ringed.dtype)


def _multiply(columns: Float[Array, "s b h w t c_"], blocks: Float[Array, "t k i o"]) -> Float[Array, "b h w o_"]:
    """In float32. No einsum, here and for the columns' gradient: it turns them around, and then they are transposed."""
    meeting = ((1, 5, 6), (2, 0, 3)), ((0,), (1,))
    columns, blocks = _by_block(columns, blocks), _by_parts(blocks, len(columns))
    out = jnp.moveaxis(lax.dot_general(columns, blocks, meeting, preferred_element_type=jnp.float32), 0, 3)
    return out.reshape(*out.shape[:3], -1)


def _pull_blocks(columns, cotangent: Float[Array, "b h w o_"], blocks) -> Float[Array, "t k i o"]:
    """Back through `_multiply` to the blocks, in float32."""
    cotangent = cotangent.reshape(*cotangent.shape[:3], blocks.shape[1], -1)
    columns = _by_block(columns, blocks)
    found = jnp.einsum("kpbhwtc,bhwko->tkpco", columns, cotangent, preferred_element_type=jnp.float32)
    return found.reshape(blocks.shape)


def _pull_columns(cotangent: Float[Array, "b h w o_"], blocks, parts: int) -> Float[Array, "s b h w t c_"]:
    """Back through `_multiply` to the columns, in the cotangent's dtype."""
    cotangent = cotangent.reshape(*cotangent.shape[:3], blocks.shape[1], -1)
    meeting, blocks = (((4,), (4,)), ((3,), (1,))), _by_parts(blocks, parts)
    found = lax.dot_general(cotangent, blocks, meeting, preferred_element_type=jnp.float32)
    found = jnp.moveaxis(found.astype(cotangent.dtype), 5, 1)  # [K, S/K, B, h, w, T, s]
    return found.reshape(parts, *found.shape[2:])


def _by_block(columns: Float[Array, "s b h w t c_"], blocks) -> Float[Array, "k p b h w t c_"]:
    return columns.reshape(blocks.shape[1], -1, *columns.shape[1:])


def _by_parts(blocks: Float[Array, "t k i o"], parts: int) -> Float[Array, "t k p c_ o"]:
    taps, count, _, outputs = blocks.shape
    return blocks.reshape(taps, count, parts // count, -1, outputs)


def _pull_samples(
    ringed: Float[Array, "s b n c_"], cells, weights, to_columns: Float[Array, "s b h w t c_"]
) -> tuple[Float[Array, "s b n c_"], Float[Array, "4 s b h w t"]]:
    """Back through `_sample`: the gradient of the ringed map, and products of the cotangent with the four corners."""
    given = to_columns.astype(jnp.float32)
    dots = jnp.stack([(_gather(ringed, cells[:, :, k]) * given).sum(-1) for k in range(4)])
    rows = weights[..., None] * given[:, :, None]
    return _scatter(jnp.zeros(ringed.shape, jnp.float32), cells, rows), dots
