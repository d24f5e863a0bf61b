"""Conflicts over locations, by hand; chunks change nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.assigners.base import Candidates, map_in_chunks, resolve_conflicts, scatter


def candidates(location, positive, iou, metric=None):
    iou = jnp.asarray(iou, jnp.float32)
    metric = iou if metric is None else jnp.asarray(metric, jnp.float32)
    return Candidates(jnp.asarray(location, jnp.int32), jnp.asarray(positive, bool), iou, metric)


def test_the_higher_iou_wins_and_the_first_object_wins_a_tie():
    three = candidates(
        [[0, 1, 4], [1, 2, 0], [2, 4, 3]],
        [[1, 1, 1], [1, 1, 0], [1, 1, 0]],
        [[0.2, 0.5, 0.5], [0.6, 0.3, 0.9], [0.4, 0.5, 0.9]],
    )
    gt_index, kept = resolve_conflicts(three, 6)
    np.testing.assert_array_equal(gt_index, [0, 1, 2, -1, 0, -1])
    np.testing.assert_array_equal(kept, [[1, 0, 1], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(scatter(three.iou, three, kept, 6), [0.2, 0.6, 0.4, 0, 0.5, 0])


def test_a_candidate_may_have_an_iou_of_zero():
    gt_index, _ = resolve_conflicts(candidates([[1]], [[True]], [[0.0]]), 3)
    np.testing.assert_array_equal(gt_index, [-1, 0, -1])


def test_no_objects():
    none = candidates(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2)))
    gt_index, kept = resolve_conflicts(none, 4)
    np.testing.assert_array_equal(gt_index, [-1] * 4)
    np.testing.assert_array_equal(scatter(none.iou, none, kept, 4), np.zeros(4))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 8])
def test_chunks_change_nothing(chunk):
    rng = np.random.default_rng(0)
    objects = jnp.asarray(rng.random((7, 3)), jnp.float32), jnp.arange(7)

    def select(values, indices):
        return Candidates(indices[:, None] + jnp.arange(3), values > 0.5, values, values * 2)

    for whole, parts in zip(select(*objects), map_in_chunks(select, objects, chunk), strict=True):
        np.testing.assert_array_equal(whole, parts)
