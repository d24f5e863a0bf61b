"""The plan of batches: every image at most once an epoch, the same for any start and any process."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.config import DataConfig
from tood_jax.data.batching import (
    FILLER,
    BatchPlan,
    Row,
    TrainPlan,
    canvases,
    evaluation_plan,
    padding_share,
    place,
    steps_per_epoch,
)
from tood_jax.data.errors import DataError
from tood_jax.data.pipeline import _share

DATA = DataConfig(
    train_short_side=(32, 64),
    eval_short_side=48,
    max_long_side=128,
    buckets=((64, 64), (64, 128), (128, 64)),
)
SIZES = st.lists(st.tuples(st.integers(10, 400), st.integers(10, 400)), min_size=1, max_size=60)


def epoch_of(plan, epoch):
    return [plan.batch(epoch * plan.epoch_steps + i) for i in range(plan.epoch_steps)]


def indices(batches):
    return [row.index for batch in batches for row in batch.rows]


def assert_rows_fit(batches):
    for batch in batches:
        for row in batch.rows:
            assert row.size[0] <= batch.canvas[0]
            assert row.size[1] <= batch.canvas[1]
            assert min(row.size) >= 1


@given(SIZES, st.integers(1, 8), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_shows_each_image_at_most_once_in_full_batches(sizes, batch_size, seed, epoch):
    plan = TrainPlan(np.array(sizes), DATA, batch_size, seed)
    batches = epoch_of(plan, epoch)
    assert len(batches) == steps_per_epoch(len(sizes), batch_size) == max(1, len(sizes) // batch_size)
    assert {len(batch.rows) for batch in batches} == {batch_size}
    assert {batch.canvas for batch in batches} <= set(canvases(DATA))
    assert_rows_fit(batches)
    seen = Counter(indices(batches))
    if len(sizes) >= batch_size:
        assert max(seen.values()) == 1
    else:
        assert set(seen) == set(range(len(sizes)))  # too few for a batch: all come, as evenly as can be
        assert max(seen.values()) - min(seen.values()) <= 1


@given(SIZES, st.integers(1, 8))
def test_evaluation_shows_every_image_once(sizes, batch_size):
    batches = evaluation_plan(np.array(sizes), DATA, batch_size)
    assert sorted(i for i in indices(batches) if i != FILLER) == list(range(len(sizes)))
    assert {len(batch.rows) for batch in batches} == {batch_size}
    assert_rows_fit(batches)
    for batch in batches:
        assert batch.rows[0].index != FILLER  # no batch of nothing
        assert not any(row.flip or row.vertical_flip for row in batch.rows)


@given(SIZES, st.integers(1, 4), st.integers(1, 6))
def test_many_processes_evaluate_every_image_once(sizes, rows, processes):
    """Whatever the remainder; and all of them make the same number of batches with the same number of rows."""
    batches = evaluation_plan(np.array(sizes), DATA, rows * processes)
    shares = [
        [batch.rows[_share(rows * processes, index, processes)] for batch in batches] for index in range(processes)
    ]
    assert {len(part) for share in shares for part in share} == {rows}
    found = [row.index for share in shares for part in share for row in part if row.index != FILLER]
    assert sorted(found) == list(range(len(sizes)))


def sizes_of(count=50):
    return np.random.default_rng(0).integers(30, 300, (count, 2))


def test_the_plan_follows_from_seed_and_step_alone():
    one, other = TrainPlan(sizes_of(), DATA, 4, 3), TrainPlan(sizes_of(), DATA, 4, 3)
    steps = list(range(3 * one.epoch_steps))
    forward = [one.batch(step) for step in steps]
    backward = [other.batch(step) for step in reversed(steps)][::-1]
    assert forward == backward
    assert pickle.loads(pickle.dumps(one)).batch(17) == forward[17]
    assert [TrainPlan(sizes_of(), DATA, 4, 4).batch(step) for step in steps] != forward


def test_epochs_differ_in_order_in_rest_and_in_augmentation():
    plan = TrainPlan(sizes_of(), DATA, 8, 0)  # 6 batches, 2 images left out
    epochs = [epoch_of(plan, epoch) for epoch in range(6)]
    left_out = {frozenset(range(50)) - frozenset(indices(batches)) for batches in epochs}
    assert {len(rest) for rest in left_out} == {2}
    assert len(left_out) > 3
    rows_of_image_7 = {row for batches in epochs for batch in batches for row in batch.rows if row.index == 7}
    assert len({row.size for row in rows_of_image_7}) > 1
    assert {row.flip for row in rows_of_image_7} == {True, False}


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_flips(probability):
    data = replace(DATA, flip_probability=probability, vertical_flip_probability=1 - probability)
    rows = [row for batch in epoch_of(TrainPlan(sizes_of(), data, 5, 0), 0) for row in batch.rows]
    assert {row.flip for row in rows} == {bool(probability)}
    assert {row.vertical_flip for row in rows} == {not probability}


def test_short_sides_cover_the_whole_range():
    data = replace(DATA, train_short_side=(32, 34), max_long_side=1000, buckets=((64, 64),))
    sizes = np.full((60, 2), 100)
    assert {row.size[0] for batch in epoch_of(TrainPlan(sizes, data, 5, 0), 0) for row in batch.rows} == {32, 33, 34}


def test_leftovers_share_the_smallest_canvas_that_holds_them_all():
    sizes = np.array([[100, 100]] * 5 + [[100, 200]] * 3)  # at short side 64: 5 in 64×64, 3 in 64×128
    data = replace(DATA, train_short_side=(64, 64))
    batches = epoch_of(TrainPlan(sizes, data, 4, 0), 0)
    assert sorted((batch.canvas, len(batch.rows)) for batch in batches) == [((64, 64), 4), ((64, 128), 4)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 100), ((64, 64), (64, 64))),
        ((100, 150), ((64, 128), (64, 96))),
        ((150, 100), ((128, 64), (96, 64))),
        ((100, 400), ((64, 128), (32, 128))),
    ],
)
def test_the_smallest_canvas_is_taken(size, expected):
    assert place(size, 64, 128, canvases(DATA)) == expected


def test_an_image_that_fits_no_canvas_is_shrunk_to_the_largest():
    canvas, size = place((100, 300), 300, 900, canvases(DATA))
    assert canvas == (128, 128)
    assert size == (42, 128)


def test_the_canvases_end_with_the_one_that_holds_all():
    assert canvases(DATA) == ((64, 64), (64, 128), (128, 64), (128, 128))
    assert canvases(replace(DATA, buckets=((64, 64),))) == ((64, 64),)


@pytest.mark.parametrize("buckets", [(), ((100, 128),), ((0, 64),), ((-32, 64),), ((64, 64), (64, 65))])
def test_unfit_buckets_are_refused(buckets):
    with pytest.raises(DataError, match=r"data\.buckets .* multiples of 32"):
        canvases(replace(DATA, buckets=buckets))


def test_padding_share():
    rows = (Row(0, (32, 64)), Row(FILLER, (32, 32)))
    assert padding_share([BatchPlan((64, 64), rows)]) == 0.75
