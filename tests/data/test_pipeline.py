"""Batches made of files: what is in them, that nothing but the step decides it, and what broken files do."""

import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data.conftest import SETTINGS, assert_equal, take
from tood_jax.data.batching import FILLER, Row, TrainPlan, padding_share
from tood_jax.data.coco import ClassInfo, CocoSet, ImageRecord, LoadReport
from tood_jax.data.decode import decode_image
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.pipeline import DataCounts, describe_batches, eval_batches, load_sample, train_batches
from tood_jax.types import Batch


def sizes_of(dataset):
    return np.array([(one.height, one.width) for one in dataset.images])


def test_shapes_and_types(batches, data_config):
    for batch in batches:
        height, width = batch.images.shape[1:3]
        assert (height, width) in {*data_config.buckets, (96, 96)}
        found = [(array.shape, array.dtype.name) for array in batch]
        assert found == [
            ((4, height, width, 3), "uint8"),
            ((4, 2), "int32"),
            ((4, 2), "float32"),
            ((4, 6, 4), "float32"),
            ((4, 6), "int32"),
            ((4, 6), "bool"),
            ((4,), "int32"),
        ]


def test_rows_follow_their_files_and_the_plan(batches, shapes_set, data_config):
    plan = TrainPlan(sizes_of(shapes_set), data_config, 4, 5)
    for step, batch in enumerate(batches):
        assert batch.image_indices.tolist() == [row.index for row in plan.batch(step).rows]
        for i, row in enumerate(plan.batch(step).rows):
            record = shapes_set.images[row.index]
            height, width = batch.sizes[i]
            assert (height, width) == row.size
            assert not batch.images[i, height:].any()
            assert not batch.images[i, :, width:].any()
            np.testing.assert_allclose(batch.scales[i], [height / record.height, width / record.width], rtol=1e-6)
            assert batch.gt_mask[i].sum() == len(record.labels)
            assert batch.gt_mask[i, : len(record.labels)].all()
            assert batch.gt_labels[i, batch.gt_mask[i]].tolist() == record.labels.tolist()
            assert not batch.gt_boxes[i, ~batch.gt_mask[i]].any()
            # Back to the file's pixels, the boxes are the file's.
            boxes = batch.gt_boxes[i, batch.gt_mask[i]]
            if row.flip:
                boxes = np.array([width, 0, width, 0]) + boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1]
            if row.vertical_flip:
                boxes = np.array([0, height, 0, height]) + boxes[:, [0, 3, 2, 1]] * [1, -1, 1, -1]
            np.testing.assert_allclose(boxes / batch.scales[i][[1, 0, 1, 0]], record.boxes, atol=1e-3)


def test_images_without_objects_are_trained_on(batches, shapes_set):
    empty = {i for i, one in enumerate(shapes_set.images) if len(one.labels) == 0}
    seen = [row for batch in batches for row in zip(batch.image_indices, batch.gt_mask.any(axis=1), strict=True)]
    assert any(index in empty for index, _ in seen)
    assert all((index in empty) != has_objects for index, has_objects in seen)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_same_bits_from_any_number_of_threads(batches, shapes_set, data_config, threads):
    again = take(train_batches(shapes_set, replace(data_config, threads=threads), **SETTINGS))
    assert_equal(again, batches)


@pytest.mark.parametrize("start", [1, 4, 5, 7])
def test_a_later_start_goes_on_exactly(batches, shapes_set, data_config, start):
    rest = {**SETTINGS, "start_step": start, "num_steps": 8 - start}
    assert_equal(take(train_batches(shapes_set, data_config, **rest)), batches[start:])


