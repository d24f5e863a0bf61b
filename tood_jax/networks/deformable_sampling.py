"""Bilinear sampling for one tap of a deformable convolution, and its gradient: by gathers, or by matrix products.

Axes: B images · H, W the input's cells · h, w the output's cells · G deformable groups, each of c channels · 4 corners
of a place: top left, top right, bottom left, bottom right.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.networks.layers import Dtype

SIZE = 3


class Places(NamedTuple):
    """Where one tap looks from each output cell, in the map with a ring of zeros around it."""

    top: Int[Array, "b h w g"]  # 0…H, row of the upper corners; 0 where it looks outside
    left: Int[Array, "b h w g"]  # 0…W
    down: Float[Array, "b h w g"]  # 0–1, distance from the upper corners
    right: Float[Array, "b h w g"]
    inside: Bool[Array, "b h w g"]  # False where the place is a whole cell or more outside the map
    mask: Float[Array, "b h w g"]  # what the sample counts; 0 outside
    row: Int[Array, " h"]  # `top` without an offset

    def corner_weights(self) -> Float[Array, "4 b h w g"]:
        """The bilinear weights; they sum to 1."""
        down, right = self.down, self.right
        return jnp.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right])


def places_of(
    offsets: Float[Array, "b h w g 2"], mask: Float[Array, "b h w g"], tap: Any, stride: int, height: int, width: int
) -> Places:
    """Where tap `tap` (0–8) looks; the padding is 1. A place at exactly −1 or H counts as outside (as published)."""
    dtype = offsets.dtype
    row = jnp.arange(offsets.shape[1]) * stride + tap // SIZE  # with the ring
    column = jnp.arange(offsets.shape[2]) * stride + tap % SIZE
    y = row.astype(dtype)[:, None, None] + offsets[..., 0]
    x = column.astype(dtype)[:, None] + offsets[..., 1]
    inside = (y > 0) & (y < height + 1) & (x > 0) & (x < width + 1)
    y, x = jnp.where(inside, y, 0), jnp.where(inside, x, 0)
    top, left = jnp.floor(y), jnp.floor(x)
    top, left, down, right = top.astype(jnp.int32), left.astype(jnp.int32), y - top, x - left
    return Places(top, left, down, right, inside, jnp.where(inside, mask, 0), row)


# Sampling by gathering rows of channels, and its gradient by scattering them. Everything is mapped over the images, not
# flattened with them, so that of a batch sharded over devices no map has to travel.


def _corner_cells(places: Places, width: int) -> Int[Array, "4 b h w g"]:
    """Positions of the corners among the cells of the ringed map."""
    first = places.top * (width + 2) + places.left
    return jnp.stack([first + step for step in (0, 1, width + 2, width + 3)])


def ring(x: Float[Array, "b hh ww g c"]) -> Float[Array, "g b n c"]:
    """The (H + 2)·(W + 2) cells of x and of a ring of zeros around it, group by group."""
    ringed = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    return jnp.moveaxis(ringed, 3, 0).reshape(x.shape[3], len(x), -1, x.shape[-1])


def unring(cells: Float[Array, "g b n c"], height: int, width: int) -> Float[Array, "b hh ww g c"]:
    """The other way round."""
    ringed = cells.reshape(*cells.shape[:2], height + 2, width + 2, -1)
    return jnp.moveaxis(ringed[:, :, 1:-1, 1:-1], 0, 3)


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
    return lax.optimization_barrier((_corner_cells(places, width), places.corner_weights() * places.mask))


def sample_by_gather(x: Float[Array, "g b n c"], places: Places, width: int) -> Float[Array, "b h w g c"]:
    """Bilinear samples of a `ring`ed map, times the mask, weighed in float32."""
    cells, weights = _cells_and_weights(places, width)

    def group(g, rows):  # one by one: XLA:CPU needs twice as long for all in one gather
        return sum(_gather(rows, cells[k, ..., g]) * weights[k, ..., g, None] for k in range(4))

    return jnp.stack([group(g, rows) for g, rows in enumerate(x)], axis=3).astype(x.dtype)


def pull_by_gather(
    x: Float[Array, "g b n c"], to_x: Float[Array, "g b n c"], places: Places, cotangent: Array, width: int
) -> tuple[Float[Array, "g b n c"], Float[Array, "4 b h w g"]]:
    """Back through `sample_by_gather`: more gradient of x, and the products of the cotangent with the four corners."""
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


# Sampling by matrix products, row by row of the map, and its gradient by products too.


def _row_range(places: Places) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Least and largest (exclusive) number of rows that any corner lies below the place without an offset."""
    shift = places.top - places.row[:, None, None]
    far = jnp.iinfo(jnp.int32).max // 2
    return jnp.where(places.inside, shift, far).min(), jnp.where(places.inside, shift, -far).max() + 2


