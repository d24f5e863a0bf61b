"""ATSS: golden numbers, a plain loop over objects, and what must hold of any picture."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden_models import golden_ops
from tood_jax.assigners.atss import assign_atss, assign_atss_batch
from tood_jax.geometry.locations import make_pyramid

CELLS = make_pyramid(64, 64)
ANCHORS = CELLS.anchors(8.0)
N, M = len(ANCHORS), 6
SEEDS = st.integers(0, 2**32 - 1)


@functools.cache
def program(canvas=(64, 64), **options):
    return jax.jit(functools.partial(assign_atss, level_slices=make_pyramid(*canvas).level_slices, **options))


def assign(*one, **options):
    return jax.device_get(program(**options)(*one))


def picture(seed, objects=M):
    """(anchors, valid, gt_boxes, gt_mask); no two cells are equally far from an object."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-4, 50, (objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 60, (objects, 2))], axis=1).astype(np.float32)
    return ANCHORS, rng.random(N) < 0.8, boxes, rng.random(objects) < 0.8


def plain(anchors, valid, gt_boxes, gt_mask, topk=9):
    """The algorithm as it is told, in float64."""
    owner, best = np.full(len(anchors), -1), np.full(len(anchors), -1.0)
    anchors = anchors.astype(np.float64)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    for i in np.flatnonzero(gt_mask):
        box = gt_boxes[i].astype(np.float64)
        candidates = []
        for level in CELLS.level_slices:
            cells = np.flatnonzero(valid[level]) + level.start
            distance = np.linalg.norm(centers[cells] - (box[:2] + box[2:]) / 2, axis=1)
            candidates.extend(cells[np.argsort(distance)[:topk]])
        sides = np.minimum(anchors[candidates, 2:], box[2:]) - np.maximum(anchors[candidates, :2], box[:2])
        intersection = np.prod(np.maximum(sides, 0), axis=1)
        areas = np.prod(anchors[candidates, 2:] - anchors[candidates, :2], axis=1) + np.prod(box[2:] - box[:2])
        iou = intersection / (areas - intersection)
        threshold = iou.mean() + iou.std(ddof=1)
        for cell, overlap in zip(candidates, iou, strict=True):
            depth = min((centers[cell] - box[:2]).min(), (box[2:] - centers[cell]).min())
            if overlap >= threshold and depth > 0.01 and overlap > best[cell]:
                owner[cell], best[cell] = i, overlap
    return owner


def test_equals_golden():
    ops = golden_ops()
    for chunk in (64, 4):
        one = ops["anchors"], np.ones(1024, bool), ops["gt_boxes"], np.ones(14, bool)
        found = assign(*one, canvas=(192, 256), chunk=chunk)
        np.testing.assert_array_equal(found.gt_index + 1, ops["atss.gt_index_1based"])
        np.testing.assert_array_equal(found.soft_label, ops["atss.gt_index_1based"] > 0)
        np.testing.assert_array_equal(found.metric, found.soft_label)


@given(SEEDS)
def test_equals_a_plain_loop(seed):
    one = picture(seed)
    np.testing.assert_array_equal(assign(*one).gt_index, plain(*one))


@given(SEEDS)
def test_chunks_padding_and_order_change_nothing(seed):
    anchors, valid, boxes, mask = picture(seed)
    found = assign(anchors, valid, boxes, mask)
    positive = found.gt_index >= 0
    assert (valid | ~positive).all()
    for chunk in (1, 4):
        jax.tree.map(np.testing.assert_array_equal, found, assign(anchors, valid, boxes, mask, chunk=chunk))
    padded = assign(anchors, valid, np.pad(boxes, [(0, 3), (0, 0)]), np.pad(mask, (0, 3)))
    jax.tree.map(np.testing.assert_array_equal, found, padded)
    order = np.random.default_rng(seed).permutation(M)
    permuted = assign(anchors, valid, boxes[order], mask[order])
    np.testing.assert_array_equal(np.where(positive, order[permuted.gt_index], -1), found.gt_index)


@pytest.mark.parametrize("objects", [0, M])
def test_no_objects(objects):
    anchors, valid, boxes, mask = picture(0, objects)
    found = assign(anchors, valid, boxes, np.zeros_like(mask))
    assert (found.gt_index == -1).all()
    assert all((value == 0).all() for value in found[1:4])


def test_no_valid_cell_and_a_box_without_area():
    anchors, valid, boxes, mask = picture(0)
    assert (np.asarray(assign(anchors, np.zeros_like(valid), boxes, mask).gt_index) == -1).all()
    boxes[:, 2:] = boxes[:, :2]
    found = assign(anchors, valid, boxes, np.ones_like(mask))
    assert (found.gt_index == -1).all()
    assert all(np.isfinite(value).all() for value in found[:4])


def test_topk_is_clamped_a_level():
    one = picture(1)
    jax.tree.map(np.testing.assert_array_equal, assign(*one, topk=64), assign(*one, topk=10_000))
    np.testing.assert_array_equal(assign(*one, topk=64).gt_index, plain(*one, topk=64))


def test_thousands_of_objects_need_memory_for_one_chunk():
    one = picture(3, 5000)
    small, large = (program(chunk=chunk).lower(*one).compile() for chunk in (32, 5000))
    assert small.memory_analysis().temp_size_in_bytes < large.memory_analysis().temp_size_in_bytes / 2
    assert (np.asarray(small(*one).gt_index) >= 0).any()


def test_images_of_a_batch_are_independent():
    pictures = [picture(seed) for seed in (5, 6)]
    batched = jax.jit(functools.partial(assign_atss_batch, level_slices=CELLS.level_slices))
    found = batched(ANCHORS, *(np.stack(both) for both in list(zip(*pictures, strict=True))[1:]))
    for i, one in enumerate(pictures):
        np.testing.assert_array_equal(found.gt_index[i], assign(*one).gt_index)
