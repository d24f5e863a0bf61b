"""PAA: scikit-learn's numbers, a plain mixture, a plain loop over objects, and what must hold of any picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.assigners.max_iou import assign_max_iou
from tood_jax.assigners.paa import assign_paa, assign_paa_batch, fit_mixture, separate
from tood_jax.geometry.locations import make_pyramid
from tood_jax.types import Assignment

CELLS = make_pyramid(64, 64)
ANCHORS = CELLS.anchors(3.0)
N, M = len(ANCHORS), 6
SEEDS = st.integers(0, 2**32 - 1)

# Costs → weight of the first Gaussian, means, variances, and the places of the positives; from scikit-learn 1.9.1:
# GaussianMixture(2, weights_init=[.5, .5], means_init=[[min], [max]], precisions_init=[[1.], [1.]],
# covariance_type="diag").fit(costs), then the published scheme on its predict and score_samples.
SKLEARN = [
    (
        [0.42, 0.51, 0.55, 0.6, 0.63, 1.7, 1.9, 2.0, 2.1, 2.4, 2.6],
        (0.454545, [0.5419999, 2.1166653], [0.005417, 0.0913919], [0, 1, 2]),
    ),
    ([0.2, 3.1], (0.5, [0.2, 3.1], [1e-06, 1e-06], [0])),
    (
        [1.0, 1.01, 1.02, 1.03, 1.05, 1.4, 1.9, 2.9, 3.2, 4.1, 4.4, 4.5, 5.0],
        (0.5273554, [1.1870899, 3.9665132], [0.0903994, 0.6367499], [0, 1, 2, 3, 4]),
    ),
    (
        [0.9, 0.95, 1.1, 1.2, 1.25, 1.3, 1.5, 1.6],
        (0.5043324, [1.2060891, 1.2442415], [0.0509002, 0.0533957], [0, 1, 2, 3]),
    ),
    ([0.31, 2.2, 2.21, 2.23, 2.25, 2.6], (0.1666667, [0.31, 2.298], [1e-06, 0.023097], [0])),
    ([7.0, 7.5, 9.0, 20.0, 21.0, 22.5, 23.0], (0.4285714, [7.8333333, 21.625], [0.7222232, 1.421876], [0, 1])),
]


@functools.cache
def program(**options):
    return jax.jit(functools.partial(assign_paa, level_slices=CELLS.level_slices, **options))


def assign(*one, **options):
    return jax.device_get(program(**options)(*one))


@functools.cache
def first_assignment():
    return jax.jit(functools.partial(assign_max_iou, positive_iou=0.1, negative_iou=0.1))


def picture(seed, objects=M):
    """(initial, costs, valid, gt_mask)"""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-4, 40, (objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 60, (objects, 2))], axis=1).astype(np.float32)
    valid, mask = rng.random(N) < 0.9, rng.random(objects) < 0.8
    initial = jax.device_get(first_assignment()(ANCHORS, valid, boxes, mask))
    costs = np.where(rng.random(N) < 0.5, rng.normal(1, 0.2, N), rng.normal(3, 0.6, N))
    return initial, np.abs(costs).astype(np.float32), valid, mask


def plain_mixture(costs):
    """Weights, means, variances; scikit-learn's steps with its sums of squares, in float64."""
    costs = np.asarray(costs, np.float64)
    weights, means, variances = np.array([0.5, 0.5]), np.array([costs.min(), costs.max()]), np.ones(2)
    bound = -np.inf
    for _ in range(100):
        parts = weights * np.exp(-((costs[:, None] - means) ** 2) / 2 / variances) / np.sqrt(2 * np.pi * variances)
        density = parts.sum(axis=1)
        share = parts / density[:, None]
        mass = share.sum(axis=0) + 10 * np.finfo(np.float64).eps
        means = share.T @ costs / mass
        variances = share.T @ costs**2 / mass - means**2 + 1e-6
        weights = mass / len(costs) / (mass / len(costs)).sum()
        before, bound = bound, np.log(density).mean()
        if abs(bound - before) < 1e-3:
            break
    return weights, means, variances


