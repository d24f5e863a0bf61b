"""Drawings and lists of what training sees."""

import numpy as np

from tood_jax.data.preprocess import Sample, empty_batch, write_sample
from tood_jax.geometry.locations import make_pyramid
from tood_jax.types import Assignment
from tood_jax.visualization.targets import draw_targets, list_targets

PYRAMID = make_pyramid(64, 64)  # 8 × 8 locations on P3, then 4 × 4, 2 × 2, 1, 1


def example():
    """Two objects in the first of two rows, the second a filler; the first object has three positives."""
    batch = empty_batch(2, (64, 64), max_objects=3)
    boxes = np.asarray([[0, 0, 30, 30], [40, 40, 60, 60]], np.float32)
    image = np.full((64, 48, 3), 90, np.uint8)
    write_sample(batch, 0, Sample(image, np.ones(2, np.float32), boxes, np.asarray([1, 0], np.int32)), 7)
    gt_index, soft_label, iou = np.full((2, 86), -1), np.zeros((2, 86)), np.zeros((2, 86))
    gt_index[0, [9, 10, 64 + 5]] = 0
    soft_label[0, [9, 10, 64 + 5]] = 0.9, 0.4, 0.1
    iou[0, [9, 10, 64 + 5]] = 0.9, 0.8, 0.1
    return batch, Assignment(gt_index, soft_label, iou, soft_label)


def test_objects_are_listed_with_their_positives():
    first, second = list_targets(*example(), PYRAMID)
    assert (first.row, first.position, first.label) == (0, 0, 1)
    assert first.positives == (2, 1, 0, 0, 0)
    assert first.describe_levels() == "P3:2 P4:1"
    np.testing.assert_allclose([first.largest_target, first.mean_iou], [0.9, 0.6])
    assert second.positives == (0,) * 5
    assert second.describe_levels() == "no positive"


def test_an_object_without_positives_is_red_and_fillers_are_not_drawn():
    batch, assignment = example()
    drawing = draw_targets(batch, assignment, PYRAMID, ("disc", "box"))
    factor = drawing.shape[0] // 64
    assert drawing.shape == (64 * factor, 48 * factor, 3)  # one image
    red = (drawing == (255, 0, 0)).all(axis=-1)
    assert red[40 * factor :].any()
    assert not red[: 30 * factor, : 30 * factor].any()


def test_a_batch_without_objects_is_drawn():
    batch, assignment = example()
    batch.gt_mask[:] = False
    assignment.gt_index[:] = -1
    assert list_targets(batch, assignment, PYRAMID) == []
    assert len(np.unique(draw_targets(batch, assignment, PYRAMID, ()))) == 1
