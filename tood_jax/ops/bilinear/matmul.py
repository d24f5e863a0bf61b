"""Bilinear sampling of box sides by matrix products, for TPUs: no gather, no scatter, not even in the gradients.

A sample is a row of weights over the map's rows, times the map, times a row of weights over its columns; each weight is
0 except for the two locations beside the point. So any offset is exact, however far. A loop processes a block of
locations at a time, so that the weights stay out of the main memory, and because one product of all locations takes the
compiler for TPUs twice as long.

Axes: B images · N locations of some levels in a row, K blocks of n · S sides · R, C rows and columns of a strip.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tood_jax.geometry.locations import Shapes

MOST_LOCATIONS, LANES = 2048, 128  # of a block; its size is a multiple of the lanes

_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def sample(boxes: Float[Array, "b n s"], offsets: Float[Array, "b n s 2"], shapes: Shapes) -> Float[Array, "b n s"]:
    """Return what `sample_sides.sample_sides_of_levels` returns; the gradients are reverse-mode only."""
    sampled = []
    for levels, boxes_, offsets_ in _strips(shapes, boxes, offsets):
        strip = _strip(boxes_, levels)

        def sample_block(block, strip=strip):
            of_rows, of_columns = _weights(*block, *strip.shape[2:])
            return _weighted_sum(of_rows.weights, strip, of_columns.weights)

        blocks = lax.map(sample_block, (_grid(levels), _in_blocks(offsets_)))
        sampled.append(_joined(blocks, offsets_.shape[1]))
    return jnp.concatenate(sampled, axis=1)


def _forward(boxes, offsets, shapes):
    return sample(boxes, offsets, shapes), (boxes, offsets)


def _backward(shapes, arguments, cotangent) -> tuple[Float[Array, "b n s"], Float[Array, "b n s 2"]]:
    boxes, offsets = arguments
    gradients = []
    for levels, boxes_, offsets_, cotangent_ in _strips(shapes, boxes, offsets, cotangent):
        strip, to_boxes = jax.vjp(partial(_strip, shapes=levels), boxes_)

        def add_gradient(to_strip, block, strip=strip):
            *block, cotangent = block
            of_rows, of_columns = _weights(*block, *strip.shape[2:])
            weighted = jnp.swapaxes(cotangent, 1, 2)[..., None] * of_columns.weights
            slopes = [
                _weighted_sum(of_rows.slopes, strip, of_columns.weights),
                _weighted_sum(of_rows.weights, strip, of_columns.slopes),
            ]
            to_strip += _einsum("bsnr,bsnc->bsrc", of_rows.weights, weighted)
            return to_strip, jnp.stack(slopes, axis=-1) * cotangent[..., None]

        blocks = _grid(levels), _in_blocks(offsets_), _in_blocks(cotangent_)
        to_strip, to_offsets = lax.scan(add_gradient, jnp.zeros_like(strip), blocks)
        gradients.append((*to_boxes(to_strip), _joined(to_offsets, offsets_.shape[1])))
    of_boxes, of_offsets = zip(*gradients, strict=True)
    return jnp.concatenate(of_boxes, axis=1), jnp.concatenate(of_offsets, axis=1)


sample.defvjp(_forward, _backward)


def _weighted_sum(of_rows, strip, of_columns) -> Float[Array, "b n s"]:
    return jnp.swapaxes((_einsum("bsnr,bsrc->bsnc", of_rows, strip) * of_columns).sum(axis=-1), 1, 2)


def _strips(shapes: Shapes, *arrays: Array) -> Iterator[tuple]:
    """Yield the largest level alone and the others side by side, with their part of each array [B, N, …]."""
    start = 0
    for levels in (shapes[:1], shapes[1:]):
        end = start + sum(height * width for height, width in levels)
        if levels:
            yield levels, *(array[:, start:end] for array in arrays)
        start = end


def _strip(boxes, shapes: Shapes) -> Float[Array, "b s r c"]:
    """Return the maps of levels side by side, zero below the lower ones."""
    maps, start, highest = [], 0, max(height for height, _ in shapes)
    for height, width in shapes:
        level = jnp.swapaxes(boxes[:, start : start + height * width], 1, 2)
        level = level.reshape(*level.shape[:2], height, width)
        maps.append(jnp.pad(level, ((0, 0), (0, 0), (0, highest - height), (0, 0))))
        start += height * width
    return jnp.concatenate(maps, axis=3)


class _Linear(NamedTuple):
    """Weights of the rows or the columns of a strip for each point."""

    weights: Float[Array, "b s n r"]
    slopes: Float[
        Array, "b s n r"
    ]  # derivatives by the position of the point; at whole locations towards the higher one


def _weights(grid: Float[Array, "5 n"], offsets, rows: int, columns: int) -> tuple[_Linear, _Linear]:
    """Return the weights of the rows and of the columns of a strip; those of other levels are 0."""
    row, column, height, width, left = grid
    offsets = jnp.swapaxes(offsets, 1, 2)  # [B, S, n, 2]
    return (
        _linear(row + offsets[..., 0], height, 0, rows),
        _linear(column + offsets[..., 1], width, left, columns),
    )


def _linear(position: Float[Array, "b s n"], size, start, count: int) -> _Linear:
    """Return the weights of `count` rows (columns), of which a level has `size` from `start` on."""
    before = jnp.floor(position)
    part = (position - before)[..., None]  # 0–1
    distance = jnp.arange(count, dtype=position.dtype) - (before + start)[..., None]
    near = (distance == 0) & ((before >= 0) & (before < size))[..., None]
    far = (distance == 1) & ((before >= -1) & (before < size - 1))[..., None]
    weights = jnp.where(near, 1 - part, jnp.where(far, part, 0))
    return _Linear(weights, far.astype(position.dtype) - near.astype(position.dtype))


def _grid(shapes: Shapes) -> Float[Array, "k 5 n"]:
    """Return, for each location: row, column, height and width of its level, and the level's first column in the strip.

    Locations that fill the last block belong to a level of size 0.
    """
    levels, left = [], 0
    for height, width in shapes:
        rows, columns = np.mgrid[:height, :width].reshape(2, -1)
        levels.append(np.stack([rows, columns, *(np.full_like(rows, x) for x in (height, width, left))]))
        left += width
    grid = jnp.asarray(np.concatenate(levels, axis=1).T, jnp.float32)  # [N, 5]
    return jnp.swapaxes(_in_blocks(grid[None])[:, 0], 1, 2)


def _in_blocks(values: Float[Array, "b all_ ..."]) -> Float[Array, "k b n ..."]:
    """Return K blocks of equal size, the last one filled up with zeros."""
    count = values.shape[1]
    blocks = -(-count // MOST_LOCATIONS)
    size = -(-count // (blocks * LANES)) * LANES
    filled = jnp.pad(values, [(0, 0), (0, blocks * size - count)] + [(0, 0)] * (values.ndim - 2))
    return jnp.moveaxis(filled.reshape(values.shape[0], blocks, size, *values.shape[2:]), 1, 0)


def _joined(blocks: Float[Array, "k b n ..."], count: int) -> Float[Array, "b all_ ..."]:
    """Return the first `count` locations of what `_in_blocks` returned."""
    values = jnp.moveaxis(blocks, 0, 1)
    return values.reshape(values.shape[0], -1, *values.shape[3:])[:, :count]