def plain_separate(costs):
    """Places of the positives among costs in any order; of densities equal to five digits, the dearest is the peak."""
    if len(costs) < 2:
        return []
    order = np.argsort(costs, kind="stable")
    costs = np.asarray(costs, np.float64)[order]
    weights, means, variances = plain_mixture(costs)
    with np.errstate(divide="ignore"):
        parts = np.log(weights) - (costs[:, None] - means) ** 2 / 2 / variances - np.log(2 * np.pi * variances) / 2
    first = [place for place in range(len(costs)) if parts[place, 0] >= parts[place, 1]]
    density = np.array([np.logaddexp(*parts[place]) for place in first])
    peak = np.flatnonzero(density >= density.max(initial=-np.inf) - 1e-5)
    return sorted(order[place] for place in first[: peak[-1] + 1]) if first else []


def plain(initial, costs, valid, gt_mask, topk=9):
    """Object by object, level by level."""
    owner = np.where(initial.gt_index == -2, -2, -1)
    for i in np.flatnonzero(gt_mask):
        candidates = []
        for level in CELLS.level_slices:
            mine = [j for j in range(level.start, level.stop) if initial.gt_index[j] == i and valid[j]]
            candidates += sorted(mine, key=lambda j: costs[j])[:topk]
        for place in plain_separate(costs[candidates]):
            owner[candidates[place]] = i
    return owner


@pytest.mark.parametrize(("costs", "expected"), SKLEARN)
def test_equals_scikit_learn(costs, expected):
    weight, means, variances, places = expected
    rng = np.random.default_rng(0)
    order = rng.permutation(len(costs) + 3)  # three that don't count, anywhere
    padded = np.append(costs, [-50, 0, 99]).astype(np.float32)[order]
    usable = (np.arange(len(order)) < len(costs))[order]
    found = jax.jit(fit_mixture)(padded, usable)
    np.testing.assert_allclose(found.weights, [weight, 1 - weight], atol=2e-5)
    np.testing.assert_allclose(found.means, means, rtol=2e-5)
    np.testing.assert_allclose(found.variances, variances, rtol=2e-4)
    positive = jax.jit(separate)(padded, usable)
    assert sorted(order[np.flatnonzero(positive)].tolist()) == places
    assert sorted(plain_separate(np.array(costs))) == places


