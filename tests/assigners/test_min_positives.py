"""Objects without a positive get their best free location, and nobody else notices."""

import functools

import jax
import numpy as np
from hypothesis import given

from tests.assigners.pictures import CELLS, SEEDS, M, N, overlap, picture
from tood_jax.assigners.min_positives import MIN_SOFT_LABEL, Objects, add_best_locations, without_positives
from tood_jax.assigners.task_aligned import assign_task_aligned
from tood_jax.config import AssignerConfig, Config
from tood_jax.criterion.assign import assign_on_devices
from tood_jax.types import Batch, Predictions

TOPK = 5


@functools.cache
def program(chunk=64):
    def run(scores, boxes, points, strides, valid, gt_boxes, gt_labels, gt_mask):
        own = assign_task_aligned(scores, boxes, points, valid, gt_boxes, gt_labels, gt_mask, topk=TOPK)
        objects = Objects(gt_boxes, gt_labels, gt_mask)
        more = add_best_locations(own, scores, boxes, points, strides, valid, objects, topk=TOPK, chunk=chunk)
        return own, more, without_positives(own.gt_index, gt_mask), without_positives(more.gt_index, gt_mask)

    return jax.jit(run)


def assign(one, chunk=64):
    return jax.device_get(program(chunk)(**one))


def small_picture(seed, objects=M):
    """Half of the objects are smaller than the finest stride, and some lie on each other."""
    one, rng = picture(seed, objects), np.random.default_rng(seed)
    is_small = rng.random(objects) < 0.5
    sides = np.where(
        is_small[:, None], rng.uniform(0.5, 6, (objects, 2)), one["gt_boxes"][:, 2:] - one["gt_boxes"][:, :2]
    )
    corner = np.where(is_small[:, None], rng.uniform(0, 58, (objects, 2)), one["gt_boxes"][:, :2])
    if objects > 1 and rng.random() < 0.5:
        corner[1], sides[1] = corner[0], sides[0]
    one["gt_boxes"] = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    return one


def plain_candidates(one, i):
    """The candidates of an object, best first, in a plain loop."""
    box, found = one["gt_boxes"][i].astype(float), []
    center = (box[:2] + box[2:]) / 2
    for n, (point, stride) in enumerate(zip(CELLS.points, CELLS.strides, strict=True)):
        is_near = (point > box[:2] - stride).all() and (point < box[2:] + stride).all()
        if is_near and one["valid"][n]:
            metric = one["scores"][n, one["gt_labels"][i]] * max(overlap(one["boxes"][n].astype(float), box), 0) ** 6
            found.append((-metric if metric > 1e-30 else 1 + np.linalg.norm(point - center), n))
    return [n for _, n in sorted(found)[:TOPK]]


@given(SEEDS)
def test_equals_a_plain_loop(seed):
    one = small_picture(seed)
    own, more, needy, still = assign(one)
    owner = own.gt_index.copy()
    for i in range(M):
        is_needy = one["gt_mask"][i] and not (own.gt_index == i).any()
        assert needy[i] == is_needy
        free = [n for n in plain_candidates(one, i) if owner[n] < 0] if is_needy else []
        if free:
            owner[free[0]] = i
        assert still[i] == (is_needy and not free)
    np.testing.assert_array_equal(more.gt_index, owner)


@given(SEEDS)
def test_an_object_has_a_positive_unless_others_have_all_its_candidates(seed):
    one = small_picture(seed)
    _, more, _, still = assign(one)
    for i in np.flatnonzero(one["gt_mask"]):
        assert still[i] == (not (more.gt_index == i).any())
        if still[i]:
            assert (more.gt_index[plain_candidates(one, i)] >= 0).all()