@pytest.mark.parametrize("count", [2, 4])
def test_the_shares_of_the_processes_make_up_the_global_batch(batches, shapes_set, data_config, count):
    settings = {**SETTINGS, "process_count": count}
    shares = [take(train_batches(shapes_set, data_config, process_index=i, **settings)) for i in range(count)]
    joined = [Batch(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert_equal(joined, batches)


def test_a_batch_that_can_not_be_shared_is_refused(shapes_set, data_config):
    with pytest.raises(DataError, match="4 images can't be shared by 3 processes"):
        train_batches(shapes_set, data_config, process_count=3, **SETTINGS)


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_image_once_over_all_processes(shapes_set, data_config, processes):
    seen = []
    lengths = set()
    for index in range(processes):
        found = take(eval_batches(shapes_set, data_config, batch_size=4, process_index=index, process_count=processes))
        lengths.add(len(found))
        for batch in found:
            filler = batch.image_indices == FILLER
            assert not batch.images[filler].any()
            assert not batch.gt_mask[filler].any()
            assert (batch.sizes[filler] == 32).all()
            seen += batch.image_indices[~filler].tolist()
    assert sorted(seen) == list(range(23))
    assert len(lengths) == 1  # all processes take the same number of steps


def test_evaluation_changes_nothing_but_the_scale(shapes_set, data_config):
    for batch in take(eval_batches(shapes_set, data_config, batch_size=4)):
        for i in np.flatnonzero(batch.image_indices != FILLER):
            boxes = batch.gt_boxes[i, batch.gt_mask[i]] / batch.scales[i][[1, 0, 1, 0]]
            np.testing.assert_allclose(boxes, shapes_set.images[batch.image_indices[i]].boxes, atol=1e-3)


def test_too_many_objects_leave_the_largest_and_are_counted(shapes_set, data_config):
    stream = eval_batches(shapes_set, replace(data_config, max_objects=2), batch_size=4)
    for batch in take(stream):
        for i in np.flatnonzero(batch.image_indices != FILLER):
            record = shapes_set.images[batch.image_indices[i]]
            areas = sorted(np.prod(record.boxes[:, 2:] - record.boxes[:, :2], axis=1), reverse=True)
            boxes = batch.gt_boxes[i, batch.gt_mask[i]] / batch.scales[i][[1, 0, 1, 0]]
            kept = sorted(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), reverse=True)
            np.testing.assert_allclose(kept, areas[:2], rtol=1e-3)
    objects = [len(one.labels) for one in shapes_set.images]
    assert stream.counts.truncated_objects == sum(max(0, count - 2) for count in objects)
    assert stream.counts.truncated_images == sum(count > 2 for count in objects)
    assert "exceeded data.max_objects" in stream.counts.summary()


def test_a_row_has_exactly_its_planned_size_even_if_long_and_thin(tmp_path):
    cv2.imwrite(str(tmp_path / "thin.png"), np.full((10, 1000, 3), 9, np.uint8))
    record = ImageRecord(1, tmp_path / "thin.png", 1000, 10, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    sample = load_sample(record, Row(0, (13, 1333)))
    assert sample.image.shape == (13, 1333, 3)
    np.testing.assert_allclose(sample.scale, [1.3, 1.333], rtol=1e-6)


@pytest.mark.parametrize("evaluate", [False, True])
def test_a_broken_image_stops_and_is_named(damaged, data_config, evaluate):
    dataset, damage = damaged
    damage(3)
    if evaluate:
        stream = eval_batches(dataset, data_config, batch_size=4)
    else:
        stream = train_batches(dataset, data_config, **SETTINGS)
    with pytest.raises(BrokenImageError, match=r"000004\.jpg is truncated.*data\.broken_images=skip"):
        take(stream)


def test_skipped_images_are_replaced_in_training_and_counted(damaged, data_config):
    dataset, damage = damaged
    whole = take(train_batches(dataset, data_config, **SETTINGS))
    damage(3, 4)
    data = replace(data_config, broken_images="skip")
    stream = train_batches(dataset, data, **SETTINGS)
    skipped = take(stream)
    assert_equal(take(train_batches(dataset, replace(data, threads=1), **SETTINGS)), skipped)
    stand_ins = 0
    for before, after in zip(whole, skipped, strict=True):
        broken = np.isin(before.image_indices, (3, 4))
        stand_ins += broken.sum()
        assert (after.image_indices[broken] == 5).all()
        for name, a, b in zip(Batch._fields, before, after, strict=True):
            np.testing.assert_array_equal(a[~broken], b[~broken], err_msg=name)
        for i in np.flatnonzero(broken):
            record, size = dataset.images[5], after.sizes[i]
            assert (size <= before.sizes[i]).all()
            np.testing.assert_allclose(after.scales[i], size / [record.height, record.width], rtol=1e-6)
            assert abs(after.scales[i][0] / after.scales[i][1] - 1) < 0.05  # its own ratio
    assert stand_ins > 0
    assert sum(stream.counts.broken.values()) >= stand_ins
    assert "of 2 broken images were skipped" in stream.counts.summary()
    assert "000004.jpg is truncated" in stream.counts.summary()


def test_skipped_images_become_fillers_in_evaluation(damaged, data_config):
    dataset, damage = damaged
    damage(0, 22)
    stream = eval_batches(dataset, replace(data_config, broken_images="skip"), batch_size=4)
    seen = [index for batch in take(stream) for index in batch.image_indices.tolist() if index != FILLER]
    assert sorted(seen) == list(range(1, 22))
    assert sum(stream.counts.broken.values()) == 2


def test_if_no_image_can_be_decoded_skipping_ends(damaged, data_config):
    dataset, damage = damaged
    damage(*range(23))
    with pytest.raises(DataError, match=r"Not one image of the set can be decoded; .*\.jpg is trunc"):
        take(train_batches(dataset, replace(data_config, broken_images="skip"), **SETTINGS))


def test_a_closed_stream_leaves_no_thread_at_work(shapes_set, data_config):
    stream = train_batches(shapes_set, data_config, **SETTINGS)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []


def test_exif_rotated_files_fit_their_boxes_whichever_way_they_were_annotated(tmp_path, data_config):
    """A bright square, stored sideways: its box holds it, in the frame that the JSON's width and height tell."""
    from PIL import Image

    raw = np.zeros((60, 100, 3), np.uint8)
    raw[10:30, 70:90] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # upright is the raw picture turned clockwise
    Image.fromarray(raw).save(tmp_path / "a.png", exif=exif)
    for size, box in (((60, 100), [70, 10, 90, 30]), ((100, 60), [30, 70, 50, 90])):
        boxes = np.array([box], np.float32)
        record = ImageRecord(1, Path(tmp_path / "a.png"), size[1], size[0], boxes, np.zeros(1, np.int32))
        for flip, vertical in ((False, False), (True, False), (False, True)):
            sample = load_sample(record, Row(0, size, flip, vertical))
            x0, y0, x1, y1 = sample.boxes[0].astype(int)
            assert sample.image.shape[:2] == size
            assert (sample.image[y0:y1, x0:x1] == 255).all()
            assert sample.image.sum() == raw.sum()


def test_pixels_lie_where_boxes_say(tmp_path, data_config):
    """A red rectangle in each file: after resizing and flipping, the box holds it to within a pixel."""
    random = np.random.default_rng(0)
    records = []
    for number in range(12):
        height, width = random.integers(60, 140, 2).tolist()
        x0, y0 = random.integers(2, 20, 2).tolist()
        x1, y1 = random.integers(40, 58, 2).tolist()
        image = np.zeros((height, width, 3), np.uint8)
        image[y0:y1, x0:x1] = (0, 0, 255)  # OpenCV writes BGR
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), image)
        box = np.array([[x0, y0, x1, y1]], np.float32)
        records.append(ImageRecord(number, path, width, height, box, np.zeros(1, np.int32)))
    dataset = CocoSet((ClassInfo(1, "red"),), tuple(records), LoadReport(), ())
    streams = (
        train_batches(dataset, replace(data_config, vertical_flip_probability=0.5), **SETTINGS),
        eval_batches(dataset, data_config, batch_size=4),
    )
    for batch in (batch for stream in streams for batch in take(stream)):
        for i in np.flatnonzero(batch.image_indices != FILLER):
            red = batch.images[i, ..., 0] >= 128
            rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
            extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(batch.gt_boxes[i, 0], extent, atol=1)
            assert not batch.images[i, ..., 1:].any()
    for batch in take(eval_batches(dataset, data_config, batch_size=4)):  # back in the file, to half a pixel
        for i in np.flatnonzero(batch.image_indices != FILLER):
            boxes = batch.gt_boxes[i, 0] / batch.scales[i][[1, 0, 1, 0]]
            np.testing.assert_allclose(boxes, records[batch.image_indices[i]].boxes[0], atol=0.5)


