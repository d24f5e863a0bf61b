"""Deformable convolution tap by tap, by gathers of corner rows, and its gradient by scatters of them.

Nine times the map, the columns of a textbook implementation, never lie in memory, neither forward nor backward (which
samples again). Everything is mapped over the images, not flattened with them, so that of a batch sharded over devices
no map has to travel.

Axes: as in deformable.py; n cells of a map with a ring of zeros around it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from tood_jax.networks.deformable_places import TAPS, Places, corner_cells, places_of, ring, unring


def convolve(
    x: Float[Array, "b hh ww g c"],
    offsets: Float[Array, "b h w g 9 2"],
    mask: Float[Array, "b h w g 9"],
    kernel: Float[Array, "9 i o"],
    stride: int,
    groups: int,
) -> Float[Array, "b h w o"]:
    """The convolution, summed in float32 and in x's dtype."""
    ringed = ring(x)

    def add_tap(total, tap):
        tap, offsets, mask, kernel = tap
        seen = _sample(ringed, _tap_places(tap, offsets, mask, stride, *x.shape[1:3]), x.shape[2])
        return total + _multiply(seen.reshape(*seen.shape[:3], -1), kernel, groups), None

    start = jnp.zeros((*offsets.shape[:3], kernel.shape[-1]), jnp.float32)
    return lax.scan(add_tap, start, _by_tap(offsets, mask, kernel))[0].astype(x.dtype)


def pull_back(x, offsets, mask, kernel, cotangent, stride: int, groups: int) -> tuple[Array, Array, Array, Array]:
    """Gradients of x, offsets, mask and kernel, each in its dtype, from the output's cotangent."""
    cotangent = cotangent.astype(jnp.float32)
    height, width = x.shape[1:3]
    ringed = ring(x)

    def pull_tap(to_x, tap):
        tap, offsets, mask, kernel = tap
        places = _tap_places(tap, offsets, mask, stride, height, width)
        seen = _sample(ringed, places, width)
        _, back = jax.vjp(lambda seen, kernel: _multiply(seen.reshape(looks), kernel, groups), seen, kernel)
        to_seen, to_kernel = back(cotangent)
        to_x, dots = _pull(ringed, to_x, places, to_seen, width)
        to_offsets, to_mask = places.gradients(dots)
        return to_x, (to_offsets, to_mask, to_kernel)

    looks = (*offsets.shape[:3], x.shape[3] * x.shape[4])
    taps = _by_tap(offsets, mask, kernel)
    to_x, (to_offsets, to_mask, to_kernel) = lax.scan(pull_tap, jnp.zeros(ringed.shape, jnp.float32), taps)
    to_x = unring(to_x, height, width).astype(x.dtype)
    return to_x, jnp.moveaxis(to_offsets, 0, 4), jnp.moveaxis(to_mask, 0, 4), to_kernel


def _multiply(seen: Float[Array, "b h w c"], kernel: Float[Array, "i o"], groups: int) -> Float[Array, "b h w o"]:
    """One tap's samples times its part of the kernel, group by group of the kernel, in float32."""
    if groups == 1:
        return jnp.einsum("bhwc,co->bhwo", seen, kernel, preferred_element_type=jnp.float32)
    seen, kernel = seen.reshape(*seen.shape[:3], groups, -1), kernel.reshape(len(kernel), groups, -1)
    out = jnp.einsum("bhwgi,igo->bhwgo", seen, kernel, preferred_element_type=jnp.float32)
    return out.reshape(*out.shape[:3], -1)


def _by_tap(offsets, mask, kernel):
    """What differs from tap to tap, the tap in front."""
    return jnp.arange(TAPS), jnp.moveaxis(offsets, 4, 0), jnp.moveaxis(mask, 4, 0), kernel


def _tap_places(
    tap: Int[Array, ""] | int, offsets: Float[Array, "b h w g 2"], mask, stride: int, height: int, width: int
) -> Places:
    """[B, h, w, G]: where one tap looks from each output cell."""
    rows, columns = (jnp.arange(length) * stride for length in offsets.shape[1:3])
    return places_of(offsets, mask, rows[:, None, None], columns[:, None], tap, height, width)


