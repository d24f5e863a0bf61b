"""An augmented box stays on the pixels of its object; what leaves the image is dropped by a stated rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.augmentation import painted
from tests.data.augmentation.painted import augment, data_of, painted_extent, records
from tood_jax.data.augmentation.geometry import draw_view, move_boxes, visible_boxes
from tood_jax.data.augmentation.presets import LIGHT, NONE, PRESETS, Augmentation, augmentation_of
from tood_jax.data.errors import DataError
from tood_jax.data.preprocess import preprocess

SEEDS = st.integers(0, 2**32 - 1)
SIZE = (72, 96)  # planned, pixels: smaller than the made images
TOLERANCE = 2.0  # pixels: of interpolation, and of the tips of rotated rectangles
MEASURABLE = 4.0  # shortest side of a box that is compared, pixels


def assert_boxes_on_pixels(images, data, seed, equal):
    """Paint one object after another and compare; `equal`: the box is not larger than the pixels either."""
    sample = augment(images, data, SIZE, (seed,), flip=bool(seed % 2), vertical_flip=bool(seed % 3))
    height, width = sample.image.shape[:2]
    assert (height, width) <= SIZE
    assert (sample.boxes >= 0).all()
    assert (sample.boxes[:, 2:] <= (width, height)).all()
    for box, label in zip(sample.boxes, sample.labels, strict=True):
        if min(box[2:] - box[:2]) < MEASURABLE:
            continue
        image = augment(images, data, SIZE, (seed,), label, flip=bool(seed % 2), vertical_flip=bool(seed % 3)).image
        extent = painted_extent(image)
        assert extent is not None
        assert (extent[:2] >= box[:2] - TOLERANCE).all()
        assert (extent[2:] <= box[2:] + TOLERANCE).all()
        if equal(box, (height, width)):
            np.testing.assert_allclose(extent, box, atol=TOLERANCE)


def touches_no_border(box, size):
    return min(*box[:2], size[1] - box[2], size[0] - box[3]) > 0


@pytest.mark.parametrize("count", [1, 2, 4], ids=["alone", "mixup", "mosaic"])
@pytest.mark.parametrize("name", ["none", "light", "aerial"])
@given(seed=SEEDS)
def test_without_rotation_a_box_is_the_extent_of_its_pixels(name, count, seed):
    images = records(np.random.default_rng(seed), count)
    data = data_of(augmentation=name, rotation_degrees=0.0, min_visible=0.1)
    assert_boxes_on_pixels(images, data, seed, equal=lambda box, size: True)


@pytest.mark.parametrize("count", [1, 2])
@given(seed=SEEDS)
def test_with_rotation_and_shear_a_whole_box_is_the_extent_of_its_pixels(count, seed):
    """Where the image ends inside of a turned rectangle, the box may be larger than what is left of it."""
    images = records(np.random.default_rng(seed), count)
    data = data_of(augmentation="strong", min_visible=0.1)
    equal = touches_no_border if count == 1 else lambda box, size: False
    assert_boxes_on_pixels(images, data, seed, equal)


@given(seed=SEEDS)
def test_with_rotation_the_pixels_of_a_mosaic_are_in_their_box(seed):
    images = records(np.random.default_rng(seed), 4)
    data = data_of(augmentation="strong", rotation_degrees=180.0)
    assert_boxes_on_pixels(images, data, seed, equal=lambda box, size: False)


@given(seed=SEEDS, share=st.floats(0.01, 1))
def test_a_box_remains_if_the_share_of_its_pixels_inside_reaches_the_limit(seed, share):
    """Against counting pixels, of boxes on whole pixels."""
    random = np.random.default_rng(seed)
    corner, size = random.integers(-15, 25, (6, 2)), (20, 24)
    boxes = np.concatenate([corner, corner + random.integers(1, 20, (6, 2))], axis=1)
    clipped, remains = visible_boxes(boxes.astype(float), size, share)
    for box, kept, inside in zip(boxes, remains, clipped, strict=True):
        plane = np.zeros((60, 60), bool)
        plane[box[1] + 15 : box[3] + 15, box[0] + 15 : box[2] + 15] = True
        seen = plane[15 : 15 + size[0], 15 : 15 + size[1]]
        assert kept == (seen.any() and seen.sum() / plane.sum() >= share - 1e-6)
        if kept:
            rows, columns = np.nonzero(seen)
            np.testing.assert_array_equal(inside, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_parts_narrower_than_a_pixel_are_dropped():
    boxes = np.asarray([[-0.5, 0, 0.9, 9], [-0.5, 0, 1.1, 9]])
    assert visible_boxes(boxes, (20, 20), 0.1)[1].tolist() == [False, True]


@given(seed=SEEDS)
def test_a_crop_contains_the_centre_of_an_object(seed):
    random = np.random.default_rng(seed)
    (image,) = records(random, 1)
    size = (image.height, image.width)
    view = draw_view(size, image.boxes, SIZE, Augmentation(crop=1.0), random)
    x1, y1, x2, y2 = move_boxes(np.asarray([[0, 0, *view.size[::-1]]]), np.linalg.inv(view.matrix))[0]
    assert min(x1, y1) > -1e-6
    assert x2 < image.width + 1e-6
    assert y2 < image.height + 1e-6
    assert (x2 - x1) / image.width > 0.3 - 1e-6
    assert (y2 - y1) / image.height > 0.3 - 1e-6
    centers = (image.boxes[:, :2] + image.boxes[:, 2:]) / 2
    assert ((centers > (x1, y1)) & (centers < (x2, y2))).all(axis=1).any()


@given(seed=SEEDS)
def test_zoom_out_keeps_every_object_whole(seed):
    random = np.random.default_rng(seed)
    (image,) = records(random, 1)
    view = draw_view((image.height, image.width), image.boxes, SIZE, Augmentation(zoom_out=1.0), random)
    boxes = move_boxes(image.boxes, view.matrix)
    assert (boxes > -1e-6).all()
    assert (boxes[:, 2:] < np.add(view.size[::-1], 1e-6)).all()


@given(seed=SEEDS)
def test_a_part_of_a_mosaic_is_full_of_its_image(seed):
    random = np.random.default_rng(seed)
    (image,) = records(random, 1)
    view = draw_view((image.height, image.width), image.boxes, SIZE, LIGHT, random, fill=True)
    assert view.size == SIZE
    x1, y1, x2, y2 = move_boxes(np.asarray([[0, 0, image.width, image.height]]), view.matrix)[0]
    assert max(x1, y1) < 1e-6
    assert x2 > SIZE[1] - 1e-6
    assert y2 > SIZE[0] - 1e-6


def test_quarter_turns_are_exact_and_all_occur():
    box, found = np.asarray([[10, 20, 30, 60]]), set()
    for seed in range(40):
        view = draw_view((100, 100), box, (100, 100), Augmentation(quarter_turns=True), np.random.default_rng(seed))
        found.add(tuple(np.round(move_boxes(box, view.matrix)[0], 6).tolist()))
    assert found == {(10, 20, 30, 60), (40, 10, 80, 30), (70, 40, 90, 80), (20, 70, 60, 90)}


def test_an_image_that_no_augmentation_hits_is_that_of_training_without():
    (image,) = records(np.random.default_rng(3), 1)
    size = (48, round(48 * image.width / image.height))
    found = augment([image], data_of(augmentation="none"), size, (1,), 0, flip=True)
    plain = preprocess(painted.paint(image, 0), size, boxes=image.boxes, labels=image.labels, flip=True)
    np.testing.assert_array_equal(found.image, plain.image)
    np.testing.assert_allclose(found.boxes, plain.boxes, rtol=1e-5)
    np.testing.assert_array_equal(found.labels, plain.labels)


def test_an_image_without_objects_and_one_of_a_single_pixel():
    (image,) = records(np.random.default_rng(4), 1, objects=0)
    for count in (1, 2, 4):
        for size in ((1, 1), (1, 9), (8, 8)):
            sample = augment([image] * count, data_of(augmentation="strong"), size, (count,))
            assert sample.image.shape[0] <= size[0]
            assert sample.image.shape[1] <= size[1]
            assert sample.boxes.shape == (0, 4)
            assert sample.labels.shape == (0,)


def test_fields_of_the_config_replace_those_of_the_preset():
    assert augmentation_of(data_of()) == NONE
    assert augmentation_of(data_of(augmentation="light")) == LIGHT
    own = augmentation_of(
        data_of(augmentation="strong", mosaic_probability=0.0, mixup_probability=1.0, rotation_degrees=2.0)
    )
    assert (own.mosaic, own.mixup, own.rotation_degrees) == (0, 1, 2)
    assert own.crop == PRESETS["strong"].crop


class TestHook:
    def augmented(self, name, size=SIZE, key=(7,)):
        images = records(np.random.default_rng(8), 1)
        return augment(images, data_of(augment_hook=f"tests.data.augmentation.painted:{name}"), size, key, 0)

    def test_it_changes_image_and_objects(self):
        images = records(np.random.default_rng(8), 1)
        plain, halved = augment(images, data_of(), SIZE, (7,)), self.augmented("halve")
        assert halved.image.shape[0] == round(plain.image.shape[0] / 2)
        assert halved.labels.tolist() == [0]
        np.testing.assert_allclose(halved.boxes[0], plain.boxes[0] / 2, atol=1e-4)
        np.testing.assert_allclose(painted_extent(halved.image), halved.boxes[0], atol=TOLERANCE)

    def test_its_random_numbers_follow_the_key(self):
        first, again, other = (self.augmented("darken", key=key).image for key in ((1,), (1,), (2,)))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    def test_a_larger_image_is_brought_to_the_planned_size(self):
        sample, plain = self.augmented("double"), self.augmented("darken")
        assert sample.image.shape == plain.image.shape
        np.testing.assert_allclose(sample.boxes, plain.boxes, atol=1e-3)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("forget_labels", "it returned a tuple of ndarray, ndarray instead of three NumPy arrays"),
            ("float_image", r"its image is float64 \[\d+, \d+, 3\] instead of uint8"),
            ("flat_boxes", r"its boxes are float32 \[8\] instead of float32 \[n, 4\]"),
            ("too_many_labels", r"its labels are int\d+ \[3\] instead of int32 \[2\], one per box"),
            ("infinite_box", "a box is not finite"),
            ("unknown_label", "its labels range from 1000 to 1001 instead of 0 to 99"),
            ("NO_FUNCTION", "is no function: write module:function"),
            ("missing", "can't be imported .*: write module:function, and put the folder"),
        ],
    )
    def test_one_sentence_says_what_is_wrong(self, name, message):
        with pytest.raises(DataError, match=message) as caught:
            self.augmented(name)
        assert str(caught.value).startswith("data.augment_hook = ")
