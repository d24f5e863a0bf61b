"""Batches of image files: their content, which depends only on the step, and broken files."""

import errno
import json
import os
import pickle
import re
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.helpers import SETTINGS, assert_batches_equal, sizes_of, take_all
from tood_jax.data.counts import DataCounts
from tood_jax.data.dataset import AnnotatedImage, ClassInfo, Dataset
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.image_io import decode_image
from tood_jax.data.load_report import LoadReport
from tood_jax.data.loader import describe_batches, eval_batches, load_sample, train_batches
from tood_jax.data.preprocess import FILLER
from tood_jax.data.sampler import RowSpec, TrainSampler, padding_share
from tood_jax.types import Batch


def test_shapes_and_types(batches, data_config):
    for batch in batches:
        height, width = batch.images.shape[1:3]
        assert (height, width) in {*data_config.buckets, (96, 96)}
        assert [(array.shape, array.dtype.name) for array in batch] == [
            ((4, height, width, 3), "uint8"),
            ((4, 2), "int32"),
            ((4, 2), "float32"),
            ((4, 6, 4), "float32"),
            ((4, 6), "int32"),
            ((4, 6), "bool"),
            ((4,), "int32"),
        ]


def test_rows_follow_their_files_and_the_sampler(batches, shapes_set, data_config):
    sampler = TrainSampler(sizes_of(shapes_set), data_config, 4, 5)
    for step, batch in enumerate(batches):
        assert batch.image_indices.tolist() == [row.index for row in sampler.batch(step).rows]
        for i, row in enumerate(sampler.batch(step).rows):
            image = shapes_set.images[row.index]
            height, width = batch.sizes[i]
            assert (height, width) == row.size
            assert not batch.images[i, height:].any()
            assert not batch.images[i, :, width:].any()
            np.testing.assert_allclose(batch.scales[i], [height / image.height, width / image.width], rtol=1e-6)
            assert batch.gt_mask[i].sum() == len(image.labels)
            assert batch.gt_mask[i, : len(image.labels)].all()
            assert batch.gt_labels[i, batch.gt_mask[i]].tolist() == image.labels.tolist()
            assert not batch.gt_boxes[i, ~batch.gt_mask[i]].any()
            # Converted back to pixels of the file, the boxes are those of the file.
            boxes = batch.gt_boxes[i, batch.gt_mask[i]]
            if row.flip:
                boxes = np.array([width, 0, width, 0]) + boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1]
            if row.vertical_flip:
                boxes = np.array([0, height, 0, height]) + boxes[:, [0, 3, 2, 1]] * [1, -1, 1, -1]
            np.testing.assert_allclose(boxes / batch.scales[i][[1, 0, 1, 0]], image.boxes, atol=1e-3)


def test_images_without_objects_are_used_in_training(batches, shapes_set):
    empty = {i for i, image in enumerate(shapes_set.images) if len(image.labels) == 0}
    seen = [row for batch in batches for row in zip(batch.image_indices, batch.gt_mask.any(axis=1), strict=True)]
    assert any(index in empty for index, _ in seen)
    assert all((index in empty) != has_objects for index, has_objects in seen)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_any_number_of_threads_gives_identical_batches(batches, shapes_set, data_config, threads):
    again = take_all(train_batches(shapes_set, replace(data_config, threads=threads), **SETTINGS))
    assert_batches_equal(again, batches)


@pytest.mark.parametrize("start", [1, 4, 5, 7])
def test_a_later_start_gives_the_same_batches(batches, shapes_set, data_config, start):
    remaining = {**SETTINGS, "start_step": start, "num_steps": 8 - start}
    assert_batches_equal(take_all(train_batches(shapes_set, data_config, **remaining)), batches[start:])


@pytest.mark.parametrize("count", [2, 4])
def test_the_rows_of_all_processes_are_the_global_batch(batches, shapes_set, data_config, count):
    settings = {**SETTINGS, "process_count": count}
    parts = [take_all(train_batches(shapes_set, data_config, process_index=i, **settings)) for i in range(count)]
    joined = [Batch(*map(np.concatenate, zip(*batches_, strict=True))) for batches_ in zip(*parts, strict=True)]
    assert_batches_equal(joined, batches)


def test_a_batch_that_is_not_divisible_by_the_processes_is_refused(shapes_set, data_config):
    with pytest.raises(DataError, match="4 images can't be shared by 3 processes"):
        train_batches(shapes_set, data_config, process_count=3, **SETTINGS)


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_contains_every_image_once_over_all_processes(shapes_set, data_config, processes):
    seen = []
    lengths = set()
    for index in range(processes):
        found = take_all(
            eval_batches(shapes_set, data_config, batch_size=4, process_index=index, process_count=processes)
        )
        lengths.add(len(found))
        for batch in found:
            filler = batch.image_indices == FILLER
            assert not batch.images[filler].any()
            assert not batch.gt_mask[filler].any()
            assert (batch.sizes[filler] == 32).all()
            seen += batch.image_indices[~filler].tolist()
    assert sorted(seen) == list(range(23))
    assert len(lengths) == 1  # all processes take the same number of steps