def _in_row(places: Places, shift: Int[Array, ""]) -> tuple[Array, Array]:
    """Is this row the place's upper row, and is it its lower row? [B, h, w, G] each."""
    distance = shift + places.row[:, None, None] - places.top
    return distance == 0, distance == 1


def _in_column(places: Places, width: int) -> tuple[Array, Array]:
    """Is this the place's left column, and is it its right column? [B, h, w, G, W] each."""
    distance = jnp.arange(1, width + 1) - places.left[..., None]
    return distance == 0, distance == 1


def _weights_in_row(places: Places, shift: Int[Array, ""], width: int, dtype: Dtype) -> Float[Array, "b h w g ww"]:
    """The weight of each cell of the row that lies `shift` below; four cells of all rows have one."""
    upper, lower = _in_row(places, shift)
    left, right = _in_column(places, width)
    across = jnp.where(left, 1 - places.right[..., None], jnp.where(right, places.right[..., None], 0))
    along = jnp.where(upper, 1 - places.down, jnp.where(lower, places.down, 0)) * places.mask
    return (along[..., None] * across).astype(dtype)


def _row_below(places: Places, shift: Int[Array, ""], height: int) -> Int[Array, " h"]:
    """The row of the map that lies `shift` below, for each row of the output; `height` for those outside."""
    row = places.row + shift - 1
    return jnp.where((row < 0) | (row > height), height, row)


def sample_by_products(x: Float[Array, "b hh1 ww g c"], places: Places) -> Float[Array, "b h w g c"]:
    """Bilinear samples times the mask: one product with a row of the map for each row that some place touches."""

    def add_row(shift, seen):
        weights = _weights_in_row(places, shift, x.shape[2], x.dtype)
        rows = x.at[:, _row_below(places, shift, x.shape[1] - 1)].get(mode="promise_in_bounds")  # [B, h, W, G, c]
        return seen + jnp.einsum("bhwgu,bhugc->bhwgc", weights, rows, preferred_element_type=jnp.float32)

    seen = jnp.zeros((*places.top.shape, x.shape[-1]), jnp.float32)
    return lax.fori_loop(*_row_range(places), add_row, seen).astype(x.dtype)


def pull_by_products(
    x: Float[Array, "b hh1 ww g c"], to_x: Float[Array, "b hh1 ww g c"], places: Places, cotangent: Array
) -> tuple[Float[Array, "b hh1 ww g c"], Float[Array, "4 b h w g"]]:
    """Back through `sample_by_products`; see `pull_by_gather`."""
    height, width = x.shape[1] - 1, x.shape[2]

    def add_row(shift, sums):
        to_x, dots = sums
        row = _row_below(places, shift, height)
        weights = _weights_in_row(places, shift, width, x.dtype)
        rows = x.at[:, row].get(mode="promise_in_bounds")
        products = jnp.einsum("bhwgc,bhugc->bhwgu", cotangent, rows, preferred_element_type=jnp.float32)
        left, right = (jnp.where(cell, products, 0).sum(-1) for cell in _in_column(places, width))
        upper, lower = _in_row(places, shift)
        dots += jnp.stack([upper * left, upper * right, lower * left, lower * right])
        spread = jnp.einsum("bhwgu,bhwgc->bhugc", weights, cotangent, preferred_element_type=jnp.float32)
        return to_x.at[:, row].add(spread, mode="promise_in_bounds"), dots

    return lax.fori_loop(*_row_range(places), add_row, (to_x, jnp.zeros((4, *places.top.shape), jnp.float32)))


class Sampler(NamedTuple):
    """One way to sample: of a map prepared once for all taps."""

    prepare: Callable
    sample: Callable  # prepared x, places → samples
    pull: Callable  # prepared x, its gradient so far, places, cotangent → its gradient, products with the corners
    restore: Callable  # a gradient of prepared x → of x


def sampler(formulation: str, height: int, width: int) -> Sampler:
    """`gather` or `products`, for maps of this size."""
    if formulation == "gather":
        sample, pull = partial(sample_by_gather, width=width), partial(pull_by_gather, width=width)
        return Sampler(ring, sample, pull, partial(unring, height=height, width=width))
    end = ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0))  # a row of zeros after the last stands for all outside
    return Sampler(lambda x: jnp.pad(x, end), sample_by_products, pull_by_products, lambda x: x[:, :-1])
