"""One image on its canvas: the same in training, evaluation, predict.py and compare_torch.py."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.data.helpers import smooth_image, take_all
from tood_jax.config import DataConfig
from tood_jax.data.dataset import AnnotatedImage, ClassInfo, Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.image_io import decode_image
from tood_jax.data.load_report import LoadReport
from tood_jax.data.loader import eval_batches, train_batches
from tood_jax.data.preprocess import (
    FILLER,
    Sample,
    canvases,
    choose_canvas,
    empty_batch,
    preprocess,
    single_image_batch,
    write_sample,
)
from tood_jax.tools.compare_torch.inputs import example_batch

DATA = DataConfig(
    train_short_side=(64, 64),
    eval_short_side=64,
    max_long_side=64,
    buckets=((64, 64), (64, 128), (128, 64)),
    flip_probability=0.0,
    max_objects=4,
)


@pytest.mark.parametrize("size", [(60, 80), (80, 60), (100, 100), (32, 32), (64, 48)])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_training_evaluation_prediction_and_comparison_give_the_same_canvas(tmp_path, size, kind):
    path = tmp_path / f"a.{kind}"
    cv2.imwrite(str(path), smooth_image(*size))
    boxes, labels = np.array([[3, 5, 20, 30]], np.float32), np.array([2], np.int32)
    image = AnnotatedImage(1, path, size[1], size[0], boxes, labels)
    dataset = Dataset((ClassInfo(1, "x"),), (image,), LoadReport(), ())
    (train,) = take_all(train_batches(dataset, DATA, batch_size=1, seed=0, start_step=0, num_steps=1))
    (evaluation,) = take_all(eval_batches(dataset, DATA, batch_size=1))
    prediction = single_image_batch(decode_image(path), DATA)
    comparison = example_batch(1, 64, 64, num_classes=3, seed=0, files=[str(path)])
    for batch in (evaluation, prediction, comparison):
        for field in ("images", "sizes", "scales", "image_indices"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(train, field), err_msg=field)
    for field in ("gt_boxes", "gt_labels", "gt_mask"):
        np.testing.assert_array_equal(getattr(evaluation, field), getattr(train, field), err_msg=field)
    height, width = train.sizes[0]
    scale = (height / size[0], width / size[1])
    resized = cv2.resize(decode_image(path), (int(width), int(height)), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(train.images[0, :height, :width], resized)
    np.testing.assert_array_equal(train.scales[0], np.float32(scale))
    np.testing.assert_allclose(train.gt_boxes[0, 0], boxes[0] * ([scale[1], scale[0]] * 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 100), ((64, 64), (64, 64))),
        ((100, 150), ((64, 128), (64, 96))),
        ((150, 100), ((128, 64), (96, 64))),
        ((100, 400), ((64, 128), (32, 128))),
    ],
)
def test_the_smallest_canvas_that_holds_the_image_is_chosen(size, expected):
    assert choose_canvas(size, 64, 128, canvases(DATA)) == expected


def test_an_image_that_fits_no_canvas_is_shrunk_to_the_largest():
    canvas, size = choose_canvas((100, 300), 300, 900, canvases(DATA))
    assert canvas == (128, 128)
    assert size == (42, 128)


def test_the_last_canvas_holds_all_buckets():
    assert canvases(DATA) == ((64, 64), (64, 128), (128, 64), (128, 128))
    assert canvases(replace(DATA, buckets=((64, 64),))) == ((64, 64),)


@pytest.mark.parametrize("buckets", [(), ((100, 128),), ((0, 64),), ((-32, 64),), ((64, 64), (64, 65))])
def test_invalid_buckets_are_refused(buckets):
    with pytest.raises(DataError, match=r"data\.buckets .* multiples of 32"):
        canvases(replace(DATA, buckets=buckets))


def test_boxes_refer_to_the_original_image_after_scaled_decoding():
    boxes = np.array([[10, 20, 30, 40]], np.float32)
    whole = preprocess(smooth_image(80, 60), (20, 15), boxes=boxes)
    reduced = preprocess(smooth_image(40, 30), (20, 15), original_size=(80, 60), boxes=boxes)
    np.testing.assert_array_equal(reduced.boxes, whole.boxes)
    np.testing.assert_array_equal(reduced.scale, whole.scale)


def test_only_the_row_of_a_sample_is_written():
    batch = empty_batch(3, (32, 64), max_objects=2)
    boxes = np.array([[0, 0, 4, 4], [0, 0, 2, 2], [1, 1, 9, 9]], np.float32)
    sample = Sample(np.full((8, 10, 3), 7, np.uint8), np.ones(2, np.float32), boxes, np.array([0, 1, 2], np.int32))
    assert write_sample(batch, 1, sample, 5) == 1  # the smallest object is left out
    assert batch.image_indices.tolist() == [FILLER, 5, FILLER]
    assert batch.gt_labels[1].tolist() == [0, 2]
    assert batch.images.sum() == batch.images[1, :8, :10].sum() == 8 * 10 * 3 * 7
    assert not batch.gt_mask[[0, 2]].any()
