"""Detections of views are merged: mapped to the image, parts of objects replaced, one NMS."""

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.config import DataConfig, DetectConfig
from tood_jax.data.preprocess import batch_by_canvas
from tood_jax.data.views import Placement, Views, parse_variants
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.evaluation.views import ViewMerger, merge_detections

DETECT = DetectConfig(nms_iou=0.6, max_detections=50)
DATA = DataConfig(eval_short_side=64, max_long_side=64, buckets=((64, 64),))
WHOLE = Placement((100, 200), (0, 0, 200, 100))


def found(boxes, scores, labels=None, non_finite=0):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes)) if labels is None else labels
    return ImageDetections(3, boxes, np.asarray(scores, np.float32), np.asarray(labels, np.int32), non_finite)


def detect_squares(batches):
    """A detector that sees every bright region of at least 16 pixels; its score is the brightness."""
    for batch in batches:
        for image, scale, index in zip(batch.images, batch.scales, batch.image_indices, strict=True):
            if index >= 0:
                count, _, stats, _ = cv2.connectedComponentsWithStats((image[:, :, 0] > 127).astype(np.uint8))
                rows = [one for one in stats[1:count] if one[4] >= 16]
                boxes = [np.asarray([x, y, x + w, y + h]) / np.tile(scale[::-1], 2) for x, y, w, h, _ in rows]
                scores = [0.4 + 0.5 * area / 64**2 for *_, area in rows]
                yield found(boxes, scores)._replace(image_index=int(index))


def run(image, views):
    merger = ViewMerger(DETECT)
    samples = merger.samples([(5, views.of(image, DATA))])
    (one,) = merger.merge(detect_squares(batch_by_canvas(samples, 4)))
    assert one.image_index == 5
    return one


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 8), st.integers(8, 26)), min_size=1, max_size=20), st.data()
)
def test_tiles_find_each_small_object_of_a_large_image_once(cells, data):
    """Squares, each in a cell of 50 pixels and smaller than the overlap: exactly their boxes, also across borders."""
    image = np.zeros((450, 600, 3), np.uint8)
    expected = {}
    for column, row, side in cells:
        if (column, row) not in expected:
            x, y = (50 * cell + data.draw(st.integers(1, 22)) for cell in (column, row))
            image[y : y + side, x : x + side] = 255
            expected[column, row] = (x, y, x + side, y + side)
    one = run(image, Views(tiles=64, overlap=0.5))
    boxes = sorted(tuple(map(int, box)) for box in one.boxes)
    assert boxes == sorted(expected.values())


def test_an_object_larger_than_a_tile_is_found_in_the_whole_image_alone():
    image = np.zeros((256, 256, 3), np.uint8)
    image[32:228, 16:240] = 255
    one = run(image, Views(tiles=64, overlap=0.25))
    np.testing.assert_array_equal(one.boxes, [[16, 32, 240, 228]])
    assert len(run(image, Views(tiles=64, variants=parse_variants("flip"))).boxes) == 1


def test_small_objects_need_the_tiles():
    image = np.zeros((1024, 1024, 3), np.uint8)
    image[500:512, 700:712] = 255
    assert len(run(image, Views()).boxes) == 0
    np.testing.assert_array_equal(run(image, Views(tiles=64)).boxes, [[700, 500, 712, 512]])


def test_a_part_is_kept_where_no_good_whole_detection_of_its_class_covers_it():
    """Tile x 0–100 of 200; the box ends at x 100, which is inside the image."""
    tile = Placement((100, 200), (0, 0, 100, 100))
    part = found([[60, 20, 100, 60]], [0.8])
    whole_box = [50, 20, 140, 60]
    for whole, count in (
        (found([whole_box], [0.5]), 1),
        (found([whole_box], [0.3]), 2),  # less than half of its score
        (found([whole_box], [0.5], [1]), 2),  # another class
        (found([[85, 20, 140, 60]], [0.7]), 2),  # covers 15 of 40 pixels
        (found([], []), 1),
    ):
        merged = merge_detections([(WHOLE, whole), (tile, part)], DETECT)
        assert len(merged.boxes) == count
    outside = found([[0, 20, 40, 60]], [0.8])  # ends at a border of the image: it is no part
    assert len(merge_detections([(WHOLE, found([[0, 20, 70, 60]], [0.5])), (tile, outside)], DETECT).boxes) == 2


def test_flipped_boxes_are_mirrored_back_and_merged():
    flipped = WHOLE._replace(is_flipped=True)
    views = [(WHOLE, found([[10, 20, 50, 60]], [0.5], non_finite=1)), (flipped, found([[151, 20, 190, 60]], [0.7]))]
    merged = merge_detections([*views, (flipped, found([[0, 0, 9, 9]], [0.6], [1], 2))], DETECT)
    np.testing.assert_array_equal(merged.boxes, [[10, 20, 49, 60], [191, 0, 200, 9]])
    np.testing.assert_allclose(merged.scores, [0.7, 0.6])
    assert merged.labels.tolist() == [0, 1]
    assert (merged.image_index, merged.non_finite) == (3, 3)


def test_no_detections_and_more_than_are_kept():
    assert merge_detections([(WHOLE, found([], []))] * 2, DETECT).boxes.shape == (0, 4)
    rng = np.random.default_rng(0)
    corners = np.arange(300)[:, None] * [0.6, 0.3]
    many = found(np.concatenate([corners, corners + 0.1], axis=1), rng.permutation(300) / 400 + 0.1)
    merged = merge_detections([(WHOLE, many)] * 2, DETECT)
    np.testing.assert_array_equal(merged.scores, np.sort(many.scores)[::-1][:50])
