"""Cells, points and anchors of the pyramid."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden_models import golden_ops
from tood_jax.geometry.locations import STRIDES, level_shapes, locations_in_image, make_pyramid


def test_anchors_equal_golden():
    ops, cells = golden_ops(), make_pyramid(192, 256)
    np.testing.assert_array_equal(cells.shapes, ops["level_sizes"])
    np.testing.assert_array_equal(cells.anchors(8.0), ops["anchors"])


@pytest.mark.parametrize(
    ("canvas", "shapes"),
    [
        ((128, 160), ((16, 20), (8, 10), (4, 5), (2, 3), (1, 2))),
        ((800, 1344), ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))),
        ((1, 33), ((1, 5), (1, 3), (1, 2), (1, 1), (1, 1))),
    ],
)
def test_level_shapes(canvas, shapes):
    assert level_shapes(*canvas) == shapes


@given(st.integers(1, 20), st.integers(1, 20))
def test_cells_stand_level_by_level_row_by_row(height, width):
    cells = make_pyramid(32 * height, 32 * width)
    assert [s.stop - s.start for s in cells.level_slices] == [h * w for h, w in cells.shapes]
    assert cells.level_slices[-1].stop == len(cells.points) == len(cells.strides)
    for level, (rows, columns), stride in zip(cells.level_slices, cells.shapes, STRIDES, strict=True):
        points = cells.points[level].reshape(rows, columns, 2)
        np.testing.assert_array_equal(points[-1, 0], [0, (rows - 1) * stride])
        np.testing.assert_array_equal(points[0, -1], [(columns - 1) * stride, 0])
        assert (cells.strides[level] == stride).all()


@given(st.integers(0, 128), st.integers(0, 160))
def test_cells_in_image(height, width):
    """A level's own rows are those that the padded image has on that level."""
    cells = make_pyramid(128, 160)
    inside = np.asarray(locations_in_image(cells, jnp.asarray([[height, width]])))[0]
    padded = -(-height // 32) * 32, -(-width // 32) * 32
    for level, shape, stride in zip(cells.level_slices, cells.shapes, STRIDES, strict=True):
        expected = np.zeros(shape, bool)
        expected[: -(-padded[0] // stride), : -(-padded[1] // stride)] = True
        np.testing.assert_array_equal(inside[level].reshape(shape), expected)
