"""SimOTA: golden numbers, a plain loop, examples by hand, and what must hold of any picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from tests.assigners.pictures import CELLS, OBJECTS, SEEDS, M, N, overlap, picture
from tests.golden_models import golden_ops
from tood_jax.assigners.simota import assign_simota, assign_simota_batch
from tood_jax.geometry.locations import make_pyramid


@functools.cache
def program(**options):
    return jax.jit(functools.partial(assign_simota, **options))


def assign(one, **options):
    return jax.device_get(program(**options)(**one))


def plain(scores, boxes, points, strides, valid, gt_boxes, gt_labels, gt_mask, radius=2.5, topk=10):
    """Cost by cost and cell by cell, in float64 but for the large costs."""
    scores, boxes, gt_boxes = (np.float64(x) for x in (scores, boxes, gt_boxes))
    objects = np.flatnonzero(gt_mask)
    inside, near = np.zeros((2, len(gt_boxes), len(boxes)), bool)
    for i in objects:
        x0, y0, x1, y1 = gt_boxes[i]
        for j, (x, y) in enumerate(points):
            inside[i, j] = x0 < x < x1 and y0 < y < y1
            near[i, j] = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < radius * strides[j]
    candidates = np.flatnonzero(valid & (inside | near).any(axis=0))
    iou, cost = np.zeros((2, len(gt_boxes), len(candidates)))
    for i in objects:
        for c, j in enumerate(candidates):
            iou[i, c] = overlap(gt_boxes[i], boxes[j])
            cost[i, c] = -3 * np.log(iou[i, c] + 1e-7)
            for label, p in enumerate(scores[j]):
                cost[i, c] -= np.log(p) if label == gt_labels[i] else np.log(1 - p)
            if not (inside[i, j] and near[i, j]):  # float32, as published, knows costs beyond only to 1/128
                cost[i, c] = np.float32(cost[i, c]) + np.float32(1e5)
    claimed = {int(j): [] for j in candidates}
    for i in objects:
        count = max(int(np.sort(iou[i])[-topk:].sum()), 1)
        for c in np.argsort(cost[i], kind="stable")[:count]:
            claimed[candidates[c]].append(i)
    owner = np.full(len(boxes), -1)
    for c, j in enumerate(candidates):
        if len(claimed[j]) == 1:
            owner[j] = claimed[j][0]
        elif claimed[j]:
            owner[j] = objects[cost[objects, c].argmin()]
    return owner


@pytest.mark.parametrize("chunk", [64, 4])
def test_equals_golden(chunk):
    ops, cells = golden_ops(), make_pyramid(192, 256)
    found = program(chunk=chunk)(
        ops["pred_scores"], ops["pred_boxes"], cells.points, cells.strides, np.ones(1024, bool),
        ops["gt_boxes"], ops["gt_labels"].astype(np.int32), np.ones(14, bool),
    )  # fmt: skip
    gt_index = ops["simota.gt_index_1based"] - 1
    positive = gt_index >= 0
    assert positive.sum() > 50
    np.testing.assert_array_equal(found.gt_index, gt_index)
    iou = ops["iou"][np.flatnonzero(positive), gt_index[positive]]
    np.testing.assert_allclose(np.asarray(found.iou)[positive], iou, rtol=1e-5)
    np.testing.assert_array_equal(found.soft_label, positive)
    np.testing.assert_array_equal(found.metric, positive)


@given(SEEDS)
def test_equals_a_plain_loop(seed):
    one = picture(seed)
    np.testing.assert_array_equal(assign(one).gt_index, plain(**one))


def by_hand(ious, scores, gt_boxes, gt_labels):
    """Cells at (1, 1), (2, 1), … of stride 8, each with a box [0, 0, 10·IoU, 10]."""
    boxes = np.array([[0, 0, 10 * iou, 10] for iou in ious], np.float32)
    return {
        "scores": np.array(scores, np.float32),
        "boxes": boxes,
        "points": np.array([[1 + j, 1] for j in range(len(ious))], np.float32),
        "strides": np.full(len(ious), 8, np.float32),
        "valid": np.ones(len(ious), bool),
        "gt_boxes": np.array(gt_boxes, np.float32),
        "gt_labels": np.array(gt_labels, np.int32),
        "gt_mask": np.ones(len(gt_boxes), bool),
    }


def test_the_number_of_cells_is_the_whole_part_of_the_overlaps():
    """IoUs 0.9 + 0.8 + 0.6 + 0.3 + 0.2 = 2.8: two cells; the third's high score does not make up for its box."""
    one = by_hand([0.9, 0.6, 0.8, 0.3, 0.2], [[0.5], [0.6], [0.5], [0.1], [0.1]], [[0, 0, 10, 10]], [0])
    found = assign(one)
    np.testing.assert_array_equal(found.gt_index, [0, -1, 0, -1, -1])
    np.testing.assert_allclose(found.iou, [0.9, 0, 0.8, 0, 0], rtol=1e-6)
    one["scores"][1] = 0.99  # −log 0.99 − 3 log 0.6 = 1.54 < −log 0.2 − 3 log 0.8 = 2.28
    one["scores"][2] = 0.2
    np.testing.assert_array_equal(assign(one).gt_index, [0, 0, -1, -1, -1])


