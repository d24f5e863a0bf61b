"""Sizes, boxes and flips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.data.transforms import fitted_size, flip_horizontal, flip_vertical, resize, resized_size, scale_boxes


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 1000), 800, 1333, (400, 1333)),  # the long side decides
        ((500, 500), 800, 1333, (800, 800)),
        ((1, 10_000), 800, 1333, (1, 1333)),  # at least one pixel
    ],
)
def test_resized_size(size, short, long, expected):
    assert resized_size(*size, short, long) == expected


@given(
    size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    canvas=st.tuples(st.integers(1, 50), st.integers(1, 50)).map(lambda pair: (pair[0] * 32, pair[1] * 32)),
)
def test_a_fitted_size_fits_and_is_not_larger(size, canvas):
    fitted = fitted_size(size, canvas)
    assert all(1 <= side <= min(limit, before) for side, limit, before in zip(fitted, canvas, size, strict=True))
    if size[0] <= canvas[0] and size[1] <= canvas[1]:
        assert fitted == size
    enlarged = fitted_size(size, canvas, enlarge=True)
    assert all(1 <= side <= limit for side, limit in zip(enlarged, canvas, strict=True))
    if fitted != size:
        assert enlarged == fitted


def test_resize_returns_an_image_of_the_size_unchanged():
    image = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    assert resize(image, (6, 9)) is image
    assert resize(image, (12, 5)).shape == (12, 5, 3)


def test_y_and_x_of_boxes_are_scaled_separately():
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    assert scale_boxes(boxes, np.array([10, 100], np.float32)).tolist() == [[100, 20, 300, 40]]
    assert scale_boxes(np.zeros((0, 4), np.float32), np.ones(2, np.float32)).shape == (0, 4)


@pytest.mark.parametrize(
    ("flip", "expected"),
    [(flip_horizontal, [[6, 2, 9, 4]]), (flip_vertical, [[1, 2, 4, 4]])],
    ids=lambda x: str(x)[:20],
)
def test_a_flipped_box_matches_the_flipped_object(flip, expected):
    image = np.zeros((6, 10, 3), np.uint8)
    image[2:4, 1:4] = 255
    flipped, boxes = flip(image, np.array([[1, 2, 4, 4]], np.float32))
    assert boxes.tolist() == expected
    assert boxes.dtype == np.float32
    x0, y0, x1, y1 = boxes[0].astype(int)
    assert flipped[y0:y1, x0:x1].min() == 255
    assert flipped.sum() == image.sum()


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical])
def test_flipping_twice_changes_nothing(flip):
    random = np.random.default_rng(0)
    image, boxes = random.integers(0, 256, (7, 5, 3), np.uint8), np.array([[0, 1, 4, 6], [2, 2, 3, 5]], np.float32)
    image_again, boxes_again = flip(*flip(image, boxes))
    np.testing.assert_array_equal(image_again, image)
    np.testing.assert_array_equal(boxes_again, boxes)


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical])
def test_an_image_without_boxes_can_be_flipped(flip):
    _, boxes = flip(np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.float32))
    assert boxes.shape == (0, 4)
