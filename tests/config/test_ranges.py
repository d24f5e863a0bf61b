"""Ranges of numbers: which numbers they hold, and how messages describe them."""

import math

import pytest

from tood_jax.config.ranges import Range


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "description"),
    [
        (Range(1, 4096), [1, 4096], [0, 4097, math.inf, math.nan, 10**400], "from 1 to 4,096"),
        (Range(0, 1, above=True), [0.1, 1.0], [0.0, 1.1], "above 0 and at most 1"),
        (Range(0, 1, below=True), [0.0, 0.9], [-0.1, 1.0], "at least 0 and below 1"),
        (Range(0, 1, above=True, below=True), [0.5], [0.0, 1.0], "above 0 and below 1"),
        (Range(32, 64, multiple_of=32), [32, 64], [48, 96], "a multiple of 32 from 32 to 64"),
    ],
)
def test_a_range_holds_its_numbers_and_describes_them(allowed, inside, outside, description):
    assert all(number in allowed for number in inside)
    assert not any(number in allowed for number in outside)
    assert str(allowed) == description
