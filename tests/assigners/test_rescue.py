"""Objects that task alignment learning has lost get the locations of ATSS, and nobody else notices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given

from tests.assigners.pictures import CELLS, SEEDS, M, picture
from tood_jax.assigners.atss import assign_atss
from tood_jax.assigners.rescue import add_rescued
from tood_jax.assigners.task_aligned import assign_task_aligned

MIN_IOU = 0.3  # about half of the pictures' objects are below


@functools.cache
def program(min_iou):
    def run(scores, boxes, points, valid, gt_boxes, gt_labels, gt_mask):
        own = assign_task_aligned(scores, boxes, points, valid, gt_boxes, gt_labels, gt_mask, min_iou=min_iou)

        def atss(mask):
            return assign_atss(jnp.asarray(CELLS.anchors(8.0)), valid, gt_boxes, mask, level_slices=CELLS.level_slices)

        if own.rescued is None:
            return own, None, None, None
        return own, atss(own.rescued), add_rescued(own, atss(own.rescued), points, gt_boxes), atss(gt_mask)

    return jax.jit(run)


def assign(one, min_iou=MIN_IOU):
    """(task-aligned alone, ATSS of the lost objects, both together, ATSS of all objects)."""
    return jax.device_get(program(min_iou)(**{name: value for name, value in one.items() if name != "strides"}))


def positives_of(assignment, objects):
    return np.isin(assignment.gt_index, np.flatnonzero(objects))


@given(SEEDS)
def test_other_objects_keep_what_they_would_have_alone(seed):
    """Every number of the objects that are not lost is that of a picture without the lost ones."""
    one = picture(seed)
    own, _, both, _ = assign(one)
    alone = assign(one | {"gt_mask": one["gt_mask"] & ~own.rescued}, min_iou=0.0)[0]
    kept = alone.gt_index >= 0
    for name in ("gt_index", "metric", "iou", "soft_label"):
        np.testing.assert_array_equal(getattr(both, name)[kept], getattr(alone, name)[kept], err_msg=name)
    assert not (positives_of(both, ~own.rescued) & ~kept).any()


@given(SEEDS)
def test_lost_objects_get_the_locations_of_atss_that_are_free(seed):
    one = picture(seed)
    own, atss, both, _ = assign(one)
    added = (both.gt_index >= 0) & (own.gt_index < 0)
    np.testing.assert_array_equal(added, (atss.gt_index >= 0) & (own.gt_index < 0))
    np.testing.assert_array_equal(both.gt_index[added], atss.gt_index[added])
    boxes = one["gt_boxes"][both.gt_index[added]]
    sides = CELLS.points[added] - boxes[:, :2], boxes[:, 2:] - CELLS.points[added]
    centerness = np.sqrt((np.minimum(*sides) / np.maximum(*sides)).prod(axis=1))
    np.testing.assert_allclose(both.soft_label[added], centerness, rtol=1e-5)
    assert (both.rescued <= own.rescued).all()
    np.testing.assert_array_equal(np.flatnonzero(both.rescued), np.unique(both.gt_index[added]))


@given(SEEDS)
def test_an_object_is_lost_if_no_candidate_reaches_the_bound(seed):
    """Of a single object, whose locations nobody takes, the assignment without a bound has the largest IoU."""
    one = picture(seed, objects=1)
    own = assign(one)[0]
    free = assign(one, min_iou=0.0)[0]
    np.testing.assert_array_equal(own.rescued, one["gt_mask"] & (free.iou.max() < MIN_IOU))
    if not own.rescued.any():
        jax.tree.map(np.testing.assert_array_equal, own[:4], free[:4])


def test_without_a_bound_nothing_is_lost():
    one = picture(0)
    one["boxes"][:] = 0
    assert assign(one, min_iou=0.0)[0].rescued is None


def test_collapsed_boxes_leave_everything_to_atss():
    """Boxes without area, and boxes as large as floats go."""
    one = picture(1)
    one["gt_mask"][:] = True
    for boxes in (np.zeros_like(one["boxes"]), np.tile(np.float32([-1e15, -1e15, 1e15, 1e15]), (len(CELLS.points), 1))):
        own, _, both, atss = assign(one | {"boxes": boxes})
        assert (own.gt_index == -1).all()
        assert own.rescued.all()
        np.testing.assert_array_equal(both.gt_index, atss.gt_index)
        assert both.rescued.sum() == len(np.unique(atss.gt_index[atss.gt_index >= 0])) > M // 2


def test_no_objects():
    own, _, both, _ = assign(picture(2, objects=0))
    assert (both.gt_index == -1).all()
    assert both.rescued.shape == own.rescued.shape == (0,)
