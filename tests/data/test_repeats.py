"""Repeat-factor sampling against the rule of LVIS in plain loops, and against its means."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.helpers import SETTINGS, assert_batches_equal, sizes_of, take_all
from tood_jax.config import Config, TrainConfig
from tood_jax.data.loader import train_batches
from tood_jax.data.repeats import draw_counts, repeat_factors
from tood_jax.data.sampler import image_repeats, images_per_epoch, train_sampler
from tood_jax.training.plan import make_plan

LABELS = st.lists(st.lists(st.sampled_from([0, 1, 2, 7]), max_size=5), min_size=1, max_size=30)


def plain_factors(labels, threshold):
    share = {c: sum(c in image for image in labels) / len(labels) for image in labels for c in image}
    return [max([1.0, *(math.sqrt(threshold / share[c]) for c in image)]) for image in labels]


@given(LABELS, st.floats(0.001, 1))
def test_factors_equal_the_rule(labels, threshold):
    found = repeat_factors([np.asarray(image, np.int32) for image in labels], threshold)
    np.testing.assert_allclose(found, plain_factors(labels, threshold))


def test_example_by_hand():
    """One of 16 images has class 1, so with t = 1/4 it occurs √(16/4) = 2 times."""
    labels = [np.zeros(3, np.int32)] * 14 + [np.zeros(0, np.int32), np.asarray([0, 1], np.int32)]
    assert repeat_factors(labels, 0.25).tolist() == [1.0] * 15 + [2.0]


@given(st.lists(st.floats(1, 8), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_counts_are_factors_rounded_and_their_sum_is_fixed(factors, seed):
    factors = np.asarray(factors)
    counts = draw_counts(factors, np.random.default_rng(seed))
    assert counts.sum() == math.floor(factors.sum())
    missing = np.floor(factors) - counts  # one image may lose one, because the sum is rounded down
    assert sorted(missing[missing > 0].tolist()) in ([], [1.0])
    assert (counts <= np.ceil(factors)).all()


def test_counts_have_the_factors_as_their_means():
    factors = np.asarray([1.0, 1.25, 2.5, 3.75, 1.5])  # sum 10, so that nothing is left out
    counts = [draw_counts(factors, np.random.default_rng(seed)) for seed in range(4000)]
    np.testing.assert_allclose(np.mean(counts, axis=0), factors, atol=0.04)  # 5 standard deviations


@pytest.fixture
def data(data_config):
    return replace(data_config, repeat_threshold=0.9)


def test_an_epoch_repeats_images_and_the_plan_counts_them(shapes_set, data):
    factors = image_repeats(shapes_set, data)
    total = math.floor(factors.sum())
    assert images_per_epoch(shapes_set, data) == total > len(shapes_set.images)
    assert make_plan(Config(data=data, train=TrainConfig(batch_size=4, epochs=2)), total).total_steps == total // 4 * 2
    sampler = train_sampler(shapes_set, data, 4, 5)
    assert sampler.epoch_steps == total // 4
    rows = [row for step in range(sampler.epoch_steps) for row in sampler.batch(step).rows]
    counts = Counter(row.index for row in rows)
    assert max(counts.values()) > 1
    assert all(counts[index] <= math.ceil(factor) for index, factor in enumerate(factors))
    copies = [{row for row in rows if row.index == index} for index, count in counts.items() if count > 1]
    assert any(len(different) > 1 for different in copies)  # copies have their own size and flip


def test_batches_are_the_same_after_a_resume(shapes_set, data):
    whole = take_all(train_batches(shapes_set, data, **SETTINGS))
    rest = take_all(train_batches(shapes_set, data, **{**SETTINGS, "start_step": 3, "num_steps": 5}))
    assert_batches_equal(rest, whole[3:])


def test_a_threshold_below_every_class_changes_nothing(shapes_set, data_config, batches):
    data = replace(data_config, repeat_threshold=1e-6)
    assert images_per_epoch(shapes_set, data) == len(sizes_of(shapes_set)) == images_per_epoch(shapes_set, data_config)
    assert_batches_equal(take_all(train_batches(shapes_set, data, **SETTINGS)), batches)
