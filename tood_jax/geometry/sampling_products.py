"""Sampling of box sides by matrix products, for TPUs: no gather, no scatter, and a gradient that is products too.

What a cell sees is a row of weights down the map, times the map, times a row of weights across it; each weight is 0 but
for the two cells beside the place. So any offset is exact, however far. At 800×1344 that is 1 % of a training step's
operations. A loop takes a block of cells at a time, so that the weights needn't go through memory, and because one
product of all cells takes a compiler for TPUs twice as long.

Axes: B images · N the cells of some levels in a row, K blocks of n · S sides · R, C rows and columns of a strip.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tood_jax.geometry.packing import Shapes

MOST_CELLS, LANES = 2048, 128  # of a block; its size is a multiple of the lanes

_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def sample(boxes: Float[Array, "b n s"], offsets: Float[Array, "b n s 2"], shapes: Shapes) -> Float[Array, "b n s"]:
    """As `geometry.sampling.sample_sides_of_levels`; its gradients are reverse-mode only."""
    found = []
    for levels, boxes_, offsets_ in _strips(shapes, boxes, offsets):
        strip = _strip(boxes_, levels)

        def see(block, strip=strip):
            down, across = _weights(*block, *strip.shape[2:])
            return _see(down.weights, strip, across.weights)

        blocks = lax.map(see, (_places(levels), _in_blocks(offsets_)))
        found.append(_joined(blocks, offsets_.shape[1]))
    return jnp.concatenate(found, axis=1)


def _forward(boxes, offsets, shapes):
    return sample(boxes, offsets, shapes), (boxes, offsets)


def _backward(shapes, arguments, cotangent) -> tuple[Float[Array, "b n s"], Float[Array, "b n s 2"]]:
    boxes, offsets = arguments
    found = []
    for levels, boxes_, offsets_, cotangent_ in _strips(shapes, boxes, offsets, cotangent):
        strip, to_boxes = jax.vjp(partial(_strip, shapes=levels), boxes_)

        def pull(to_strip, block, strip=strip):
            *block, cotangent = block
            down, across = _weights(*block, *strip.shape[2:])
            weighed = jnp.swapaxes(cotangent, 1, 2)[..., None] * across.weights
            slopes = [_see(down.slopes, strip, across.weights), _see(down.weights, strip, across.slopes)]
            to_strip += _einsum("bsnr,bsnc->bsrc", down.weights, weighed)
            return to_strip, jnp.stack(slopes, axis=-1) * cotangent[..., None]

        blocks = _places(levels), _in_blocks(offsets_), _in_blocks(cotangent_)
        to_strip, to_offsets = lax.scan(pull, jnp.zeros_like(strip), blocks)
        found.append((*to_boxes(to_strip), _joined(to_offsets, offsets_.shape[1])))
    of_boxes, of_offsets = zip(*found, strict=True)
    return jnp.concatenate(of_boxes, axis=1), jnp.concatenate(of_offsets, axis=1)


sample.defvjp(_forward, _backward)


def _see(down, strip, across) -> Float[Array, "b n s"]:
    return jnp.swapaxes((_einsum("bsnr,bsrc->bsnc", down, strip) * across).sum(axis=-1), 1, 2)


def _strips(shapes: Shapes, *arrays: Array) -> Iterator[tuple]:
    """The largest level by itself and the others side by side, with their part of each array [B, N, …]."""
    start = 0
    for levels in (shapes[:1], shapes[1:]):
        end = start + sum(height * width for height, width in levels)
        if levels:
            yield levels, *(one[:, start:end] for one in arrays)
        start = end


def _strip(boxes, shapes: Shapes) -> Float[Array, "b s r c"]:
    """The levels' maps side by side, zero below the lower ones."""
    maps, start, highest = [], 0, max(height for height, _ in shapes)
    for height, width in shapes:
        level = jnp.swapaxes(boxes[:, start : start + height * width], 1, 2)
        level = level.reshape(*level.shape[:2], height, width)
        maps.append(jnp.pad(level, ((0, 0), (0, 0), (0, highest - height), (0, 0))))
        start += height * width
    return jnp.concatenate(maps, axis=3)


class _Linear(NamedTuple):
    """Of a strip's rows or columns at each place."""

    weights: Float[Array, "b s n r"]
    slopes: Float[Array, "b s n r"]  # their derivatives in the place; at whole cells, towards the higher cell


def _weights(places: Float[Array, "5 n"], offsets, rows: int, columns: int) -> tuple[_Linear, _Linear]:
    """Down and across a strip; cells of other levels weigh nothing."""
    row, column, height, width, left = places
    offsets = jnp.swapaxes(offsets, 1, 2)  # [B, S, n, 2]
    return (
        _linear(row + offsets[..., 0], height, 0, rows),
        _linear(column + offsets[..., 1], width, left, columns),
    )


def _linear(place: Float[Array, "b s n"], size, start, count: int) -> _Linear:
    """Of `count` cells in all, where a level has `size` of them from `start` on."""
    before = jnp.floor(place)
    part = (place - before)[..., None]  # 0–1
    distance = jnp.arange(count, dtype=place.dtype) - (before + start)[..., None]
    near = (distance == 0) & ((before >= 0) & (before < size))[..., None]
    far = (distance == 1) & ((before >= -1) & (before < size - 1))[..., None]
    weights = jnp.where(near, 1 - part, jnp.where(far, part, 0))
    return _Linear(weights, far.astype(place.dtype) - near.astype(place.dtype))


def _places(shapes: Shapes) -> Float[Array, "k 5 n"]:
    """Of each cell: its row and column in its level, the level's height and width, its first column in the strip.

    Cells that fill the last block up belong to a level without cells.
    """
    found, left = [], 0
    for height, width in shapes:
        rows, columns = np.mgrid[:height, :width].reshape(2, -1)
        found.append(np.stack([rows, columns, *(np.full_like(rows, one) for one in (height, width, left))]))
        left += width
    cells = jnp.asarray(np.concatenate(found, axis=1).T, jnp.float32)  # [N, 5]
    return jnp.swapaxes(_in_blocks(cells[None])[:, 0], 1, 2)


def _in_blocks(cells: Float[Array, "b all_ ..."]) -> Float[Array, "k b n ..."]:
    """K blocks of equal size, the last filled up with zeros."""
    count = cells.shape[1]
    blocks = -(-count // MOST_CELLS)
    size = -(-count // (blocks * LANES)) * LANES
    filled = jnp.pad(cells, [(0, 0), (0, blocks * size - count)] + [(0, 0)] * (cells.ndim - 2))
    return jnp.moveaxis(filled.reshape(len(cells), blocks, size, *cells.shape[2:]), 1, 0)


def _joined(blocks: Float[Array, "k b n ..."], count: int) -> Float[Array, "b all_ ..."]:
    """`_in_blocks` back: the first `count` cells."""
    cells = jnp.moveaxis(blocks, 0, 1)
    return cells.reshape(len(cells), -1, *cells.shape[3:])[:, :count]
