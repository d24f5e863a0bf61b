"""FoveaBox: painting box after box, examples by hand, and what must hold of any picture."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.assigners.fovea import SCALE_RANGES, assign_fovea, assign_fovea_batch
from tood_jax.geometry.locations import STRIDES, make_pyramid

CELLS = make_pyramid(64, 64)
N, M = len(CELLS.points), 6
RANGES = ((1.0, 16.0), (8.0, 24.0), (16.0, 40.0), (24.0, 60.0), (40.0, 2048.0))
SEEDS = st.integers(0, 2**32 - 1)


@functools.cache
def program(canvas=(64, 64), **options):
    options = {"level_shapes": make_pyramid(*canvas).shapes, "scale_ranges": RANGES} | options
    return jax.jit(functools.partial(assign_fovea, **options))


def assign(*one, **options):
    return jax.device_get(program(**options)(*one))


def picture(seed, objects=M):
    """(valid, gt_boxes, gt_mask); every second picture has boxes in whole pixels, on borders of cells and of foveas."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 70, (objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 60, (objects, 2))], axis=1)
    if seed % 2:
        boxes = np.round(boxes)
    return rng.random(N) < 0.8, boxes.astype(np.float32), rng.random(objects) < 0.8


def plain(valid, gt_boxes, gt_mask, ranges=RANGES, sigma=0.4):
    """Paint the foveas on each map, large objects first."""
    maps = []
    shrink, grow, half = np.float32(1 - sigma), np.float32(1 + sigma), np.float32(0.5)
    size = np.sqrt((gt_boxes[:, 2] - gt_boxes[:, 0]) * (gt_boxes[:, 3] - gt_boxes[:, 1]))
    for (height, width), stride, (least, most) in zip(CELLS.shapes, STRIDES, ranges, strict=True):
        owner = np.full((height, width), -1)
        for i in np.argsort(-size, kind="stable"):
            if gt_mask[i] and least <= size[i] <= most:
                x0, y0, x1, y1 = gt_boxes[i] / np.float32(stride)
                half_width, half_height = (x1 - x0) * half, (y1 - y0) * half
                left = min(max(int(np.ceil(x0 + shrink * half_width - half)), 0), width - 1)
                right = min(max(int(np.floor(x0 + grow * half_width - half)), 0), width - 1)
                top = min(max(int(np.ceil(y0 + shrink * half_height - half)), 0), height - 1)
                bottom = min(max(int(np.floor(y0 + grow * half_height - half)), 0), height - 1)
                owner[top : bottom + 1, left : right + 1] = i
        maps.append(owner.ravel())
    return np.where(valid, np.concatenate(maps), -1)


@given(SEEDS)
def test_equals_painting(seed):
    one = picture(seed)
    found = assign(*one)
    np.testing.assert_array_equal(found.gt_index, plain(*one))
    np.testing.assert_array_equal(found.soft_label, found.gt_index >= 0)
    np.testing.assert_array_equal(found.metric, found.gt_index >= 0)
    assert (found.iou == 0).all()


def test_example_by_hand():
    """A box of 40 × 40 at (10, 10): its fovea spans 22 … 38, on P3 the cells 3 and 4 (22 ≤ 8 j + 4 ≤ 38: 28 and 36)."""
    found = assign(np.ones(N, bool), np.array([[10, 10, 50, 50]], np.float32), np.ones(1, bool),
                   scale_ranges=SCALE_RANGES)  # fmt: skip
    p3 = found.gt_index[CELLS.level_slices[0]].reshape(8, 8)
    assert {tuple(cell) for cell in np.argwhere(p3 == 0).tolist()} == {(3, 3), (3, 4), (4, 3), (4, 4)}
    p4 = found.gt_index[CELLS.level_slices[1]].reshape(4, 4)  # √area 40 is in 32 … 128 too; 24 is a cell's middle there
    assert np.argwhere(p4 == 0).tolist() == [[1, 1]]
    assert (found.gt_index[CELLS.level_slices[2].start :] == -1).all()