def test_evaluation_changes_only_the_scale(shapes_set, data_config):
    for batch in take_all(eval_batches(shapes_set, data_config, batch_size=4)):
        for i in np.flatnonzero(batch.image_indices != FILLER):
            boxes = batch.gt_boxes[i, batch.gt_mask[i]] / batch.scales[i][[1, 0, 1, 0]]
            np.testing.assert_allclose(boxes, shapes_set.images[batch.image_indices[i]].boxes, atol=1e-3)


def test_of_too_many_objects_the_largest_are_kept_and_the_others_counted(shapes_set, data_config):
    few = replace(data_config, max_objects=2)
    iterator = train_batches(shapes_set, few, batch_size=4, seed=5, start_step=0, num_steps=5)
    objects = []
    for batch in take_all(iterator):
        for i, index in enumerate(batch.image_indices):
            image = shapes_set.images[index]
            areas = sorted(np.prod(image.boxes[:, 2:] - image.boxes[:, :2], axis=1), reverse=True)
            boxes = batch.gt_boxes[i, batch.gt_mask[i]] / batch.scales[i][[1, 0, 1, 0]]
            kept = sorted(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), reverse=True)
            np.testing.assert_allclose(kept, areas[:2], rtol=1e-3)
            objects.append(len(image.labels))
    assert iterator.counts.truncated_objects == sum(max(0, count - 2) for count in objects) > 0
    assert iterator.counts.truncated_images == sum(count > 2 for count in objects)
    assert "exceeded data.max_objects" in iterator.counts.summary()


def test_evaluation_counts_no_left_out_objects_because_it_compares_all_of_the_file(shapes_set, data_config):
    iterator = eval_batches(shapes_set, replace(data_config, max_objects=1), batch_size=4)
    take_all(iterator)
    assert iterator.counts.summary() == ""


