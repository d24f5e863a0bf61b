"""The content of batches: every image at most once per epoch, the same for any start and any number of processes."""

import pickle
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.config import DataConfig
from tood_jax.data import sampler as sampler_module
from tood_jax.data.preprocess import FILLER, canvases
from tood_jax.data.sampler import (
    BatchSpec,
    RowSpec,
    TrainSampler,
    evaluation_batches,
    padding_share,
    process_rows,
    steps_per_epoch,
)

DATA = DataConfig(
    train_short_side=(32, 64),
    eval_short_side=48,
    max_long_side=128,
    buckets=((64, 64), (64, 128), (128, 64)),
)
SIZES = st.lists(st.tuples(st.integers(10, 400), st.integers(10, 400)), min_size=1, max_size=60)


def epoch_of(sampler, epoch):
    return [sampler.batch(epoch * sampler.epoch_steps + i) for i in range(sampler.epoch_steps)]


def indices(batches):
    return [row.index for batch in batches for row in batch.rows]


def assert_rows_fit(batches):
    for batch in batches:
        for row in batch.rows:
            assert row.size[0] <= batch.canvas[0]
            assert row.size[1] <= batch.canvas[1]
            assert min(row.size) >= 1


@given(SIZES, st.integers(1, 8), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_contains_each_image_at_most_once_in_full_batches(sizes, batch_size, seed, epoch):
    batches = epoch_of(TrainSampler(np.array(sizes), DATA, batch_size, seed), epoch)
    assert len(batches) == steps_per_epoch(len(sizes), batch_size) == max(1, len(sizes) // batch_size)
    assert {len(batch.rows) for batch in batches} == {batch_size}
    assert {batch.canvas for batch in batches} <= set(canvases(DATA))
    assert_rows_fit(batches)
    counts = Counter(indices(batches))
    if len(sizes) >= batch_size:
        assert max(counts.values()) == 1
    else:
        assert set(counts) == set(range(len(sizes)))  # too few for a batch: all occur, as evenly as possible
        assert max(counts.values()) - min(counts.values()) <= 1


@given(SIZES, st.integers(1, 8))
def test_evaluation_contains_every_image_once(sizes, batch_size):
    batches = evaluation_batches(np.array(sizes), DATA, batch_size)
    assert sorted(i for i in indices(batches) if i != FILLER) == list(range(len(sizes)))
    assert {len(batch.rows) for batch in batches} == {batch_size}
    assert_rows_fit(batches)
    for batch in batches:
        assert batch.rows[0].index != FILLER  # no batch of fillers only
        assert not any(row.flip or row.vertical_flip for row in batch.rows)


@given(SIZES, st.integers(1, 4), st.integers(1, 6))
def test_many_processes_evaluate_every_image_once(sizes, rows, processes):
    """All of them make the same number of batches with the same number of rows, whatever the remainder is."""
    batches = evaluation_batches(np.array(sizes), DATA, rows * processes)
    parts = [
        batch.rows[process_rows(rows * processes, index, processes)] for index in range(processes) for batch in batches
    ]
    assert {len(part) for part in parts} == {rows}
    assert sorted(row.index for part in parts for row in part if row.index != FILLER) == list(range(len(sizes)))


def random_sizes(count=50):
    return np.random.default_rng(0).integers(30, 300, (count, 2))


def test_batches_depend_on_seed_and_step_alone():
    sampler, other = TrainSampler(random_sizes(), DATA, 4, 3), TrainSampler(random_sizes(), DATA, 4, 3)
    steps = list(range(3 * sampler.epoch_steps))
    forward = [sampler.batch(step) for step in steps]
    backward = [other.batch(step) for step in reversed(steps)][::-1]
    assert forward == backward
    assert pickle.loads(pickle.dumps(sampler)).batch(17) == forward[17]
    assert [TrainSampler(random_sizes(), DATA, 4, 4).batch(step) for step in steps] != forward


def test_epochs_differ_in_order_in_left_out_images_and_in_augmentation():
    sampler = TrainSampler(random_sizes(), DATA, 8, 0)  # 6 batches, 2 images left out
    epochs = [epoch_of(sampler, epoch) for epoch in range(6)]
    left_out = {frozenset(range(50)) - frozenset(indices(batches)) for batches in epochs}
    assert {len(images) for images in left_out} == {2}
    assert len(left_out) > 3
    rows_of_image_7 = {row for batches in epochs for batch in batches for row in batch.rows if row.index == 7}
    assert len({row.size for row in rows_of_image_7}) > 1
    assert {row.flip for row in rows_of_image_7} == {True, False}


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_flip_probabilities_of_0_and_1_are_exact(probability):
    data = replace(DATA, flip_probability=probability, vertical_flip_probability=1 - probability)
    rows = [row for batch in epoch_of(TrainSampler(random_sizes(), data, 5, 0), 0) for row in batch.rows]
    assert {row.flip for row in rows} == {bool(probability)}
    assert {row.vertical_flip for row in rows} == {not probability}


def test_short_sides_cover_the_whole_range():
    data = replace(DATA, train_short_side=(32, 34), max_long_side=1000, buckets=((64, 64),))
    sampler = TrainSampler(np.full((60, 2), 100), data, 5, 0)
    assert {row.size[0] for batch in epoch_of(sampler, 0) for row in batch.rows} == {32, 33, 34}


def test_remaining_rows_share_the_smallest_canvas_that_holds_them_all():
    sizes = np.array([[100, 100]] * 5 + [[100, 200]] * 3)  # at short side 64: 5 in 64×64, 3 in 64×128
    data = replace(DATA, train_short_side=(64, 64))
    batches = epoch_of(TrainSampler(sizes, data, 4, 0), 0)
    assert sorted((batch.canvas, len(batch.rows)) for batch in batches) == [((64, 64), 4), ((64, 128), 4)]


def test_padding_share():
    rows = (RowSpec(0, (32, 64)), RowSpec(FILLER, (32, 32)))
    assert padding_share([BatchSpec((64, 64), rows)]) == 0.75


def test_threads_that_reach_an_epoch_together_draw_it_once(monkeypatch):
    """Drawing an epoch of COCO takes a second, and otherwise each of 16 threads would do it."""
    expected = [TrainSampler(np.full((64, 2), 64), DATA, 4, seed=0).batch(step) for step in range(32)]
    calls, genuine = [], sampler_module.choose_canvas

    def slow(*args):
        calls.append(args)
        time.sleep(0.001)
        return genuine(*args)

    monkeypatch.setattr(sampler_module, "choose_canvas", slow)
    sampler = TrainSampler(np.full((64, 2), 64), DATA, 4, seed=0)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(sampler.batch, [*range(32), *range(32)]))
    assert len(calls) == 2 * 64  # each image once for each of two epochs
    assert found == [*expected, *expected]
