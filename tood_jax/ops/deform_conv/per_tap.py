"""Deformable convolution tap by tap, by gathers of corners, and its gradient by scatters of them.

The samples of all nine taps, nine times the map, are never in memory together, neither forward nor backward (which
samples again). Everything is mapped over the images, not flattened with them, so that no map of a batch that is sharded
over devices has to be communicated.

Axes: as in deform_conv2d.py; n locations of a map with a border of zeros around it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from tood_jax.ops.deform_conv.sampling_points import (
    TAPS,
    SamplingPoints,
    add_border,
    corner_indices,
    remove_border,
    sampling_points,
)
from tood_jax.ops.dispatch import by_platform
from tood_jax.ops.materialize import compute_once
from tood_jax.precision import at_least_float32, sum_type


def convolve(
    x: Float[Array, "b hh ww g c"],
    offsets: Float[Array, "b h w g 9 2"],
    mask: Float[Array, "b h w g 9"],
    kernel: Float[Array, "9 i o"],
    stride: int,
    groups: int,
) -> Float[Array, "b h w o"]:
    """Return the convolution, summed in float32 and rounded to the type of x."""
    padded = add_border(x)

    def add_tap(total, tap):
        tap, offsets, mask, kernel = tap
        samples = _sample(padded, _points_of_tap(tap, offsets, mask, stride, *x.shape[1:3]), x.shape[2])
        return total + _multiply(samples.reshape(*samples.shape[:3], -1), kernel, groups), None

    start = jnp.zeros((*offsets.shape[:3], kernel.shape[-1]), sum_type(x))
    return lax.scan(add_tap, start, _by_tap(offsets, mask, kernel))[0].astype(x.dtype)


def gradients(x, offsets, mask, kernel, cotangent, stride: int, groups: int) -> tuple[Array, Array, Array, Array]:
    """Return the gradients of x, offsets, mask and kernel, each in its type, from the output's cotangent."""
    cotangent = at_least_float32(cotangent)
    height, width = x.shape[1:3]
    padded = add_border(x)

    def add_gradient(to_x, tap):
        tap, offsets, mask, kernel = tap
        points = _points_of_tap(tap, offsets, mask, stride, height, width)
        samples = _sample(padded, points, width)
        _, pull_back = jax.vjp(
            lambda samples, kernel: _multiply(samples.reshape(flat), kernel, groups), samples, kernel
        )
        to_samples, to_kernel = pull_back(cotangent)
        to_x, dots = _sample_gradients(padded, to_x, points, to_samples, width)
        to_offsets, to_mask = points.gradients(dots)
        return to_x, (to_offsets, to_mask, to_kernel)

    flat = (*offsets.shape[:3], x.shape[3] * x.shape[4])
    taps = _by_tap(offsets, mask, kernel)
    to_x, (to_offsets, to_mask, to_kernel) = lax.scan(add_gradient, jnp.zeros(padded.shape, sum_type(padded)), taps)
    to_x = remove_border(to_x, height, width).astype(x.dtype)
    return to_x, jnp.moveaxis(to_offsets, 0, 4), jnp.moveaxis(to_mask, 0, 4), to_kernel


def _multiply(samples: Float[Array, "b h w c"], kernel: Float[Array, "i o"], groups: int) -> Float[Array, "b h w o"]:
    """Return the samples of one tap times its part of the kernel, group by group of the kernel, in float32."""
    if groups == 1:
        return jnp.einsum("bhwc,co->bhwo", samples, kernel, preferred_element_type=sum_type(kernel))
    samples, kernel = samples.reshape(*samples.shape[:3], groups, -1), kernel.reshape(len(kernel), groups, -1)
    out = jnp.einsum("bhwgi,igo->bhwgo", samples, kernel, preferred_element_type=sum_type(kernel))
    return out.reshape(*out.shape[:3], -1)


def _by_tap(offsets, mask, kernel):
    """Return the arrays that differ from tap to tap, with the tap as first axis."""
    return jnp.arange(TAPS), jnp.moveaxis(offsets, 4, 0), jnp.moveaxis(mask, 4, 0), kernel