def test_a_long_and_thin_image_has_exactly_the_size_of_its_row(tmp_path):
    cv2.imwrite(str(tmp_path / "thin.png"), np.full((10, 1000, 3), 9, np.uint8))
    image = AnnotatedImage(1, tmp_path / "thin.png", 1000, 10, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    sample = load_sample(image, RowSpec(0, (13, 1333)))
    assert sample.image.shape == (13, 1333, 3)
    np.testing.assert_allclose(sample.scale, [1.3, 1.333], rtol=1e-6)


@pytest.mark.parametrize("evaluate", [False, True])
def test_a_broken_image_raises_and_is_named(breakable, data_config, evaluate):
    dataset, truncate = breakable
    truncate(3)
    if evaluate:
        iterator = eval_batches(dataset, data_config, batch_size=4)
    else:
        iterator = train_batches(dataset, data_config, **SETTINGS)
    with pytest.raises(BrokenImageError, match=r"000004\.jpg is truncated.*data\.broken_images=skip"):
        take_all(iterator)


def test_skipped_images_are_replaced_in_training_and_counted(breakable, data_config):
    dataset, truncate = breakable
    unbroken = take_all(train_batches(dataset, data_config, **SETTINGS))
    truncate(3, 4)
    data = replace(data_config, broken_images="skip")
    iterator = train_batches(dataset, data, **SETTINGS)
    skipped = take_all(iterator)
    assert_batches_equal(take_all(train_batches(dataset, replace(data, threads=1), **SETTINGS)), skipped)
    replaced = 0
    for before, after in zip(unbroken, skipped, strict=True):
        broken = np.isin(before.image_indices, (3, 4))
        replaced += broken.sum()
        assert (after.image_indices[broken] == 5).all()
        for name, a, b in zip(Batch._fields, before, after, strict=True):
            np.testing.assert_array_equal(a[~broken], b[~broken], err_msg=name)
        for i in np.flatnonzero(broken):
            image, size = dataset.images[5], after.sizes[i]
            assert (size <= before.sizes[i]).all()
            np.testing.assert_allclose(after.scales[i], size / [image.height, image.width], rtol=1e-6)
            assert abs(after.scales[i][0] / after.scales[i][1] - 1) < 0.05  # it keeps its aspect ratio
    assert replaced > 0
    assert sum(iterator.counts.broken.values()) >= replaced
    assert "of 2 broken images were skipped" in iterator.counts.summary()
    assert "000004.jpg is truncated" in iterator.counts.summary()


def test_skipped_images_become_fillers_in_evaluation(breakable, data_config):
    dataset, truncate = breakable
    truncate(0, 22)
    iterator = eval_batches(dataset, replace(data_config, broken_images="skip"), batch_size=4)
    seen = [index for batch in take_all(iterator) for index in batch.image_indices.tolist() if index != FILLER]
    assert sorted(seen) == list(range(1, 22))
    assert sum(iterator.counts.broken.values()) == 2


def test_if_no_image_can_be_decoded_skipping_raises(breakable, data_config):
    dataset, truncate = breakable
    truncate(*range(23))
    with pytest.raises(DataError, match=r"No image of the data set can be decoded; .*\.jpg is trunc"):
        take_all(train_batches(dataset, replace(data_config, broken_images="skip"), **SETTINGS))


def test_an_iterator_may_be_closed_twice_and_is_empty_then(shapes_set, data_config):
    iterator = train_batches(shapes_set, data_config, **SETTINGS)
    next(iterator)
    iterator.close()
    iterator.close()
    assert list(iterator) == []


def test_boxes_fit_exif_rotated_files_that_were_annotated_in_either_orientation(tmp_path):
    """The box holds a bright square, in the orientation that the JSON's width and height have."""
    raw = np.zeros((60, 100, 3), np.uint8)
    raw[10:30, 70:90] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the upright image is the stored one rotated clockwise
    Image.fromarray(raw).save(tmp_path / "a.png", exif=exif)
    for size, box in (((60, 100), [70, 10, 90, 30]), ((100, 60), [30, 70, 50, 90])):
        boxes = np.array([box], np.float32)
        image = AnnotatedImage(1, tmp_path / "a.png", size[1], size[0], boxes, np.zeros(1, np.int32))
        for flip, vertical in ((False, False), (True, False), (False, True)):
            sample = load_sample(image, RowSpec(0, size, flip, vertical))
            x0, y0, x1, y1 = sample.boxes[0].astype(int)
            assert sample.image.shape[:2] == size
            assert (sample.image[y0:y1, x0:x1] == 255).all()
            assert sample.image.sum() == raw.sum()


def test_boxes_match_the_pixels_after_resizing_and_flipping(tmp_path, data_config):
    """Each file has a red rectangle, and its box matches it within a pixel."""
    random = np.random.default_rng(0)
    images = []
    for number in range(12):
        height, width = random.integers(60, 140, 2).tolist()
        x0, y0 = random.integers(2, 20, 2).tolist()
        x1, y1 = random.integers(40, 58, 2).tolist()
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y0:y1, x0:x1] = (0, 0, 255)  # OpenCV writes BGR
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), pixels)
        box = np.array([[x0, y0, x1, y1]], np.float32)
        images.append(AnnotatedImage(number, path, width, height, box, np.zeros(1, np.int32)))
    dataset = Dataset((ClassInfo(1, "red"),), tuple(images), LoadReport(), ())
    iterators = (
        train_batches(dataset, replace(data_config, vertical_flip_probability=0.5), **SETTINGS),
        eval_batches(dataset, data_config, batch_size=4),
    )
    for batch in (batch for iterator in iterators for batch in take_all(iterator)):
        for i in np.flatnonzero(batch.image_indices != FILLER):
            red = batch.images[i, ..., 0] >= 128
            rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
            extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(batch.gt_boxes[i, 0], extent, atol=1)
            assert not batch.images[i, ..., 1:].any()
    for batch in take_all(eval_batches(dataset, data_config, batch_size=4)):  # in pixels of the file
        for i in np.flatnonzero(batch.image_indices != FILLER):
            boxes = batch.gt_boxes[i, 0] / batch.scales[i][[1, 0, 1, 0]]
            np.testing.assert_allclose(boxes, images[batch.image_indices[i]].boxes[0], atol=0.5)


def test_scaled_decoding_changes_pixels_a_little_and_boxes_not_at_all(tmp_path, data_config):
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8), (640, 480))
    cv2.imwrite(str(tmp_path / "a.jpg"), pixels)
    boxes, labels = np.array([[100, 50, 300, 400]], np.float32), np.zeros(1, np.int32)
    image = AnnotatedImage(1, tmp_path / "a.jpg", 640, 480, boxes, labels)
    dataset = Dataset((ClassInfo(1, "x"),), (image,), LoadReport(), ())
    (plain,) = take_all(eval_batches(dataset, data_config, batch_size=1))
    (scaled,) = take_all(eval_batches(dataset, replace(data_config, scaled_decoding=True), batch_size=1))
    difference = np.abs(plain.images.astype(int) - scaled.images)
    assert 0 < difference.mean() < 2
    assert_batches_equal([plain._replace(images=scaled.images)], [scaled])


