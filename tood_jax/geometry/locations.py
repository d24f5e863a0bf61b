"""Locations of the feature pyramid P3–P7: strides, level shapes, points and anchors.

The locations of all levels are in one row, P3 first, each level row by row; with several anchors per location, each
location is repeated so many times. Points and anchors are in canvas pixels; the point of location (row i, column j) is
(j·stride, i·stride), with no half pixel, as in the published code (FCOS and FoveaBox move it: `points_at`).
Plain numpy: for a given canvas these are constants of the compiled program.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

STRIDES = (8, 16, 32, 64, 128)
Shapes = tuple[tuple[int, int], ...]  # (height, width) of each level, in locations
IMAGE_MULTIPLE = 32  # an image counts as padded up to a multiple of this; locations beyond it are ignored


class Pyramid(NamedTuple):
    """Locations of one canvas; N is their number (times the anchors per location)."""

    shapes: Shapes  # (height, width) per level
    points: np.ndarray  # [N, 2] float32 (x, y), pixels
    strides: np.ndarray  # [N] float32, pixels
    per_location: int = 1  # anchors per location

    @property
    def level_slices(self) -> tuple[slice, ...]:
        """Return the part of the row that each level is."""
        ends = np.cumsum([0] + [h * w * self.per_location for h, w in self.shapes])
        return tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends))

    def anchors(self, scale: float) -> np.ndarray:
        """Return [N, 4] float32 xyxy pixels, a square of scale·stride around each point."""
        return self.anchors_of(np.array([[-scale, -scale, scale, scale]], np.float32) / 2)

    def anchors_of(self, base_anchors: np.ndarray) -> np.ndarray:
        """Return [N, 4] float32 xyxy pixels: base anchors [per_location, 4] (strides, around 0) at each location."""
        anchors = np.tile(base_anchors, (len(self.points) // self.per_location, 1))
        return np.tile(self.points, 2) + anchors * self.strides[:, None]

    def points_at(self, offset: float) -> np.ndarray:
        """Return [N, 2] float32 (x, y) pixels, each point moved by `offset` strides in both directions."""
        return self.points + np.float32(offset) * self.strides[:, None]


def level_shapes(height: int, width: int) -> Shapes:
    """Return (height, width) of every level of a canvas; each stride-2 step rounds up, as its convolution does."""
    shapes = []
    for level in range(1, 8):  # the stem's convolution is level 1, its pooling 2, …
        height, width = -(-height // 2), -(-width // 2)
        if level >= 3:
            shapes.append((height, width))
    return tuple(shapes)


def make_pyramid(height: int, width: int, per_location: int = 1) -> Pyramid:
    """Return the locations of a canvas of (height, width) pixels, each `per_location` times in a row."""
    shapes = level_shapes(height, width)
    all_points, all_strides = [], []
    for (rows, columns), stride in zip(shapes, STRIDES, strict=True):
        y, x = np.mgrid[:rows, :columns].astype(np.float32) * stride
        all_points.append(np.stack([x.ravel(), y.ravel()], axis=1))
        all_strides.append(np.full(rows * columns, stride, np.float32))
    points, strides = np.concatenate(all_points), np.concatenate(all_strides)
    return Pyramid(shapes, np.repeat(points, per_location, axis=0), np.repeat(strides, per_location), per_location)


def padded_sizes(sizes: Int[Array, "b 2"]) -> Int[Array, "b 2"]:
    """Return the size of each image's own area in the canvas: padded up to a multiple of 32, pixels."""
    return -(-sizes // IMAGE_MULTIPLE) * IMAGE_MULTIPLE


def locations_in_image(pyramid: Pyramid, sizes: Int[Array, "b 2"]) -> Bool[Array, "b n"]:
    """Return whether a location is in its image's own area, padded up to a multiple of 32.

    Args:
        sizes: (height, width) of each image in the canvas, pixels.
    """
    padded = padded_sizes(sizes)  # [B, 2]
    # Location i of a level belongs if i < ceil(padded / stride), which is i·stride < padded.
    inside = jnp.asarray(pyramid.points[None, :, ::-1]) < padded[:, None].astype(jnp.float32)  # [B, N, 2] over (y, x)
    return inside.all(axis=-1)
