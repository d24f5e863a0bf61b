"""Views of an image: tiles that cover it, and variants."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.config import ConfigError, DataConfig
from tood_jax.data.preprocess import canvases, to_canvas
from tood_jax.data.views import PLAIN, Variant, Views, parse_variants, scaled_data, tile_areas

DATA = DataConfig(eval_short_side=64, max_long_side=96, buckets=((64, 96), (96, 64)))


@given(st.integers(1, 700), st.integers(1, 700), st.integers(32, 300), st.floats(0, 0.9))
def test_tiles_cover_the_image_and_overlap(height, width, side, overlap):
    areas = tile_areas((height, width), side, overlap)
    assert len(set(areas)) == len(areas)
    seen = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in areas:
        assert (x1 - x0, y1 - y0) == (min(side, width), min(side, height))
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        seen[y0:y1, x0:x1] = True
    assert seen.all()
    for starts, length in (({a[0] for a in areas}, width), ({a[1] for a in areas}, height)):
        steps = np.diff(sorted(starts))
        assert (min(side, length) - steps >= overlap * side - 1).all()


def test_an_image_of_a_tile_is_its_only_view():
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    (view,) = Views(tiles=60).of(image, DATA)
    canvas, sample = to_canvas(image, DATA)
    assert view.canvas == canvas
    np.testing.assert_array_equal(view.sample.image, sample.image)
    np.testing.assert_array_equal(view.sample.scale, sample.scale)
    assert len(Views(tiles=59, overlap=0).of(image, DATA)) == 3  # itself and two tiles


def test_variants_are_of_the_image_and_of_each_tile():
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    views = Views(64, 0.0, parse_variants("flip, 1.5")).of(image, DATA)
    assert len(views) == 9
    plain, flipped, large = views[1], views[4], views[7]  # of the first tile
    np.testing.assert_array_equal(flipped.sample.image, plain.sample.image[:, ::-1])
    assert plain.sample.image.shape == (64, 64, 3)
    assert large.sample.image.shape == (96, 96, 3)
    assert [view.placement.is_flipped for view in views] == [False] * 3 + [True] * 3 + [False] * 3


@given(st.integers(20, 300), st.integers(20, 300), st.floats(0.25, 4))
def test_a_scaled_image_is_shrunk_by_its_canvas_no_more_than_the_plain_one(height, width, scale):
    image = np.zeros((height, width, 3), np.uint8)
    plain, scaled = to_canvas(image, DATA)[1], to_canvas(image, scaled_data(DATA, scale))[1]
    assert all(side % 32 == 0 for canvas in canvases(scaled_data(DATA, scale)) for side in canvas)
    expected = np.asarray(plain.image.shape[:2]) * scale
    np.testing.assert_allclose(scaled.image.shape[:2], expected, atol=4 + 0.02 * max(expected))


def test_words_of_variants():
    assert parse_variants("") == (PLAIN,)
    assert parse_variants("flip,0.8") == (PLAIN, Variant(is_flipped=True), Variant(scale=0.8))
    assert scaled_data(DATA, 1.0) is DATA
    assert Views().is_one
    assert not Views(variants=parse_variants("0.8")).is_one


@pytest.mark.parametrize("text", ["mirror", "flip,", "0", "nan", "5", "1", "flip,flip", "0.8,0.80"])
def test_other_words_are_refused(text):
    with pytest.raises(ConfigError, match="tta"):
        parse_variants(text)


@pytest.mark.parametrize("options", [{"tiles": 8}, {"tiles": -64}, {"overlap": 0.95}, {"overlap": float("nan")}])
def test_tiles_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        replace(Views(), **options)
