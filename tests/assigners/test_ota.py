"""OTA: a plain Sinkhorn, masses that are met, examples by hand, and what must hold of any picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from tests.assigners import pictures
from tests.assigners.pictures import CELLS, OBJECTS, SEEDS, M, N, overlap
from tood_jax.assigners.ota import assign_ota, assign_ota_batch, sinkhorn

# Scores of 0 and 1 cost so much that rounding decides; `test_extreme_scores_boxes_and_crowds` has them.
picture = functools.partial(pictures.picture, scores=(0.02, 0.98))


@functools.cache
def program(**options):
    return jax.jit(functools.partial(assign_ota, **options))


def assign(one, **options):
    return jax.device_get(program(**options)(**one))


def focal(scores, label):
    """Sum over classes; label −1 is none."""
    loss = 0.0
    for c, p in enumerate(scores):
        loss -= 0.25 * (1 - p) ** 2 * np.log(p) if c == label else 0.75 * p**2 * np.log(1 - p)
    return loss


def plain_plan(cost, supply, demand, iterations=50, epsilon=0.1):
    """Sinkhorn and Knopp in plain numbers: rows and columns of exp(−cost/ε) scaled in turn, in float64."""
    # A row's constant only scales it, and would underflow; rows a million too dear at the start come to the same.
    kernel = np.exp(-cost / epsilon)
    row = np.ones(len(supply))
    for _ in range(iterations):
        column = demand / (row @ kernel)
        row = supply / (kernel @ column)
    return row[:, None] * kernel * column


def plain(scores, boxes, points, strides, valid, gt_boxes, gt_labels, gt_mask, outside=60.0):
    """The published steps on the valid cells and real objects alone; a cost of `outside` is e^−600: next to nothing."""
    scores, boxes, gt_boxes = (np.float64(x) for x in (scores, boxes, gt_boxes))
    objects, cells = np.flatnonzero(gt_mask), np.flatnonzero(valid)
    iou, cost = np.zeros((2, len(objects) + 1, len(cells)))
    inside = np.zeros(iou.shape, bool)
    supply = np.zeros(len(objects) + 1)
    for r, i in enumerate(objects):
        x0, y0, x1, y1 = gt_boxes[i]
        for c, j in enumerate(cells):
            x, y = points[j]
            in_box = min(x - x0, y - y0, x1 - x, y1 - y) > 0.01
            near = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < 2.5 * strides[j]
            inside[r, c] = in_box and near
            iou[r, c] = overlap(gt_boxes[i], boxes[j])
            cost[r, c] = focal(scores[j], gt_labels[i]) - 1.5 * np.log(max(iou[r, c], 1e-7))
        cost[r] += outside * ~inside[r]
        supply[r] = max(int(np.sort(iou[r] * inside[r])[-20:].sum()), 1)
    cost[-1] = [focal(scores[j], -1) for j in cells]
    supply[-1] = len(cells) - supply.sum()
    plan = plain_plan(cost, supply, np.ones(len(cells)))
    chosen = (plan / plan.max(axis=1, keepdims=True)).argmax(axis=0)
    owner = np.full(len(boxes), -1)
    owner[cells] = np.append(objects, -1)[chosen]
    return owner, plan


@given(SEEDS)
def test_equals_plain_numbers(seed):
    one = picture(seed)
    gt_index, plan = plain(**one)
    found = assign(one).gt_index
    scaled = np.sort(plan / plan.max(axis=1, keepdims=True), axis=0)
    cells = np.flatnonzero(one["valid"])
    if len(scaled) > 1:  # a cell whose two best suppliers are equal to a part in a thousand is left to rounding
        cells = cells[scaled[-1] > scaled[-2] * 1.001]
    assert len(cells) > 0.9 * one["valid"].sum()
    np.testing.assert_array_equal(found[cells], gt_index[cells])
    assert (found[~one["valid"]] == -1).all()


def test_masses_are_met():
    rng = np.random.default_rng(0)
    cost = rng.uniform(0, 2, (4, 30)).astype(np.float32)
    supply, demand = np.array([3, 5, 1, 21], np.float32), np.ones(30, np.float32)
    plan = np.exp(jax.jit(functools.partial(sinkhorn, iterations=200))(-cost / 0.1, supply, demand))
    np.testing.assert_allclose(plan.sum(axis=1), supply, rtol=1e-4)
    np.testing.assert_allclose(plan.sum(axis=0), demand, rtol=1e-3)
    expected = plain_plan(cost.astype(np.float64), supply, demand, iterations=200)
    np.testing.assert_allclose(plan, expected, rtol=1e-3, atol=1e-6)


def test_idle_suppliers_and_demanders_get_nothing():
    kernel = jnp.array([[0.0, -1.0, -jnp.inf], [-1.0, 0.0, -jnp.inf], [-jnp.inf] * 3])
    plan = np.exp(sinkhorn(kernel, jnp.array([1.0, 1.0, 0.0]), jnp.array([1.0, 1.0, 0.0]), 50))
    np.testing.assert_allclose(plan[:2, :2].sum(axis=0), [1, 1], rtol=1e-5)
    assert (plan[2] == 0).all()
    assert (plan[:, 2] == 0).all()


def test_example_by_hand():
    """IoUs 0.9 + 0.8 + 0.6 = 2.3: two cells of three, the best two; the fourth lies outside."""
    one = {
        "scores": np.full((4, 1), 0.3, np.float32),
        "boxes": np.array([[0, 0, 9, 10], [0, 0, 6, 10], [0, 0, 8, 10], [0, 0, 10, 10]], np.float32),
        "points": np.array([[4, 4], [5, 5], [6, 6], [12, 12]], np.float32),
        "strides": np.full(4, 8, np.float32),
        "valid": np.ones(4, bool),
        "gt_boxes": np.array([[0, 0, 10, 10]], np.float32),
        "gt_labels": np.zeros(1, np.int32),
        "gt_mask": np.ones(1, bool),
    }
    found = assign(one)
    np.testing.assert_array_equal(found.gt_index, [0, -1, 0, -1])
    np.testing.assert_allclose(found.iou, [0.9, 0, 0.8, 0], rtol=1e-6)
    np.testing.assert_array_equal(found.metric, [1, 0, 1, 0])
    np.testing.assert_array_equal(found.soft_label, [1, 0, 1, 0])


def test_twins_share_by_class():
    """Two objects in one place, two cells, one good for each class."""
    one = picture(0, 2) | {
        "gt_boxes": np.array([[8, 8, 40, 40]] * 2, np.float32),
        "gt_labels": np.array([0, 1], np.int32),
        "gt_mask": np.ones(2, bool),
        "valid": np.ones(N, bool),
    }
    one["scores"][:] = 0.05
    one["boxes"] = np.concatenate([CELLS.points, CELLS.points + 1], axis=1).astype(np.float32)
    left, right = 2 * 8 + 2, 2 * 8 + 4  # cells (2, 2) and (2, 4) of P3
    one["boxes"][[left, right]] = [8, 8, 40, 40]
    one["scores"][left] = [0.9, 0.05, 0.05]
    one["scores"][right] = [0.05, 0.9, 0.05]
    found = assign(one)
    assert found.gt_index[[left, right]].tolist() == [0, 1]


def test_an_object_without_a_cell_of_its_own_still_gets_one():
    """A box of 3 × 3 between the points: the published code's million outside is the same everywhere, and so no bar."""
    one = picture(3, 2) | {"gt_boxes": np.array([[25.5, 25.5, 28.5, 28.5], [2, 2, 60, 60]], np.float32)}
    one["gt_mask"][:] = one["valid"][:] = True
    assert not ((CELLS.points > 25.5) & (CELLS.points < 28.5)).all(axis=1).any()
    found = assign(one)
    assert (found.gt_index == 0).any()
    np.testing.assert_array_equal(found.gt_index, plain(**one)[0])


