"""Augmented batches are functions of the seed and the step: the same after a resume and in any process."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from tests.data.helpers import SETTINGS, assert_batches_equal, sizes_of, take_all
from tood_jax.config import Config, TrainConfig
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.loader import train_batches
from tood_jax.data.sampler import TrainSampler
from tood_jax.training.seen_batch import batch_of_step

EPOCH = 5  # steps, of SETTINGS


@pytest.fixture(scope="module")
def strong(data_config):
    """All augmentations, each of them often."""
    return replace(data_config, augmentation="strong", mosaic_probability=0.4, mixup_probability=0.5, max_objects=20)


@pytest.fixture(scope="module")
def augmented(shapes_set, strong):
    return take_all(train_batches(shapes_set, strong, **SETTINGS))


def epoch_of(sampler, epoch):
    return [row for step in range(EPOCH) for row in sampler.batch(epoch * EPOCH + step).rows]


def test_canvases_and_images_are_planned_as_without_augmentation(batches, augmented):
    for plain, batch in zip(batches, augmented, strict=True):
        assert plain.images.shape == batch.images.shape
        np.testing.assert_array_equal(plain.image_indices, batch.image_indices)
        assert (batch.sizes <= plain.sizes).all()
    assert any((plain.images != batch.images).any() for plain, batch in zip(batches, augmented, strict=True))


def test_objects_are_inside_their_images(augmented):
    assert sum(batch.gt_mask.sum() for batch in augmented) > 20
    for batch in augmented:
        height, width = batch.sizes[:, None, 0], batch.sizes[:, None, 1]
        limits = np.stack([width, height, width, height], axis=-1)
        inside = (batch.gt_boxes >= 0) & (batch.gt_boxes <= limits)
        assert inside[batch.gt_mask].all()
        sides = batch.gt_boxes[..., 2:] - batch.gt_boxes[..., :2]
        assert (sides[batch.gt_mask] >= 1).all()


def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(shapes_set, strong, augmented):
    for start in (1, 6):
        settings = {**SETTINGS, "start_step": start, "num_steps": 8 - start}
        assert_batches_equal(take_all(train_batches(shapes_set, strong, **settings)), augmented[start:])


def test_processes_share_the_rows_of_one_process(shapes_set, strong, augmented):
    for process in (0, 1):
        part = take_all(train_batches(shapes_set, strong, **SETTINGS, process_index=process, process_count=2))
        rows = slice(2 * process, 2 * process + 2)
        assert_batches_equal(part, [type(batch)(*(array[rows] for array in batch)) for batch in augmented])


def test_another_seed_and_another_epoch_give_other_pixels(shapes_set, data_config):
    """Of the same images at the same size without flips."""
    data = replace(data_config, augmentation="light", train_short_side=(64, 64), flip_probability=0.0)
    data = replace(data, vertical_flip_probability=0.0)
    found = []
    for seed, start in ((5, 0), (6, 0), (5, EPOCH)):
        settings = {"batch_size": 4, "seed": seed, "start_step": start, "num_steps": EPOCH}
        rows = {}
        for batch in take_all(train_batches(shapes_set, data, **settings)):
            rows |= {
                index: image.tobytes() for index, image in zip(batch.image_indices.tolist(), batch.images, strict=True)
            }
        found.append(rows)
    for other in found[1:]:
        common = found[0].keys() & other.keys()
        assert len(common) > 10
        assert not any(found[0][index] == other[index] for index in common)


def test_worker_processes_make_the_same_batches(shapes_set, strong, augmented):
    data = replace(strong, workers=1)
    assert_batches_equal(take_all(train_batches(shapes_set, data, **{**SETTINGS, "num_steps": 3})), augmented[:3])


def test_the_drawings_of_targets_show_the_augmented_batch(shapes_set, strong, augmented):
    config = Config(data=strong, train=TrainConfig(batch_size=4, seed=5))
    assert_batches_equal([batch_of_step(shapes_set, config, 3)], augmented[3:4])


def test_closing_epochs_have_no_mosaic_and_no_mixup(shapes_set, strong):
    sampler = TrainSampler(sizes_of(shapes_set), replace(strong, closing_epochs=2), 4, 5, epochs=4)
    kinds = [{len(row.partners) for row in epoch_of(sampler, epoch)} for epoch in range(5)]
    assert kinds == [{0, 1, 3}, {0, 1, 3}, {0}, {0}, {0}]
    endless = TrainSampler(sizes_of(shapes_set), strong, 4, 5)
    assert epoch_of(endless, 1) == epoch_of(sampler, 1)
    assert {len(row.partners) for row in epoch_of(endless, 3)} == {0, 1, 3}


def test_every_row_has_its_own_random_numbers(shapes_set, strong):
    sampler = TrainSampler(sizes_of(shapes_set), strong, 4, 5)
    keys = [row.key for epoch in range(3) for row in epoch_of(sampler, epoch)]
    assert len(set(keys)) == 3 * EPOCH * 4


def test_without_augmentation_rows_have_no_keys_and_the_plan_is_that_of_older_versions(shapes_set, data_config):
    """The digest is of a checkout from before there was any augmentation."""
    sampler = TrainSampler(sizes_of(shapes_set), data_config, 4, 5, epochs=2)
    rows = [row for epoch in range(3) for row in epoch_of(sampler, epoch)]
    assert {(row.key, row.partners) for row in rows} == {((), ())}
    plan = repr([(row.index, row.size, row.flip, row.vertical_flip) for row in rows])
    assert hashlib.sha256(plan.encode()).hexdigest()[:16] == "b49a1ed3ac142139"


def test_a_broken_partner_is_named_or_replaced_and_counted(breakable, data_config):
    dataset, truncate = breakable
    data = replace(data_config, augmentation="strong", mosaic_probability=1.0, broken_images="skip")
    unbroken = take_all(train_batches(dataset, data, **SETTINGS))
    truncate(3)
    iterator = train_batches(dataset, data, **SETTINGS)
    skipped = take_all(iterator)
    assert_batches_equal(take_all(train_batches(dataset, replace(data, threads=1), **SETTINGS)), skipped)
    counts = iterator.counts
    assert sum(counts.broken.values()) > sum((batch.image_indices == 3).sum() for batch in unbroken)
    assert "000004.jpg is truncated" in counts.summary()
    assert all((batch.image_indices != 3).all() for batch in skipped)
    with pytest.raises(BrokenImageError, match=r"000004\.jpg is truncated.*data\.broken_images=skip"):
        take_all(train_batches(dataset, replace(data, broken_images="fail"), **SETTINGS))


def test_the_hook_runs_in_training_only_and_its_errors_end_the_run(shapes_set, data_config, batches):
    hook = "tests.data.augmentation.painted"
    darkened = take_all(train_batches(shapes_set, replace(data_config, augment_hook=f"{hook}:darken"), **SETTINGS))
    assert all((a.images <= b.images).all() for a, b in zip(darkened, batches, strict=True))
    assert any((a.images < b.images).any() for a, b in zip(darkened, batches, strict=True))
    for name, message in (("float_image", "must return"), ("missing", "can't be imported")):
        with pytest.raises(DataError, match=message):
            take_all(train_batches(shapes_set, replace(data_config, augment_hook=f"{hook}:{name}"), **SETTINGS))


def test_scaled_decoding_gives_almost_the_same_image(shapes_set, strong, augmented):
    scaled = take_all(train_batches(shapes_set, replace(strong, scaled_decoding=True), **SETTINGS))
    for a, b in zip(scaled, augmented, strict=True):
        np.testing.assert_array_equal(a.gt_boxes, b.gt_boxes)
        assert np.abs(a.images.astype(int) - b.images).mean() < 6