@jax.vmap
def _gather(rows: Float[Array, "n c"], cells: Int[Array, "h w"]) -> Float[Array, "h w c"]:
    return rows.at[cells].get(mode="promise_in_bounds")


@jax.vmap
def _scatter(
    total: Float[Array, "n c"], cells: Int[Array, "4 h w"], weights: Float[Array, "4 h w"], rows: Float[Array, "h w c"]
) -> Float[Array, "n c"]:
    return total.at[cells].add(weights[..., None] * rows, mode="promise_in_bounds")


def _scatter_on_cpu(total, cells, weights, rows, width):
    """XLA:CPU's scatter takes five to eight times as long as a loop that adds the 2×2 corners of a place in place."""
    weights = jnp.moveaxis(weights, 1, -1).reshape(-1, 1, 2, 2, 1)
    rows = rows.reshape(len(weights), -1)
    cells = cells[:, 0].reshape(len(cells), -1)  # the top left ones
    places = cells.shape[1]

    def add(i, total):
        cell = cells[i // places, i % places]
        corner = (i // places, cell // (width + 2), cell % (width + 2), 0)
        start = [jnp.asarray(index, jnp.int32) for index in corner]  # one type of them all, in 64-bit mode too
        window = lax.dynamic_slice(total, start, (1, 2, 2, total.shape[-1]))
        return lax.dynamic_update_slice(total, window + weights[i] * rows[i], start)

    maps = total.reshape(len(total), -1, width + 2, total.shape[-1])
    return lax.fori_loop(0, cells.size, add, maps).reshape(total.shape)


def _cells_and_weights(places: Places, width: int) -> tuple[Array, Array]:
    """Cells and masked weights of the corners; the barrier keeps XLA:CPU from computing them again a channel."""
    return lax.optimization_barrier((corner_cells(places, width), places.corner_weights() * places.mask))


def _sample(x: Float[Array, "g b n c"], places: Places, width: int) -> Float[Array, "b h w g c"]:
    """Bilinear samples of a `ring`ed map, times the mask, weighed in float32."""
    cells, weights = _cells_and_weights(places, width)

    def group(g, rows):  # one by one: XLA:CPU needs twice as long for all in one gather
        return sum(_gather(rows, cells[k, ..., g]) * weights[k, ..., g, None] for k in range(4))

    return jnp.stack([group(g, rows) for g, rows in enumerate(x)], axis=3).astype(x.dtype)


def _pull(
    x: Float[Array, "g b n c"], to_x: Float[Array, "g b n c"], places: Places, cotangent: Array, width: int
) -> tuple[Float[Array, "g b n c"], Float[Array, "4 b h w g"]]:
    """Back through `_sample`: more gradient of x, and the products of the cotangent with the four corners."""
    cells, weights = _cells_and_weights(places, width)
    cotangent = cotangent.astype(jnp.float32)

    def group(g, rows):
        # A product with ones, where a sum would do: XLA:CPU runs it 15 times faster than a sum fused with a gather.
        ones, pulled = jnp.ones(x.shape[-1], jnp.float32), cotangent[..., g, :]
        dots = [
            jnp.dot(_gather(rows, cells[k, ..., g]) * pulled, ones, precision=lax.Precision.HIGHEST) for k in range(4)
        ]
        of_group = (jnp.moveaxis(array[..., g], 0, 1) for array in (cells, weights))
        on_cpu = partial(_scatter_on_cpu, width=width)
        to_rows = lax.platform_dependent(to_x[g], *of_group, pulled, cpu=on_cpu, default=_scatter)
        return to_rows, jnp.stack(dots)

    found, dots = zip(*(group(g, rows) for g, rows in enumerate(x)), strict=True)
    return jnp.stack(found), jnp.stack(dots, axis=-1)