def test_one_huge_object():
    """1100 × 900 in 1024 × 1280: P7 alone, and no cell outside the middle 40 %."""
    cells = make_pyramid(1024, 1280)
    box = np.array([[100, 60, 1200, 960]], np.float32)
    found = assign(np.ones(len(cells.points), bool), box, np.ones(1, bool), canvas=(1024, 1280),
                   scale_ranges=SCALE_RANGES)  # fmt: skip
    positive = found.gt_index == 0
    middle = cells.points_at(0.5)
    inside = (np.abs(middle - [650, 510]) <= [220, 180]).all(axis=1)
    np.testing.assert_array_equal(positive, inside & (cells.strides == 128))
    assert positive.sum() >= 6


def test_the_smaller_object_wins_and_the_last_of_twins():
    boxes = np.array([[4, 4, 28, 28], [4, 4, 28, 28], [0, 0, 48, 48]], np.float32)
    for order in ([0, 1, 2], [2, 0, 1]):
        for chunk in (64, 1):
            found = assign(np.ones(N, bool), boxes[order], np.ones(3, bool), chunk=chunk, scale_ranges=SCALE_RANGES)
            twin, large = order.index(1), order.index(2)
            p3 = found.gt_index[CELLS.level_slices[0]].reshape(8, 8)
            np.testing.assert_array_equal(np.diag(p3)[:5], [-1, twin, twin, large, -1])


def test_a_fovea_beyond_the_map_takes_the_border():
    box = np.array([[70, 8, 90, 28]], np.float32)  # e.g. left over from a crop; published code clamps both ends
    found = assign(np.ones(N, bool), box, np.ones(1, bool), scale_ranges=SCALE_RANGES)
    p3 = found.gt_index[CELLS.level_slices[0]].reshape(8, 8)
    assert np.argwhere(p3 == 0).tolist() == [[2, 7]]  # rows: 14 ≤ 8 i + 4 ≤ 22


@given(SEEDS)
def test_chunks_and_padding_change_nothing(seed):
    valid, boxes, mask = picture(seed)
    found = assign(valid, boxes, mask)
    positive = found.gt_index >= 0
    assert (valid | ~positive).all()
    assert mask[found.gt_index[positive]].all()
    for chunk in (1, 4):
        jax.tree.map(np.testing.assert_array_equal, found, assign(valid, boxes, mask, chunk=chunk))
    padded = assign(valid, np.pad(boxes, [(0, 3), (0, 0)]), np.pad(mask, (0, 3)))
    jax.tree.map(np.testing.assert_array_equal, found, padded)


@pytest.mark.parametrize("objects", [0, M])
def test_no_objects(objects):
    valid, boxes, mask = picture(0, objects)
    found = assign(valid, boxes, np.zeros_like(mask))
    assert (found.gt_index == -1).all()
    assert all((value == 0).all() for value in found[1:4])


def test_levels_that_do_not_fit():
    valid, boxes, mask = picture(0)
    with pytest.raises(ValueError, match="5 levels, 5 strides and 4 scale ranges"):
        assign(valid, boxes, mask, scale_ranges=RANGES[:4])
    with pytest.raises(ValueError, match="85 locations, but the levels have 86"):
        assign(valid[:-1], boxes, mask)


def test_thousands_of_objects_need_memory_for_one_chunk():
    one = picture(3, 5000)
    small, large = (program(chunk=chunk).lower(*one).compile() for chunk in (32, 5000))
    assert small.memory_analysis().temp_size_in_bytes < 5000 * N / 2  # half a byte for each pair
    np.testing.assert_array_equal(small(*one).gt_index, large(*one).gt_index)


def test_images_of_a_batch_are_independent():
    pictures = [picture(seed) for seed in (5, 6)]
    batched = functools.partial(assign_fovea_batch, level_shapes=CELLS.shapes, scale_ranges=RANGES)
    found = jax.jit(batched)(*(np.stack(both) for both in zip(*pictures, strict=True)))
    for i, one in enumerate(pictures):
        np.testing.assert_array_equal(found.gt_index[i], assign(*one).gt_index)