def test_one_huge_object_keeps_near_its_centre():
    one = picture(7, 1) | {"gt_boxes": np.array([[1, 1, 63, 63]], np.float32), "gt_mask": np.ones(1, bool)}
    one["boxes"] = np.tile(one["gt_boxes"], (N, 1))
    one["valid"][:] = True
    positive = np.flatnonzero(assign(one).gt_index == 0)
    assert 10 <= len(positive) <= 20
    assert (np.abs(CELLS.points[positive] - 32).max(axis=1) < 2.5 * CELLS.strides[positive]).all()


@given(SEEDS)
def test_assignment_properties(seed):
    one = picture(seed)
    found = assign(one)
    positive = found.gt_index >= 0
    assert (one["valid"] | ~positive).all()
    assert one["gt_mask"][found.gt_index[positive]].all()
    assert ((found.iou >= 0) & (found.iou <= 1)).all()
    corners = one["gt_boxes"][found.gt_index[positive]]
    inside = ((CELLS.points[positive] > corners[:, :2]) & (CELLS.points[positive] < corners[:, 2:])).all(axis=1)
    middle = (one["gt_boxes"][:, None, :2] + one["gt_boxes"][:, None, 2:]) / 2
    home = (np.abs(CELLS.points - middle) < 2.5 * CELLS.strides[:, None]).all(axis=-1)
    home &= (CELLS.points - one["gt_boxes"][:, None, :2] > 0.01).all(axis=-1)
    home &= (one["gt_boxes"][:, None, 2:] - CELLS.points > 0.01).all(axis=-1) & one["valid"]
    homeless = ~home.any(axis=1)
    assert (inside | homeless[found.gt_index[positive]]).all()
    padded = {key: np.pad(one[key], [(0, 3)] + [(0, 0)] * (one[key].ndim - 1)) for key in OBJECTS}
    np.testing.assert_array_equal(assign(one | padded).gt_index, found.gt_index)
    order = np.random.default_rng(seed).permutation(M)
    permuted = assign(one | {key: one[key][order] for key in OBJECTS})
    same = np.where(permuted.gt_index >= 0, order[permuted.gt_index], -1) == found.gt_index
    assert same.mean() > 0.97  # all but what hangs on rounding


