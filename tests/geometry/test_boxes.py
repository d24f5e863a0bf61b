"""Overlaps and decodings: golden numbers, literals, and what must hold of any boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.golden_models import golden_ops
from tood_jax.geometry.boxes import (
    aligned_giou,
    aligned_iou,
    area_xyxy,
    centerness,
    deltas_to_xyxy,
    distances_to_xyxy,
    inside_distance,
    pairwise_iou,
)

OPS = golden_ops()


def boxes_xyxy(count):
    """Boxes of −64…64 with ordered corners, of any size, also without area."""
    corners = arrays(np.float32, (count, 2, 2), elements=st.floats(-64, 64, width=32))
    return corners.map(lambda c: np.concatenate([c.min(axis=1), c.max(axis=1)], axis=1))


def array(*rows):
    return jnp.asarray(rows, jnp.float32)


def test_iou_equals_golden():
    iou = pairwise_iou(jnp.asarray(OPS["pred_boxes"]), jnp.asarray(OPS["gt_boxes"]))
    np.testing.assert_allclose(iou, OPS["iou"], atol=1e-6)


def test_giou_equals_golden():
    giou = aligned_giou(jnp.asarray(OPS["pred_boxes"]), jnp.asarray(OPS["giou_target"]))
    np.testing.assert_allclose(giou, OPS["giou_aligned"], atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),
        ([0, 0, 2, 2], [0, 0, 2, 2], 1, 1),
        ([0, 0, 4, 4], [1, 1, 3, 3], 1 / 4, 1 / 4),
        ([0, 0, 1, 1], [3, 0, 4, 1], 0, -1 / 2),  # apart: hull 4, union 2
        ([0, 0, 1, 1], [1, 0, 2, 1], 0, 0),  # they touch
        ([1, 1, 1, 1], [0, 0, 2, 2], 0, 0),  # a point
    ],
)
def test_overlap_literals(a, b, iou, giou):
    np.testing.assert_allclose(aligned_iou(array(*a), array(*b)), iou, atol=1e-6)
    np.testing.assert_allclose(aligned_giou(array(*a), array(*b)), giou, atol=1e-6)


def test_boxes_without_area_have_finite_gradients():
    point = array(1, 1, 1, 1)
    value, gradient = jax.value_and_grad(lambda box: aligned_giou(box, point))(point)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_giou_draws_distant_boxes_together():
    gradient = jax.grad(lambda box: aligned_giou(box, array(10, 0, 12, 2)))(array(0, 0, 2, 2))
    assert gradient[2] > 0  # its right side towards the target
    assert np.isfinite(gradient).all()


@jax.jit
def overlaps(a, b):
    return aligned_iou(a, b), aligned_giou(a, b), aligned_iou(b, a), pairwise_iou(a, b)


@given(boxes_xyxy(5), boxes_xyxy(5))
def test_overlap_properties(a, b):
    iou, giou, reverse, pairs = jax.device_get(overlaps(a, b))
    assert ((iou >= 0) & (iou <= 1 + 1e-5)).all()
    assert ((giou >= -1 - 1e-5) & (giou <= iou + 1e-5)).all()
    np.testing.assert_allclose(reverse, iou, rtol=1e-6)
    np.testing.assert_allclose(np.diagonal(pairs), iou, rtol=1e-6)  # compiled apart, so rounded apart


def test_areas():
    np.testing.assert_array_equal(area_xyxy(array([0, 0, 2, 3], [5, 5, 5, 9], [2, 2, 0, 3])), [6, 0, -2])


def test_distances_to_xyxy():
    np.testing.assert_array_equal(distances_to_xyxy(array(10, 20), array(1, 2, 3, 4)), [9, 18, 13, 24])


def test_deltas_to_xyxy():
    anchor = array(10, 10, 30, 50)  # centre (20, 30), 20 × 40
    np.testing.assert_allclose(deltas_to_xyxy(anchor, jnp.zeros(4)), anchor)
    doubled = deltas_to_xyxy(anchor, array(1, -1, np.log(2) / 0.2, 0))  # centre (22, 26), 40 × 40
    np.testing.assert_allclose(doubled, [2, 6, 42, 46], rtol=1e-5)
    huge = deltas_to_xyxy(anchor, array(0, 0, 1e6, -1e6))
    np.testing.assert_allclose(huge, [20 - 625, 30 - 0.32, 20 + 625, 30 + 0.32], rtol=1e-5)


def test_inside_distance():
    points = array([5, 5], [1, 9], [0, 5], [-2, 5], [5, 13])
    np.testing.assert_array_equal(inside_distance(points, array(0, 0, 10, 10)), [5, 1, 0, -2, -3])


def test_centerness():
    points = array([5, 5], [2, 5], [2, 2], [0, 5], [-1, -1])
    np.testing.assert_allclose(centerness(points, array(0, 0, 10, 10)), [1, 0.5, 0.25, 0, 0], atol=1e-7)
    assert np.isfinite(centerness(array(3, 3), array(3, 3, 3, 3)))