def test_twins_share_by_class():
    """Two objects in one place, of different classes: a cell that both claim goes to the better score."""
    scores = [[0.9, 0.2], [0.1, 0.8], [0.4, 0.6], [0.6, 0.4]]
    found = assign(by_hand([0.9, 0.9, 0.9, 0.9], scores, [[0, 0, 10, 10]] * 2, [0, 1]))
    np.testing.assert_array_equal(found.gt_index, [0, 1, 1, 0])


def test_a_third_object_may_get_what_two_others_claim():
    """It claims another cell, one that is better still, but is the cheapest for the contested one too."""
    one = by_hand([0.6, 0.62], [[0.3, 0.3, 0.5], [0.1, 0.1, 0.9]], [[0, 0, 10, 10]] * 3, [0, 1, 2])
    np.testing.assert_array_equal(assign(one).gt_index, [2, 2])
    np.testing.assert_array_equal(plain(**one), [2, 2])


def test_one_huge_object_takes_at_most_ten_cells_near_its_centre():
    one = picture(7, 1) | {"gt_boxes": np.array([[1, 1, 63, 63]], np.float32), "gt_mask": np.ones(1, bool)}
    one["boxes"] = np.tile(one["gt_boxes"], (N, 1))
    one["valid"][:] = True
    positive = np.flatnonzero(assign(one).gt_index == 0)
    assert len(positive) == 10
    distance = np.abs(CELLS.points[positive] - 32).max(axis=1)
    assert (distance < 2.5 * CELLS.strides[positive]).all()


@given(SEEDS)
def test_chunks_padding_and_order_change_nothing(seed):
    one = picture(seed)
    found = assign(one)
    positive = found.gt_index >= 0
    assert (one["valid"] | ~positive).all()
    assert one["gt_mask"][found.gt_index[positive]].all()
    assert ((found.iou >= 0) & (found.iou <= 1)).all()
    for chunk in (1, 4):
        jax.tree.map(np.testing.assert_array_equal, found, assign(one, chunk=chunk))
    padded = {key: np.pad(one[key], [(0, 3)] + [(0, 0)] * (one[key].ndim - 1)) for key in OBJECTS}
    jax.tree.map(np.testing.assert_array_equal, found, assign(one | padded))
    order = np.random.default_rng(seed).permutation(M)
    permuted = assign(one | {key: one[key][order] for key in OBJECTS})
    np.testing.assert_array_equal(np.where(permuted.gt_index >= 0, order[permuted.gt_index], -1), found.gt_index)


@pytest.mark.parametrize("objects", [0, M])
def test_no_objects(objects):
    found = assign(picture(1, objects) | {"gt_mask": np.zeros(objects, bool)})
    assert (found.gt_index == -1).all()
    assert all((value == 0).all() for value in found[1:4])


def test_extreme_scores_and_boxes():
    """Scores of 0 and 1 and boxes without area stay finite; topk is clamped; no valid cell, no positive."""
    one = picture(2)
    one["gt_mask"][:] = True
    one["scores"] = (one["scores"] > 0.5).astype(np.float32)
    one["gt_boxes"][0, 2:] = one["gt_boxes"][0, :2]
    one["boxes"][:10, 2:] = one["boxes"][:10, :2]
    found = assign(one)
    assert all(np.isfinite(value).all() for value in found[:4])
    assert (found.gt_index > 0).any()
    jax.tree.map(np.testing.assert_array_equal, assign(one, topk=N), assign(one, topk=10 * N))
    assert (assign(one | {"valid": np.zeros(N, bool)}).gt_index == -1).all()


def test_thousands_of_objects_need_memory_for_one_chunk():
    one = picture(3, 2000)
    small, large = (program(chunk=chunk).lower(**one).compile() for chunk in (32, 2000))
    assert small.memory_analysis().temp_size_in_bytes < large.memory_analysis().temp_size_in_bytes / 2
    assert (np.asarray(small(**one).gt_index) >= 0).any()


def test_no_gradient_flows():
    one = jax.tree.map(jnp.asarray, picture(4))

    def total(scores, boxes):
        return sum(x.sum() for x in assign_simota(**one | {"scores": scores, "boxes": boxes})[1:4])

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(one["scores"], one["boxes"])
    assert value > 0
    assert all((g == 0).all() for g in gradients)


def test_images_of_a_batch_are_independent():
    pictures = [picture(seed) for seed in (5, 6)]
    batched = {key: np.stack([one[key] for one in pictures]) for key in pictures[0]}
    batched |= {"points": CELLS.points, "strides": CELLS.strides}
    found = jax.jit(assign_simota_batch)(*batched.values())
    for i, one in enumerate(pictures):
        np.testing.assert_array_equal(found.gt_index[i], assign(one).gt_index)
