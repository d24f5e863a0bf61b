"""Geometry of the feature pyramid P3–P7: strides, level shapes, cell points and anchors.

The cells of all levels stand in one row, P3 first, each level row by row. Points and anchors are in canvas pixels;
the point of cell (row i, column j) is (j·stride, i·stride), with no half pixel, as in the published code.
Plain numpy: for a given canvas these are constants of the compiled program.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

STRIDES = (8, 16, 32, 64, 128)
IMAGE_MULTIPLE = 32  # an image counts as padded up to a multiple of this; cells beyond it are ignored


class Pyramid(NamedTuple):
    """Cells of one canvas; N is their number."""

    shapes: tuple[tuple[int, int], ...]  # (height, width) in cells, a level
    points: np.ndarray  # [N, 2] float32 (x, y), pixels
    strides: np.ndarray  # [N] float32, pixels

    @property
    def level_slices(self) -> tuple[slice, ...]:
        """Where each level's cells lie in the row."""
        ends = np.cumsum([0] + [h * w for h, w in self.shapes])
        return tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends))

    def anchors(self, scale: float) -> np.ndarray:
        """[N, 4] float32 xyxy pixels: a square of scale·stride around each point."""
        half = self.strides[:, None] * np.float32(scale / 2)
        return np.concatenate([self.points - half, self.points + half], axis=1)


def level_shapes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of every level in cells; each stride-2 step rounds up, as its convolution does."""
    shapes = []
    for level in range(1, 8):  # the stem's convolution is level 1, its pooling 2, …
        height, width = -(-height // 2), -(-width // 2)
        if level >= 3:
            shapes.append((height, width))
    return tuple(shapes)


def pyramid(height: int, width: int) -> Pyramid:
    """The cells of a canvas of (height, width) pixels."""
    shapes = level_shapes(height, width)
    points, strides = [], []
    for (rows, columns), stride in zip(shapes, STRIDES, strict=True):
        y, x = np.mgrid[:rows, :columns].astype(np.float32) * stride
        points.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full(rows * columns, stride, np.float32))
    return Pyramid(shapes, np.concatenate(points), np.concatenate(strides))


def cells_in_image(cells: Pyramid, sizes: Int[Array, "b 2"]) -> Bool[Array, "b n"]:
    """[B, N]: does a cell lie in its image's own area, padded up to a multiple of 32? `sizes` is (height, width)."""
    padded = -(-sizes // IMAGE_MULTIPLE) * IMAGE_MULTIPLE  # [B, 2]
    # Cell i of a level belongs if i < ceil(padded / stride), which is i·stride < padded.
    inside = jnp.asarray(cells.points[None, :, ::-1]) < padded[:, None].astype(jnp.float32)  # [B, N, 2] over (y, x)
    return inside.all(axis=-1)