@pytest.mark.parametrize("objects", [0, M])
def test_no_objects(objects):
    found = assign(picture(1, objects) | {"gt_mask": np.zeros(objects, bool)})
    assert (found.gt_index == -1).all()
    assert all((value == 0).all() for value in found[1:4])


def test_extreme_scores_boxes_and_crowds():
    """Scores of 0 and 1, boxes without area, no valid cell, more objects than cells: all stays finite."""
    one = picture(2)
    one["gt_mask"][:] = True
    one["scores"] = (one["scores"] > 0.5).astype(np.float32)
    one["gt_boxes"][0, 2:] = one["gt_boxes"][0, :2]
    one["boxes"][:10, 2:] = one["boxes"][:10, :2]
    found = assign(one)
    assert all(np.isfinite(value).all() for value in found[:4])
    assert (found.gt_index > 0).any()
    assert (assign(one | {"valid": np.zeros(N, bool)}).gt_index == -1).all()
    few = np.arange(N) < 4
    crowd = assign(picture(3, 40) | {"valid": few, "gt_mask": np.ones(40, bool)})
    assert (crowd.gt_index[~few] == -1).all()
    assert all(np.isfinite(value).all() for value in crowd[:4])


def test_no_gradient_flows():
    one = jax.tree.map(jnp.asarray, picture(4))

    def total(scores, boxes):
        return sum(x.sum() for x in assign_ota(**one | {"scores": scores, "boxes": boxes})[1:4])

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(one["scores"], one["boxes"])
    assert value > 0
    assert all((g == 0).all() for g in gradients)


def test_images_of_a_batch_are_independent():
    pictures = [picture(seed) for seed in (5, 6)]
    batched = {key: np.stack([one[key] for one in pictures]) for key in pictures[0]}
    batched |= {"points": CELLS.points, "strides": CELLS.strides}
    found = jax.jit(assign_ota_batch)(*batched.values())
    for i, one in enumerate(pictures):
        np.testing.assert_array_equal(found.gt_index[i], assign(one).gt_index)
