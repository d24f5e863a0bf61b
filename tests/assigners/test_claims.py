"""Settling of claims, by hand; chunks change nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.assigners.claims import Claims, claim_in_chunks, settle, spread


def claims(cell, positive, iou, metric=None):
    iou = jnp.asarray(iou, jnp.float32)
    metric = iou if metric is None else jnp.asarray(metric, jnp.float32)
    return Claims(jnp.asarray(cell, jnp.int32), jnp.asarray(positive, bool), iou, metric)


def test_the_higher_iou_wins_and_the_first_object_wins_a_tie():
    three = claims(
        [[0, 1, 4], [1, 2, 0], [2, 4, 3]],
        [[1, 1, 1], [1, 1, 0], [1, 1, 0]],
        [[0.2, 0.5, 0.5], [0.6, 0.3, 0.9], [0.4, 0.5, 0.9]],
    )
    gt_index, granted = settle(three, 6)
    np.testing.assert_array_equal(gt_index, [0, 1, 2, -1, 0, -1])
    np.testing.assert_array_equal(granted, [[1, 0, 1], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(spread(three.iou, three, granted, 6), [0.2, 0.6, 0.4, 0, 0.5, 0])


def test_an_overlap_of_zero_can_be_claimed():
    gt_index, _ = settle(claims([[1]], [[True]], [[0.0]]), 3)
    np.testing.assert_array_equal(gt_index, [-1, 0, -1])


def test_no_objects():
    none = claims(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2)))
    gt_index, granted = settle(none, 4)
    np.testing.assert_array_equal(gt_index, [-1] * 4)
    np.testing.assert_array_equal(spread(none.iou, none, granted, 4), np.zeros(4))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 8])
def test_chunks_change_nothing(chunk):
    rng = np.random.default_rng(0)
    objects = jnp.asarray(rng.random((7, 3)), jnp.float32), jnp.arange(7)

    def claim(values, indices):
        return Claims(indices[:, None] + jnp.arange(3), values > 0.5, values, values * 2)

    for whole, parts in zip(claim(*objects), claim_in_chunks(claim, objects, chunk), strict=True):
        np.testing.assert_array_equal(whole, parts)