def test_the_description_names_canvases_padding_and_shrunk_images(shapes_set, data_config):
    sampler = TrainSampler(sizes_of(shapes_set), data_config, 4, 5)
    epoch = [sampler.batch(step) for step in range(sampler.epoch_steps)]
    number = len({batch.canvas for batch in epoch})
    padding = round(100 * padding_share(epoch))
    assert describe_batches(shapes_set, data_config, 4, 5) == f"{number} canvases, {padding} % padding"
    single_bucket = replace(data_config, buckets=((64, 64),))
    text = describe_batches(shapes_set, single_bucket, 4, 5)
    wide = sum(max(size) / min(size) * 64 >= 64.5 for size in sizes_of(shapes_set))
    assert text.startswith("1 canvas, ")
    assert text.endswith(f", {wide} images shrunk because they fit none of data.buckets")


def test_counts_can_be_added_pickled_and_converted():
    counts = DataCounts()
    assert counts.summary() == ""
    counts.add(DataCounts(3, 1))
    counts.broken["a"] += 2
    counts.add(pickle.loads(pickle.dumps(counts)))
    assert (counts.truncated_objects, counts.truncated_images, counts.broken) == (6, 2, {"a": 4})
    for number in range(9):
        counts.notice("odd images", f"{number % 7}.jpg")
    assert counts == DataCounts.from_plain(json.loads(json.dumps(counts.to_plain())))
    assert "9 readings of odd images (0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, …)." in counts.summary()


def write_dataset(folder, images):
    """Return a data set of images of 40 × 30 pixels with one box each; `images` maps names to functions that write."""
    folder.mkdir()
    for name, write in images.items():
        write(folder / name)
    box = np.float32([[1, 2, 20, 20]])
    annotated = [AnnotatedImage(i, folder / name, 40, 30, box, np.int32([0])) for i, name in enumerate(images)]
    return Dataset((ClassInfo(1, "a"),), tuple(annotated), LoadReport(), ())


@pytest.mark.parametrize("broken_images", ["fail", "skip"])
def test_deep_and_damaged_images_are_used_counted_and_named(tmp_path, data_config, broken_images):
    rng = np.random.default_rng(0)
    intact = cv2.imencode(".jpg", rng.integers(0, 255, (30, 40, 3), np.uint8))[1].tobytes()
    dataset = write_dataset(
        tmp_path / "set",
        {
            "deep\n.png": lambda file: file.write_bytes(cv2.imencode(".png", np.full((30, 40), 3000, np.uint16))[1]),
            "damaged.jpg": lambda file: file.write_bytes(intact[:-102] + bytes(100) + intact[-2:]),
            "intact.jpg": lambda file: file.write_bytes(intact),
        },
    )
    data = replace(data_config, broken_images=broken_images, bit_depth=12)
    iterator = eval_batches(dataset, data, batch_size=3)
    (batch,) = take_all(iterator)
    assert sorted(batch.image_indices) == [0, 1, 2]
    summary = iterator.counts.summary()
    assert re.search(r"1 readings of images of more than 8 bits per channel.* \(\S*deep\\n\.png\)", summary)
    assert re.search(r"1 readings of JPEG files with damaged data inside.* \(\S*damaged\.jpg\)", summary)
    deep = batch.images[list(batch.image_indices).index(0)]
    assert deep.max() == 3000 // 16  # the highest 8 of 12 bits


def test_a_failing_disk_raises_even_if_broken_images_are_skipped(tmp_path, data_config, monkeypatch):
    dataset = write_dataset(
        tmp_path / "set", {"a.png": lambda file: cv2.imwrite(str(file), np.zeros((30, 40), np.uint8))}
    )

    def fail(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("tood_jax.data.image_io.read_bytes", fail)
    iterator = eval_batches(dataset, replace(data_config, broken_images="skip"), batch_size=1)
    with pytest.raises(DataError, match=r"a\.png can't be read \(Input/output error\), which is not a fault of the"):
        next(iterator)
    assert not iterator.counts.broken


def test_too_little_shared_memory_raises_and_names_remedies(shapes_set, data_config, monkeypatch):
    usage = type("Usage", (), {"free": 30_000})
    monkeypatch.setattr("tood_jax.data.shared_memory.shutil.disk_usage", lambda folder: usage)
    settings = {**SETTINGS, "num_steps": 1}
    with pytest.raises(DataError, match=r"0 MB free, but 2 data workers need \d+ MB .* --shm-size=8g"):
        train_batches(shapes_set, replace(data_config, workers=2), **settings)
    take_all(train_batches(shapes_set, data_config, **settings))  # threads do not need it


def test_decoding_is_deterministic(shapes_set):
    images = [decode_image(shapes_set.images[0].path) for _ in range(3)]
    assert all(np.array_equal(a, b) for a, b in pairwise(images))
