"""The recipe for small sets, fitted to data: sizes, canvases and the length of the run."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sets import annotated_image, dataset
from tood_jax.config.presets import small_set
from tood_jax.config.validation import check
from tood_jax.data.preprocess import canvases, choose_canvas
from tood_jax.data.recipe import fit_recipe

SIZES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=30)


def fitted(sizes, boxes=((0, 0, 300, 300),)):
    images = [annotated_image(i, w, h, boxes, [0] * len(boxes)) for i, (h, w) in enumerate(sizes)]
    return fit_recipe(small_set(), dataset(*images))


def padding(data, sizes):
    """The share of the canvases that images do not cover, at the largest short side of training."""
    pairs = [choose_canvas(size, data.train_short_side[1], data.max_long_side, canvases(data)) for size in sizes]
    return 1 - sum(h * w for _, (h, w) in pairs) / sum(h * w for (h, w), _ in pairs)


@given(SIZES)
def test_any_sizes_give_a_valid_config_of_few_canvases(sizes):
    config, decisions = fitted(sizes)
    check(config)
    assert len(config.data.buckets) <= 3
    assert canvases(config.data) == canvases(config.data)[: len(config.data.buckets)], "no canvas is added"
    assert all(decision.fields and decision.reason for decision in decisions)
    assert fitted(sizes) == (config, decisions)
    steps = config.train.epochs * max(1, len(sizes) // config.train.batch_size)
    assert steps == 600, "of so few images"


@given(SIZES)
def test_more_canvases_never_pad_more_than_the_one_that_holds_all(sizes):
    data = fitted(sizes)[0].data
    one = replace(data, buckets=(canvases(data)[-1],))
    assert padding(data, sizes) <= padding(one, sizes) + 1e-9


def test_photographs_of_one_shape_get_one_canvas_that_fits():
    config, _ = fitted([(480, 640)] * 205)
    assert config.data.buckets == ((256, 352),)
    assert padding(config.data, [(480, 640)]) < 0.04
    assert (config.data.train_short_side, config.data.eval_short_side) == ((208, 256), 240)


def test_both_orientations_get_a_canvas_each():
    data = fitted([(480, 640)] * 50 + [(640, 480)] * 50)[0].data
    assert set(data.buckets) == {(256, 352), (352, 256), (352, 352)}
    assert padding(data, [(480, 640), (640, 480)]) < 0.04


@pytest.mark.parametrize(("side", "expected"), [(40, 240), (21, 240), (16, 320), (11, 480), (9, 640), (2, 640)])
def test_small_objects_get_larger_images(side, expected):
    """Sides in images of 600 pixels: 11 pixels are 8.8 at a short side of 480."""
    config, _ = fitted([(700, 700)] * 4, [(0, 0, side * 7 / 6, side * 7 / 6)])
    assert config.data.eval_short_side == expected


def test_images_are_not_enlarged_for_small_objects():
    assert fitted([(250, 250)] * 4, [(0, 0, 2, 2)])[0].data.eval_short_side == 240


@pytest.mark.parametrize(("most", "expected"), [(1, 10), (10, 10), (11, 20), (99, 100), (700, 500)])
def test_all_objects_have_a_place(most, expected):
    boxes = np.tile([0, 0, 30, 30], (most, 1))
    assert fitted([(60, 60)] * 4, boxes)[0].data.max_objects == expected


@pytest.mark.parametrize(
    ("images", "steps", "epochs"), [(3, 600, 600), (205, 612, 12), (300, 900, 12), (1000, 1500, 6), (50_000, 12_500, 1)]
)
def test_the_run_has_600_to_1500_steps_or_one_epoch(images, steps, epochs):
    config, _ = fitted([(100, 100)] * images)
    assert config.train.epochs == epochs
    assert epochs * (images // config.train.batch_size) == steps
    assert config.assigner.warmup_epochs == pytest.approx(epochs / 8, abs=0.01)
    assert config.optimizer.warmup_steps == steps // 8