@given(SEEDS)
def test_what_was_assigned_stays_and_an_added_location_has_a_target(seed):
    one = small_picture(seed)
    own, more, needy, _ = assign(one)
    kept = own.gt_index >= 0
    for name in ("gt_index", "metric", "iou", "soft_label"):
        np.testing.assert_array_equal(getattr(more, name)[kept], getattr(own, name)[kept], err_msg=name)
    added = np.flatnonzero((more.gt_index >= 0) & ~kept)
    assert needy[more.gt_index[added]].all()
    assert len(set(more.gt_index[added])) == len(added)  # one each
    assert one["valid"][added].all()
    for n in added:
        iou = overlap(one["boxes"][n].astype(float), one["gt_boxes"][more.gt_index[n]].astype(float))
        np.testing.assert_allclose(more.iou[n], max(iou, 0), atol=1e-5)
        np.testing.assert_allclose(more.soft_label[n], max(iou, MIN_SOFT_LABEL), atol=1e-5)


@given(SEEDS)
def test_chunks_change_nothing(seed):
    one = small_picture(seed)
    found = assign(one)[1]
    np.testing.assert_array_equal(assign(one, chunk=4)[1].gt_index, found.gt_index)


def test_an_object_between_the_points_gets_the_nearest_one_where_no_box_overlaps_it():
    one = picture(0, objects=1)
    one |= {"gt_boxes": np.asarray([[9, 10, 12, 13]], np.float32), "gt_mask": np.ones(1, bool)}
    one |= {"boxes": np.zeros((N, 4), np.float32), "valid": np.ones(N, bool)}
    own, more, *_ = assign(one)
    assert (own.gt_index == -1).all()
    (location,) = np.flatnonzero(more.gt_index == 0)
    assert CELLS.points[location].tolist() == [8, 8]
    assert CELLS.strides[location] == 8
    assert more.soft_label[location] == np.float32(MIN_SOFT_LABEL)


def test_an_object_whose_candidates_all_belong_to_others_stays_without():
    """Of 40 equal objects, the first get the few locations near them, and the last find none."""
    one = picture(0, objects=40)
    one |= {"gt_boxes": np.tile(np.float32([9, 10, 12, 13]), (40, 1)), "gt_mask": np.ones(40, bool)}
    _, more, needy, still = assign(one | {"valid": np.ones(N, bool)})
    assert needy.all()
    assert 0 < still.sum() < 40
    assert not still[:TOPK].any()
    assert (more.gt_index >= 0).sum() == 40 - still.sum()


def test_no_objects():
    own, more, *_ = assign(picture(0, objects=0))
    jax.tree.map(np.testing.assert_array_equal, own, more)


def test_the_config_turns_it_on():
    """A batch of two images, of which one has an object that is too small for the published assigner."""
    one = picture(0, objects=2)
    boxes = np.tile(np.concatenate([CELLS.points - 20, CELLS.points + 20], axis=1), (2, 1, 1)) / CELLS.strides[:, None]
    pred = Predictions(np.tile(one["scores"], (2, 1, 1)), boxes.astype(np.float32))
    gt_boxes = np.asarray([[[9, 10, 12, 13], [8, 8, 48, 48]], [[4, 4, 50, 50], [0, 0, 0, 0]]], np.float32)
    batch = Batch(
        images=np.zeros((2, 64, 64, 3), np.uint8),
        sizes=np.full((2, 2), 64, np.int32),
        scales=np.ones((2, 2), np.float32),
        gt_boxes=gt_boxes,
        gt_labels=np.zeros((2, 2), np.int32),
        gt_mask=np.asarray([[True, True], [True, False]]),
        image_indices=np.arange(2, dtype=np.int32),
    )

    def objects_with_positives(**fields):
        config = Config(assigner=AssignerConfig(**fields))
        assignment = jax.jit(lambda *arrays: assign_on_devices(*arrays, config))(pred, batch, True)
        return [sorted(set(row[row >= 0].tolist())) for row in np.asarray(assignment.gt_index)]

    assert objects_with_positives() == [[1], [0]]
    assert objects_with_positives(min_positives=1) == [[0, 1], [0]]
