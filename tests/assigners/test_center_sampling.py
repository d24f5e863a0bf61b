"""Centre sampling: a plain loop, examples by hand, and what must hold of any picture."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.assigners.center_sampling import REGRESS_RANGES, assign_center_sampling, assign_center_sampling_batch
from tood_jax.geometry.locations import make_pyramid

CELLS = make_pyramid(64, 64)
POINTS, STRIDES = CELLS.points_at(0.5), CELLS.strides
N, M = len(POINTS), 6
RANGES = ((-1.0, 12.0), (12.0, 24.0), (24.0, 40.0), (40.0, 60.0), (60.0, float("inf")))
SEEDS = st.integers(0, 2**32 - 1)


@functools.cache
def program(canvas=(64, 64), **options):
    options = {"level_slices": make_pyramid(*canvas).level_slices, "ranges": RANGES} | options
    return jax.jit(functools.partial(assign_center_sampling, **options))


def assign(*one, **options):
    return jax.device_get(program(**options)(*one))


def picture(seed, objects=M):
    """(points, strides, valid, gt_boxes, gt_mask)"""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-4, 50, (objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 90, (objects, 2))], axis=1).astype(np.float32)
    return POINTS, STRIDES, rng.random(N) < 0.8, boxes, rng.random(objects) < 0.8


def plain(points, strides, valid, gt_boxes, gt_mask, radius=1.5, ranges=RANGES):
    """The rules point by point."""
    owner = np.full(len(points), -1)
    for level, cells in enumerate(CELLS.level_slices):
        least, most = ranges[level]
        for cell in range(cells.start, cells.stop):
            smallest = np.inf
            for i in np.flatnonzero(gt_mask & valid[cell]):
                (x0, y0, x1, y1), (x, y) = gt_boxes[i].astype(np.float64), points[cell]
                reach = radius * strides[cell]
                in_box = x0 < x < x1 and y0 < y < y1
                in_center = abs(x - (x0 + x1) / 2) < reach and abs(y - (y0 + y1) / 2) < reach
                farthest = max(x - x0, y - y0, x1 - x, y1 - y)
                area = (x1 - x0) * (y1 - y0)
                if in_box and in_center and least <= farthest <= most and area < smallest:
                    owner[cell], smallest = i, area
    return owner


@given(SEEDS, st.sampled_from([1.5, 2.5]))
def test_equals_a_plain_loop(seed, radius):
    one = picture(seed)
    found = assign(*one, radius=radius)
    np.testing.assert_array_equal(found.gt_index, plain(*one, radius=radius))
    np.testing.assert_array_equal(found.soft_label, found.gt_index >= 0)
    np.testing.assert_array_equal(found.metric, found.gt_index >= 0)
    assert (found.iou == 0).all()


def test_one_huge_object_is_learnt_by_the_coarsest_level_only():
    """A box of 1200 × 1000 in a canvas of 1024 × 1280: 3 × 3 points of P7 lie within 1.5 strides of its centre."""
    cells = make_pyramid(1024, 1280)
    box = np.array([[10, 10, 1210, 1010]], np.float32)  # centre (610, 510): nearest points at 576 + 128 k, 512 ± 64
    one = cells.points_at(0.5), cells.strides, np.ones(len(cells.points), bool), box, np.ones(1, bool)
    found = assign(*one, canvas=(1024, 1280), ranges=REGRESS_RANGES)
    positive = np.flatnonzero(found.gt_index == 0)
    assert (cells.strides[positive] == 128).all()
    assert set(map(tuple, one[0][positive].tolist())) == {
        (x, y) for x in (448.0, 576.0, 704.0) for y in (320.0, 448.0, 576.0, 704.0) if abs(y - 510) < 192
    }


def test_the_smallest_object_wins_and_the_first_of_twins():
    boxes = np.array([[0, 0, 30, 30], [2, 2, 18, 18], [2, 2, 18, 18]], np.float32)
    for chunk in (64, 1):
        found = assign(POINTS, STRIDES, np.ones(N, bool), boxes, np.ones(3, bool), chunk=chunk, ranges=REGRESS_RANGES)
        p3 = found.gt_index[CELLS.level_slices[0]].reshape(8, 8)
        np.testing.assert_array_equal(p3[:4, :4], [[1, 1, 0, -1], [1, 1, 0, -1], [0, 0, 0, -1], [-1, -1, -1, -1]])
        assert (found.gt_index[CELLS.level_slices[1].start :] == -1).all()


def test_ranges_include_their_ends():
    box = np.array([[0, 0, 16, 16]], np.float32)  # farthest side of the point (4, 4): 12, of (8, 8): 8
    found = assign(POINTS, STRIDES, np.ones(N, bool), box, np.ones(1, bool))
    assert found.gt_index[0] == 0
    ranges = ((-1.0, 11.9), (8.0, 12.0), *RANGES[2:])
    found = assign(POINTS, STRIDES, np.ones(N, bool), box, np.ones(1, bool), ranges=ranges)
    np.testing.assert_array_equal(np.flatnonzero(found.gt_index == 0), [CELLS.level_slices[1].start])


@given(SEEDS)
def test_chunks_padding_and_order_change_nothing(seed):
    points, strides, valid, boxes, mask = picture(seed)
    found = assign(points, strides, valid, boxes, mask)
    positive = found.gt_index >= 0
    assert (valid | ~positive).all()
    assert mask[found.gt_index[positive]].all()
    for chunk in (1, 4):
        again = assign(points, strides, valid, boxes, mask, chunk=chunk)
        jax.tree.map(np.testing.assert_array_equal, found, again)
    padded = assign(points, strides, valid, np.pad(boxes, [(0, 3), (0, 0)]), np.pad(mask, (0, 3)))
    jax.tree.map(np.testing.assert_array_equal, found, padded)
    order = np.random.default_rng(seed).permutation(M)
    permuted = assign(points, strides, valid, boxes[order], mask[order])
    np.testing.assert_array_equal(np.where(permuted.gt_index >= 0, order[permuted.gt_index], -1), found.gt_index)


@pytest.mark.parametrize("objects", [0, M])
def test_no_objects(objects):
    points, strides, valid, boxes, mask = picture(0, objects)
    found = assign(points, strides, valid, boxes, np.zeros_like(mask))
    assert (found.gt_index == -1).all()
    assert all((value == 0).all() for value in found[1:4])


def test_a_range_is_missing():
    with pytest.raises(ValueError, match="4 ranges for 5 levels"):
        assign(*picture(0), ranges=RANGES[:4])


def test_thousands_of_objects_need_memory_for_one_chunk():
    one = picture(3, 5000)
    small, large = (program(chunk=chunk).lower(*one).compile() for chunk in (32, 5000))
    assert small.memory_analysis().temp_size_in_bytes < large.memory_analysis().temp_size_in_bytes / 2
    np.testing.assert_array_equal(small(*one).gt_index, large(*one).gt_index)


def test_images_of_a_batch_are_independent():
    pictures = [picture(seed) for seed in (5, 6)]
    batch = [np.stack(both) for both in list(zip(*pictures, strict=True))[2:]]
    batched = functools.partial(assign_center_sampling_batch, level_slices=CELLS.level_slices, ranges=RANGES)
    found = jax.jit(batched)(POINTS, STRIDES, *batch)
    for i, one in enumerate(pictures):
        np.testing.assert_array_equal(found.gt_index[i], assign(*one).gt_index)