@given(SEEDS, st.integers(2, 45))
def test_mixture_equals_plain_numbers(seed, count):
    """In float64, so that both end after the same iteration."""
    rng = np.random.default_rng(seed)
    costs = np.abs(
        np.where(rng.random(45) < rng.random(), rng.normal(1, rng.uniform(0.05, 1), 45), rng.normal(4, 1, 45))
    )
    usable = np.arange(45) < count
    with jax.enable_x64(True):
        found = jax.device_get(jax.jit(fit_mixture)(costs, usable))
        positive = jax.device_get(jax.jit(separate)(costs, usable))
    for ours, theirs in zip(found, plain_mixture(costs[:count]), strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(np.flatnonzero(positive), plain_separate(costs[:count]))


def test_few_or_equal_candidates():
    some = jax.jit(separate)
    costs = jnp.array([2.0, 2.0, 2.0, 5.0])
    assert not some(costs, jnp.zeros(4, bool)).any()
    assert not some(costs, jnp.array([False, True, False, False])).any()  # one candidate: none, as published
    np.testing.assert_array_equal(some(costs, jnp.array([True, True, True, False])), [1, 1, 1, 0])
    np.testing.assert_array_equal(some(costs, jnp.array([False, False, True, True])), [0, 0, 1, 0])


@given(SEEDS)
def test_equals_a_plain_loop(seed):
    one = picture(seed)
    np.testing.assert_array_equal(assign(*one).gt_index, plain(*one))


def test_example_by_hand():
    """Object 0 has eleven anchors on P3, of which the dearest two are no candidates; object 1 has a single one."""
    costs = np.full(N, 0.1, np.float32)
    gt_index = np.full(N, -1, np.int32)
    mine = np.arange(11) * 3
    costs[mine] = [0.42, 2.0, 0.51, 0.55, 9.0, 0.6, 9.5, 0.63, 1.9, 2.1, 2.4]
    gt_index[mine] = 0
    gt_index[1] = 1
    gt_index[4] = -2
    iou = np.where(gt_index >= 0, 0.3, 0).astype(np.float32)
    initial = Assignment(gt_index, iou, iou, iou)
    found = assign(initial, costs, np.ones(N, bool), np.ones(2, bool))
    kept = np.flatnonzero(found.gt_index == 0)
    np.testing.assert_array_equal(kept, mine[[0, 2, 3]])  # as SKLEARN's first: up to the peak, at 0.55
    assert found.gt_index[1] == -1
    assert found.gt_index[4] == -2
    np.testing.assert_allclose(found.iou, np.where(found.gt_index >= 0, 0.3, 0), rtol=1e-6)
    np.testing.assert_array_equal(found.soft_label, found.gt_index >= 0)
    np.testing.assert_array_equal(found.metric, found.gt_index >= 0)


@given(SEEDS)
def test_assignment_properties(seed):
    initial, costs, valid, mask = picture(seed)
    found = assign(initial, costs, valid, mask)
    positive = found.gt_index >= 0
    assert (valid | ~positive).all()
    assert mask[found.gt_index[positive]].all()
    np.testing.assert_array_equal(found.gt_index[positive], initial.gt_index[positive])  # it only thins out
    np.testing.assert_array_equal(found.iou, np.where(positive, initial.iou, 0))
    for chunk in (1, 4):
        jax.tree.map(np.testing.assert_array_equal, found, assign(initial, costs, valid, mask, chunk=chunk))
    padded = assign(initial, costs, valid, np.pad(mask, (0, 3)))
    jax.tree.map(np.testing.assert_array_equal, found, padded)
    elsewhere = np.where(initial.gt_index >= 0, costs, np.nan)  # the cost of background means nothing
    jax.tree.map(np.testing.assert_array_equal, found, assign(initial, elsewhere, valid, mask))
    assert (assign(initial, costs, np.zeros(N, bool), mask).gt_index == -1).all()
    assert (assign(initial, costs, valid, np.zeros(M, bool)).gt_index == -1).all()


@pytest.mark.parametrize("objects", [0, M])
def test_no_objects(objects):
    _, costs, valid, mask = picture(0, objects)
    zeros = np.zeros(N, np.float32)
    initial = Assignment(np.full(N, -1, np.int32), zeros, zeros, zeros)
    found = assign(initial, costs, valid, mask)
    assert (found.gt_index == -1).all()
    assert all((value == 0).all() for value in found[1:4])


def test_one_huge_object_and_extreme_costs():
    """Every anchor is the object's: at most nine a level stay, whatever the costs' size."""
    ones = np.ones(N, np.float32)
    initial = Assignment(np.zeros(N, np.int32), ones, ones, ones)
    costs = np.random.default_rng(0).uniform(0, 1, N).astype(np.float32)
    for scale in (0, 1e-6, 1, 1e4):
        found = assign(initial, costs * np.float32(scale), np.ones(N, bool), np.ones(1, bool))
        positive = found.gt_index == 0
        assert positive.sum() >= 1
        assert all(positive[level].sum() <= 9 for level in CELLS.level_slices)
    assert assign(initial, costs, np.ones(N, bool), np.ones(1, bool), topk=1000).gt_index[costs.argmin()] == 0


def test_no_gradient_flows():
    initial, costs, valid, mask = jax.tree.map(jnp.asarray, picture(4))

    def total(iou, costs):
        return sum(x.sum() for x in assign_paa(initial._replace(iou=iou), costs, valid, mask,
                                               level_slices=CELLS.level_slices)[1:4])  # fmt: skip

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(initial.iou, costs)
    assert value > 0
    assert all((g == 0).all() for g in gradients)


def test_images_of_a_batch_are_independent():
    pictures = [picture(seed) for seed in (5, 6)]
    batch = jax.tree.map(lambda *both: np.stack(both), *pictures)
    found = jax.jit(functools.partial(assign_paa_batch, level_slices=CELLS.level_slices))(*batch)
    for i, one in enumerate(pictures):
        np.testing.assert_array_equal(found.gt_index[i], assign(*one).gt_index)
