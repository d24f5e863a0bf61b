"""One canvas that holds all five levels, so that a network shared by them runs once on one map, not five times.

    P3 P3 P3 P3 P3 P3 P3
    P3 P3 P3 P3 P3 P3 P3
    ·  ·  ·  ·  ·  ·  ·
    P4 P4 P4 ·  P5 · P6 …
    P4 P4 P4 ·  ·  · ·  ·

A cell of zeros lies between two levels, wide enough for a 3×3 convolution; `clear_gaps` makes it zero again after a
layer that wrote into it. Whatever else mixes cells (a mean, sampling at offsets) must be told where the levels lie.
At 800×1344 the canvas has 13 % more cells than the levels.

Axes: B images · h, w a level's cells · H, W the canvas's cells.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Shapes = tuple[tuple[int, int], ...]


class Packing(NamedTuple):
    """Where each level lies on the canvas, in cells: plain numbers, known when a program is traced."""

    shapes: Shapes  # (height, width) a level, P3 first
    corners: Shapes  # (row, column) of the level's first cell
    height: int
    width: int

    def level_map(self) -> np.ndarray:
        """[H, W] int32: the level (0 for P3) that a cell belongs to; −1 in the gaps."""
        levels = np.full((self.height, self.width), -1, np.int32)
        for index, ((height, width), (row, column)) in enumerate(zip(self.shapes, self.corners, strict=True)):
            levels[row : row + height, column : column + width] = index
        return levels

    def is_first(self) -> np.ndarray:
        """[H, 1, 1] bool: does a row belong to the first level, which no other shares?"""
        return (np.arange(self.height) < self.shapes[0][0])[:, None, None]


def packing(shapes: Shapes) -> Packing:
    """Levels of these shapes: the first on top, the others in a row below it."""
    (height, width), *others = shapes
    corners, column = [(0, 0)], 0
    for _, level_width in others:
        corners.append((height + 1, column))
        column += level_width + 1
    below = max((level_height + 1 for level_height, _ in others), default=0)
    return Packing(tuple(shapes), tuple(corners), height + below, max(width, column - 1))


def pack(levels: tuple[Array, ...], where: Packing) -> Float[Array, "b hh ww f"]:
    """Maps [B, h, w, F] a level on one canvas, zero between them."""
    first = levels[0]
    canvas = jnp.zeros((first.shape[0], where.height, where.width, first.shape[-1]), first.dtype)
    for level, (row, column) in zip(levels, where.corners, strict=True):
        canvas = lax.dynamic_update_slice(canvas, level, (0, row, column, 0))
    return canvas


def unpack(canvas: Float[Array, "b hh ww f"], where: Packing) -> tuple[Array, ...]:
    """The maps [B, h, w, F] of the levels."""
    return tuple(
        canvas[:, row : row + height, column : column + width]
        for (height, width), (row, column) in zip(where.shapes, where.corners, strict=True)
    )


def clear_gaps(canvas: Float[Array, "b hh ww f"], where: Packing) -> Float[Array, "b hh ww f"]:
    """The canvas with zeros between the levels."""
    return jnp.where((where.level_map() >= 0)[..., None], canvas, 0)


def level_sums(canvas: Float[Array, "b hh ww f"], where: Packing) -> Float[Array, "b l f"]:
    """Each level's sum over its cells.

    Rows first, the first level's and the others' apart, which costs a TPU's vector unit a third of a mask a level and
    shares one pass over the canvas.
    """
    canvas, is_first = clear_gaps(canvas, where), where.is_first()
    first, others = jnp.where(is_first, canvas, 0).sum(axis=1), jnp.where(is_first, 0, canvas).sum(axis=1)  # [B, W, F]
    places = zip(where.shapes[1:], where.corners[1:], strict=True)
    below = [others[:, column : column + width].sum(axis=1) for (_, width), (_, column) in places]
    return jnp.stack([first.sum(axis=1), *below], axis=1)


def spread_levels(values: Float[Array, "b l f"], where: Packing) -> Float[Array, "b hh ww f"]:
    """Each level's values at all of its cells; in the gaps, those of some level."""
    columns = np.arange(where.width)[:, None]
    first = others = values[:, 0, None]  # [B, 1, F], others then [B, W, F]
    for index in range(1, len(where.shapes)):
        others = jnp.where(columns >= where.corners[index][1], values[:, index, None], others)
    return jnp.where(where.is_first(), first[:, None], others[:, None])
