"""Highest overlap: golden numbers, a plain loop, examples by hand, and what must hold of any picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden_models import golden_ops
from tood_jax.assigners.base import fold_in_chunks
from tood_jax.assigners.max_iou import assign_max_iou, assign_max_iou_batch
from tood_jax.geometry.locations import make_pyramid

CELLS = make_pyramid(64, 64)
ANCHORS = CELLS.anchors(3.0)
N, M = len(ANCHORS), 6
SEEDS = st.integers(0, 2**32 - 1)


@functools.cache
def program(**options):
    return jax.jit(functools.partial(assign_max_iou, **options))


def assign(*one, **options):
    return jax.device_get(program(**options)(*one))


def picture(seed, objects=M):
    """(anchors, valid, gt_boxes, gt_mask)"""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-4, 50, (objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 60, (objects, 2))], axis=1).astype(np.float32)
    return ANCHORS, rng.random(N) < 0.8, boxes, rng.random(objects) < 0.8


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def plain(anchors, valid, gt_boxes, gt_mask, positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0):
    """The rules one after the other, anchor by anchor and object by object."""
    owner = np.full(len(anchors), -1)
    iou = {(i, j): overlap(gt_boxes[i], anchors[j]) for i in np.flatnonzero(gt_mask) for j in np.flatnonzero(valid)}
    for j in np.flatnonzero(valid):
        best, highest = -1, -1.0
        for i in np.flatnonzero(gt_mask):
            if iou[i, j] > highest:
                best, highest = i, iou[i, j]
        owner[j] = best if highest >= positive_iou else -1 if highest < negative_iou else -2
    for i in np.flatnonzero(gt_mask):
        highest = max([iou[i, j] for j in np.flatnonzero(valid)], default=0)
        for j in np.flatnonzero(valid):
            if highest > 0 and highest >= min_positive_iou and iou[i, j] == highest:
                owner[j] = i
    return owner


@pytest.mark.parametrize("chunk", [64, 4])
def test_equals_golden(chunk):
    ops = golden_ops()
    found = assign(ops["anchors"], np.ones(1024, bool), ops["gt_boxes"], np.ones(14, bool), chunk=chunk)
    golden = ops["max_iou.gt_index_1based"]
    gt_index = np.where(golden < 0, -2, golden - 1)
    assert np.unique(gt_index).min() == -2
    np.testing.assert_array_equal(found.gt_index, gt_index)
    np.testing.assert_array_equal(found.soft_label, gt_index >= 0)
    np.testing.assert_array_equal(found.metric, gt_index >= 0)


@given(SEEDS, st.sampled_from([{}, {"positive_iou": 0.1, "negative_iou": 0.1}, {"min_positive_iou": 0.3}]))
def test_equals_a_plain_loop(seed, options):
    one = picture(seed)
    found = assign(*one, **options)
    np.testing.assert_array_equal(found.gt_index, plain(*one, **options))
    anchors, _, boxes, _ = one
    expected = [overlap(anchors[j], boxes[i]) if i >= 0 else 0 for j, i in enumerate(found.gt_index)]
    np.testing.assert_allclose(found.iou, expected, rtol=1e-5, atol=1e-7)


def test_example_by_hand():
    """Positive at 0.5, ignored at 0.4, background below; the second object takes its two equally good anchors."""
    anchors = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4], [0, 0, 10, 3], [50, 0, 51, 10], [53, 0, 54, 10]], np.float32
    )
    boxes = np.array([[0, 0, 10, 10], [50, 0, 60, 10]], np.float32)
    found = assign(anchors, np.ones(6, bool), boxes, np.ones(2, bool))
    np.testing.assert_array_equal(found.gt_index, [0, 0, -2, -1, 1, 1])
    np.testing.assert_allclose(found.iou, [1, 0.5, 0, 0, 0.1, 0.1], rtol=1e-6)


def test_later_twins_and_objects_without_overlap():
    """A twin takes the best anchor from the first; a lonely object takes none, however low the threshold."""
    anchors = np.array([[0, 0, 10, 10], [0, 0, 10, 6]], np.float32)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [80, 80, 90, 90]], np.float32)
    for chunk in (64, 1):
        found = assign(anchors, np.ones(2, bool), boxes, np.ones(3, bool), chunk=chunk)
        np.testing.assert_array_equal(found.gt_index, [1, 0])


@given(SEEDS)
def test_chunks_and_padding_change_nothing(seed):
    anchors, valid, boxes, mask = picture(seed)
    found = assign(anchors, valid, boxes, mask)
    positive = found.gt_index >= 0
    assert (valid | ~positive).all()
    assert mask[found.gt_index[positive]].all()
    for chunk in (1, 4):
        jax.tree.map(np.testing.assert_array_equal, found, assign(anchors, valid, boxes, mask, chunk=chunk))
    padded = assign(anchors, valid, np.pad(boxes, [(0, 3), (0, 0)]), np.pad(mask, (0, 3)))
    jax.tree.map(np.testing.assert_array_equal, found, padded)
    elsewhere = np.where(mask[:, None], boxes, 7)  # what padding holds means nothing
    jax.tree.map(np.testing.assert_array_equal, found, assign(anchors, valid, elsewhere, mask))


@pytest.mark.parametrize("objects", [0, M])
def test_no_objects(objects):
    anchors, valid, boxes, mask = picture(0, objects)
    found = assign(anchors, valid, boxes, np.zeros_like(mask))
    assert (found.gt_index == -1).all()
    assert all((value == 0).all() for value in found[1:4])


def test_no_valid_cell_and_a_box_without_area():
    anchors, valid, boxes, mask = picture(0)
    assert (assign(anchors, np.zeros_like(valid), boxes, mask).gt_index == -1).all()
    boxes[:, 2:] = boxes[:, :2]
    assert (assign(anchors, valid, boxes, np.ones_like(mask)).gt_index == -1).all()


def test_thousands_of_objects_need_memory_for_one_chunk():
    one = picture(3, 5000)
    small, large = (program(chunk=chunk).lower(*one).compile() for chunk in (32, 5000))
    assert small.memory_analysis().temp_size_in_bytes < large.memory_analysis().temp_size_in_bytes / 2
    np.testing.assert_array_equal(small(*one).gt_index, large(*one).gt_index)


def test_images_of_a_batch_are_independent():
    pictures = [picture(seed) for seed in (5, 6)]
    batch = [np.stack(both) for both in list(zip(*pictures, strict=True))[1:]]
    found = jax.jit(functools.partial(assign_max_iou_batch, positive_iou=0.6))(ANCHORS, *batch)
    for i, one in enumerate(pictures):
        np.testing.assert_array_equal(found.gt_index[i], assign(*one, positive_iou=0.6).gt_index)


def test_no_gradient_flows():
    anchors, *rest = (jnp.asarray(x) for x in picture(4))
    value, gradient = jax.jit(jax.value_and_grad(lambda anchors: assign_max_iou(anchors, *rest).iou.sum()))(anchors)
    assert value > 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 8])
def test_a_fold_goes_through_the_objects_in_order(chunk):
    """The fold notes digits, so that their order shows; padded objects note nothing."""

    def fold(state, digits, mask):
        for digit, counts in zip(digits, mask, strict=True):
            state = jnp.where(counts, state * 10 + digit, state)
        return state

    objects = jnp.arange(1, 8), jnp.ones(7, bool)
    assert int(fold_in_chunks(fold, jnp.asarray(0), objects, chunk)) == 1234567
    assert int(fold_in_chunks(fold, jnp.asarray(5), (objects[0][:0], objects[1][:0]), chunk)) == 5
