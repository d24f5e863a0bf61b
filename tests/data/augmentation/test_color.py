"""Changes of colour against what brightness, contrast, saturation and hue mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.data.augmentation.color import change_color, jitter_color
from tood_jax.data.augmentation.presets import NONE, PRESETS

LUMA = np.asarray([0.299, 0.587, 0.114])
ROUNDING = 0.6  # OpenCV multiplies in fixed point


@pytest.fixture
def image():
    """Moderate colours, which no change below brings out of 0–255."""
    return np.random.default_rng(0).integers(90, 150, (8, 9, 3), np.uint8)


def test_neutral_changes_change_nothing(image):
    np.testing.assert_array_equal(change_color(image, 1, 1, 1, 0), image)
    np.testing.assert_array_equal(jitter_color(image, NONE, np.random.default_rng(0)), image)


def test_each_change_alone(image):
    values, luma = image.astype(float), image @ LUMA
    np.testing.assert_allclose(change_color(image, 1.5, 1, 1, 0), values * 1.5, atol=ROUNDING)
    np.testing.assert_allclose(
        change_color(image, 1, 0.5, 1, 0), luma.mean() + 0.5 * (values - luma.mean()), atol=ROUNDING
    )
    np.testing.assert_allclose(change_color(image, 1, 1, 0, 0), np.repeat(luma[..., None], 3, axis=2), atol=ROUNDING)
    turned = change_color(image, 1, 1, 1, 30).astype(float)
    np.testing.assert_allclose(turned @ LUMA, luma, atol=ROUNDING)
    assert np.abs(turned - values).max() > 5
    np.testing.assert_allclose(change_color(turned.astype(np.uint8), 1, 1, 1, -30), values, atol=2)


def test_three_turns_of_the_hue_by_120_degrees_change_nothing():
    red = np.full((1, 1, 3), (140, 100, 100), np.uint8)
    np.testing.assert_allclose(change_color(red, 1, 1, 1, 360), red, atol=1)
    turned = red
    for _ in range(3):
        turned = change_color(turned, 1, 1, 1, 120)
    np.testing.assert_allclose(turned, red, atol=2)


@given(st.integers(0, 2**32 - 1), st.integers(0, 255))
def test_grey_stays_grey(seed, value):
    grey = np.full((2, 2, 3), value, np.uint8)
    found = jitter_color(grey, PRESETS["strong"], np.random.default_rng(seed)).astype(int)
    assert found.dtype == int
    assert np.ptp(found) <= 1