def test_scaled_decoding_changes_pixels_a_little_and_boxes_not_at_all(tmp_path, data_config):
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8), (640, 480))
    cv2.imwrite(str(tmp_path / "a.jpg"), image)
    boxes, labels = np.array([[100, 50, 300, 400]], np.float32), np.zeros(1, np.int32)
    record = ImageRecord(1, tmp_path / "a.jpg", 640, 480, boxes, labels)
    dataset = CocoSet((ClassInfo(1, "x"),), (record,), LoadReport(), ())
    (plain,) = take(eval_batches(dataset, data_config, batch_size=1))
    (scaled,) = take(eval_batches(dataset, replace(data_config, scaled_decoding=True), batch_size=1))
    difference = np.abs(plain.images.astype(int) - scaled.images)
    assert 0 < difference.mean() < 2
    assert_equal([plain._replace(images=scaled.images)], [scaled])


def test_the_log_hears_of_canvases_padding_and_shrunk_images(shapes_set, data_config):
    plan = TrainPlan(sizes_of(shapes_set), data_config, 4, 5)
    epoch = [plan.batch(step) for step in range(plan.epoch_steps)]
    number = len({batch.canvas for batch in epoch})
    padding = round(100 * padding_share(epoch))
    assert describe_batches(shapes_set, data_config, 4, 5) == f"{number} canvases, {padding} % padding"
    one = replace(data_config, buckets=((64, 64),))
    text = describe_batches(shapes_set, one, 4, 5)
    wide = sum(max(size) / min(size) * 64 >= 64.5 for size in sizes_of(shapes_set))
    assert text.startswith("1 canvas, ")
    assert text.endswith(f", {wide} images shrunk because they fit none of data.buckets")


def test_counts_add_up_and_travel():
    counts = DataCounts()
    assert counts.summary() == ""
    counts.add(DataCounts(3, 1))
    counts.broken["a"] += 2
    counts.add(pickle.loads(pickle.dumps(counts)))
    assert (counts.truncated_objects, counts.truncated_images, counts.broken) == (6, 2, {"a": 4})


def test_decoding_is_repeatable(shapes_set):
    images = [decode_image(shapes_set.images[0].path) for _ in range(3)]
    assert all(np.array_equal(a, b) for a, b in pairwise(images))
