"""Geometry of the feature pyramid P3–P7: strides, level shapes, cell points and anchors.

The cells of all levels stand in one row, P3 first, each level row by row; with several anchors a cell, each cell stands
there so many times in a row. Points and anchors are in canvas pixels; the point of cell (row i, column j) is
(j·stride, i·stride), with no half pixel, as in the published code (FCOS and FoveaBox move it: `centers`).
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
    """Cells of one canvas; N is their number (times the anchors a cell)."""

    shapes: tuple[tuple[int, int], ...]  # (height, width) in cells, a level
    points: np.ndarray  # [N, 2] float32 (x, y), pixels
    strides: np.ndarray  # [N] float32, pixels
    per_cell: int = 1  # anchors a cell

    @property
    def level_slices(self) -> tuple[slice, ...]:
        """Where each level's cells lie in the row."""
        ends = np.cumsum([0] + [h * w * self.per_cell for h, w in self.shapes])
        return tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends))

    def anchors(self, scale: float) -> np.ndarray:
        """[N, 4] float32 xyxy pixels: a square of scale·stride around each point."""
        return self.place(np.array([[-scale, -scale, scale, scale]], np.float32) / 2)

    def place(self, cell_anchors: np.ndarray) -> np.ndarray:
        """[N, 4] float32 xyxy pixels: a cell's anchors [per_cell, 4] (in strides, around the origin) at each cell."""
        anchors = np.tile(cell_anchors, (len(self.points) // self.per_cell, 1))
        return np.tile(self.points, 2) + anchors * self.strides[:, None]

    def centers(self, offset: float) -> np.ndarray:
        """[N, 2] float32 (x, y) pixels: each cell's point moved by `offset` strides."""
        return self.points + np.float32(offset) * self.strides[:, None]


def level_shapes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of every level in cells; each stride-2 step rounds up, as its convolution does."""
    shapes = []
    for level in range(1, 8):  # the stem's convolution is level 1, its pooling 2, …
        height, width = -(-height // 2), -(-width // 2)
        if level >= 3:
            shapes.append((height, width))
    return tuple(shapes)


def pyramid(height: int, width: int, per_cell: int = 1) -> Pyramid:
    """The cells of a canvas of (height, width) pixels, each `per_cell` times in a row."""
    shapes = level_shapes(height, width)
    all_points, all_strides = [], []
    for (rows, columns), stride in zip(shapes, STRIDES, strict=True):
        y, x = np.mgrid[:rows, :columns].astype(np.float32) * stride
        all_points.append(np.stack([x.ravel(), y.ravel()], axis=1))
        all_strides.append(np.full(rows * columns, stride, np.float32))
    points, strides = np.concatenate(all_points), np.concatenate(all_strides)
    return Pyramid(shapes, np.repeat(points, per_cell, axis=0), np.repeat(strides, per_cell), per_cell)


def cells_in_image(cells: Pyramid, sizes: Int[Array, "b 2"]) -> Bool[Array, "b n"]:
    """[B, N]: does a cell lie in its image's own area, padded up to a multiple of 32? `sizes` is (height, width)."""
    padded = -(-sizes // IMAGE_MULTIPLE) * IMAGE_MULTIPLE  # [B, 2]
    # Cell i of a level belongs if i < ceil(padded / stride), which is i·stride < padded.
    inside = jnp.asarray(cells.points[None, :, ::-1]) < padded[:, None].astype(jnp.float32)  # [B, N, 2] over (y, x)
    return inside.all(axis=-1)
