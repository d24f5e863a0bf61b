"""Resizing, flipping and their boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.data.transforms import fitted_size, flip_horizontal, flip_vertical, resize, resized_size, scale_boxes

SIDES = st.integers(1, 3000)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),  # the short side decides
        (375, 500, (800, 1067)),
        (427, 640, (800, 1199)),
        (640, 480, (1067, 800)),
        (300, 1000, (400, 1333)),  # the long side decides
        (1600, 1600, (800, 800)),
        (1, 5000, (1, 1333)),
    ],
)
def test_the_published_scale_rule(height, width, expected):
    assert resized_size(height, width, 800, 1333) == expected


@given(SIDES, SIDES, st.integers(32, 1000), st.integers(0, 1000))
def test_scaled_sizes_stay_within_both_limits_and_reach_one(height, width, short, more):
    long = short + more
    size = resized_size(height, width, short, long)
    assert min(size) <= short
    assert max(size) <= long
    assert min(size) == short or max(size) == long


@given(SIDES, SIDES, SIDES, SIDES)
def test_fitted_sizes_fit(height, width, canvas_height, canvas_width):
    size = fitted_size((height, width), (canvas_height, canvas_width))
    assert size[0] <= canvas_height
    assert size[1] <= canvas_width
    assert min(size) >= 1
    if height <= canvas_height and width <= canvas_width:
        assert size == (height, width)


def test_resize_keeps_a_flat_color_and_the_type():
    image = np.full((30, 40, 3), 77, np.uint8)
    for size in ((30, 40), (7, 5), (61, 80)):
        scaled = resize(image, size)
        assert scaled.shape == (*size, 3)
        assert scaled.dtype == np.uint8
        assert (scaled == 77).all()


def test_boxes_scale_by_axis():
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    np.testing.assert_array_equal(scale_boxes(boxes, np.array([10, 100])), [[100, 20, 300, 40]])
    assert scale_boxes(boxes[:0], np.array([1, 2])).shape == (0, 4)


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical])
def test_a_flip_moves_the_box_with_its_pixels(flip):
    image = np.zeros((20, 30, 3), np.uint8)
    image[3:8, 10:14] = 255
    flipped, boxes = flip(image, np.array([[10, 3, 14, 8]], np.float32))
    x0, y0, x1, y1 = boxes[0].astype(int)
    assert flipped.sum() == image.sum()
    assert (flipped[y0:y1, x0:x1] == 255).all()
    assert (x1 - x0, y1 - y0) == (4, 5)
    assert boxes.dtype == np.float32


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical])
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    boxes=st.lists(st.tuples(*[st.integers(0, 160)] * 4), max_size=4),
)
def test_two_flips_are_none(flip, height, width, boxes):
    image = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3).astype(np.uint8)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4) / 4  # quarters: exact in float32
    image_again, boxes_again = flip(*flip(image, boxes))
    np.testing.assert_array_equal(image_again, image)
    np.testing.assert_array_equal(boxes_again, boxes)