def _points_of_tap(
    tap: Int[Array, ""] | int, offsets: Float[Array, "b h w g 2"], mask, stride: int, height: int, width: int
) -> SamplingPoints:
    """Return the points [B, h, w, G] of one tap for each output location."""
    rows, columns = (jnp.arange(length) * stride for length in offsets.shape[1:3])
    return sampling_points(offsets, mask, rows[:, None, None], columns[:, None], tap, height, width)


@jax.vmap
def _gather(rows: Float[Array, "n c"], indices: Int[Array, "h w"]) -> Float[Array, "h w c"]:
    return rows.at[indices].get(mode="promise_in_bounds")


@jax.vmap
def _scatter(
    total: Float[Array, "n c"],
    indices: Int[Array, "4 h w"],
    weights: Float[Array, "4 h w"],
    rows: Float[Array, "h w c"],
) -> Float[Array, "n c"]:
    return total.at[indices].add(weights[..., None] * rows, mode="promise_in_bounds")


def _scatter_in_loop(total, indices, weights, rows, width):
    """Do what `_scatter` does in a loop over points: XLA:CPU's scatter takes five to eight times as long."""
    weights = jnp.moveaxis(weights, 1, -1).reshape(-1, 1, 2, 2, 1)
    rows = rows.reshape(len(weights), -1)
    indices = indices[:, 0].reshape(len(indices), -1)  # of the top left corners
    count = indices.shape[1]

    def add(i, total):
        index = indices[i // count, i % count]
        corner = (i // count, index // (width + 2), index % (width + 2), 0)
        start = [jnp.asarray(position, jnp.int32) for position in corner]  # one type for all, in 64-bit mode too
        window = lax.dynamic_slice(total, start, (1, 2, 2, total.shape[-1]))
        return lax.dynamic_update_slice(total, window + weights[i] * rows[i], start)

    maps = total.reshape(len(total), -1, width + 2, total.shape[-1])
    return lax.fori_loop(0, indices.size, add, maps).reshape(total.shape)


def _corners(points: SamplingPoints, width: int) -> tuple[Array, Array]:
    """Return indices and masked weights of the corners; the barrier keeps XLA:CPU from computing them per channel."""
    return compute_once((corner_indices(points, width), points.corner_weights() * points.mask))


def _sample(x: Float[Array, "g b n c"], points: SamplingPoints, width: int) -> Float[Array, "b h w g c"]:
    """Return bilinear samples of a map with a border, times the mask, weighted in float32."""
    indices, weights = _corners(points, width)

    def group(g, rows):  # one by one: XLA:CPU needs twice as long for all in one gather
        return sum(_gather(rows, indices[k, ..., g]) * weights[k, ..., g, None] for k in range(4))

    return jnp.stack([group(g, rows) for g, rows in enumerate(x)], axis=3).astype(x.dtype)


def _sample_gradients(
    x: Float[Array, "g b n c"], to_x: Float[Array, "g b n c"], points: SamplingPoints, cotangent: Array, width: int
) -> tuple[Float[Array, "g b n c"], Float[Array, "4 b h w g"]]:
    """Return `to_x` plus the gradient of x through `_sample`, and products of the cotangent with the four corners."""
    indices, weights = _corners(points, width)
    cotangent = at_least_float32(cotangent)

    def group(g, rows):
        # A product with ones, where a sum would do: XLA:CPU runs it 15 times faster than a sum fused with a gather.
        ones, of_group = jnp.ones(x.shape[-1], sum_type(x)), cotangent[..., g, :]
        dots = [
            jnp.dot(_gather(rows, indices[k, ..., g]) * of_group, ones, precision=lax.Precision.HIGHEST)
            for k in range(4)
        ]
        corners = (jnp.moveaxis(array[..., g], 0, 1) for array in (indices, weights))
        in_loop = partial(_scatter_in_loop, width=width)
        to_rows = by_platform(to_x[g], *corners, of_group, cpu=in_loop, default=_scatter)
        return to_rows, jnp.stack(dots)

    gradients_of_x, dots = zip(*(group(g, rows) for g, rows in enumerate(x)), strict=True)
    return jnp.stack(gradients_of_x), jnp.stack(dots, axis=-1)
