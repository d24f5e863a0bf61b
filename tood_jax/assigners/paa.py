"""Probabilistic anchor assignment: a Gaussian mixture splits the anchors of each object.

PAA: Kim and Lee 2020, section 3.1.

Axes: N anchors · M padded objects · K candidates per object (topk per level) · G objects per chunk. Costs are losses ≥
0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from tood_jax.assigners.base import Candidates, map_in_chunks, resolve_conflicts, scatter
from tood_jax.types import Assignment

REGULARISATION = 1e-6  # added to every variance
TOLERANCE = 1e-3  # of the mean log density between two iterations
MAX_ITERATIONS = 100
SAME_LOG_DENSITY = 1e-5  # more than float32's rounding


class Mixture(NamedTuple):
    """Two Gaussians in one dimension; the first began at the lowest cost, the second at the highest."""

    weights: Float[Array, "2"]
    means: Float[Array, "2"]
    variances: Float[Array, "2"]


def log_densities(costs: Float[Array, " k"], mixture: Mixture) -> Float[Array, "k 2"]:
    """Logarithm of weight · density, of each cost under each Gaussian."""
    distance = (costs[:, None] - mixture.means) ** 2 / mixture.variances
    return jnp.log(mixture.weights) - 0.5 * (jnp.log(2 * jnp.pi * mixture.variances) + distance)


def fit_mixture(costs: Float[Array, " k"], usable: Bool[Array, " k"]) -> Mixture:
    """Expectation-maximisation from means at the extremes, equal weights and variance 1 (section 3.1).

    It ends as scikit-learn's GaussianMixture does: when an iteration changes the mean log density of the costs by less
    than 1e-3, or after 100.

    Args:
        costs: finite where usable.
        usable: which costs count; with none, the result means nothing.
    """
    costs = jnp.where(usable, costs, 0)
    total = jnp.maximum(usable.sum(), 1)
    tiny = 10 * jnp.finfo(costs.dtype).eps

    def iterate(state):
        mixture, bound, _, step = state
        joint = log_densities(costs, mixture)
        density = jax.nn.logsumexp(joint, axis=1)
        share = jnp.where(usable[:, None], jnp.exp(joint - density[:, None]), 0)  # [K, 2]
        mass = share.sum(axis=0) + tiny
        means = (share * costs[:, None]).sum(axis=0) / mass
        variances = (share * (costs[:, None] - means) ** 2).sum(axis=0) / mass + REGULARISATION
        new_bound = jnp.sum(density, where=usable) / total
        return Mixture(mass / mass.sum(), means, variances), new_bound, jnp.abs(new_bound - bound), step + 1

    def is_changing(state):
        _, _, change, step = state
        return (change >= TOLERANCE) & (step < MAX_ITERATIONS)

    ends = jnp.stack([jnp.min(costs, where=usable, initial=jnp.inf), jnp.max(costs, where=usable, initial=-jnp.inf)])
    ends = jnp.where(jnp.isfinite(ends), ends, 0)
    start = Mixture(jnp.full(2, 0.5, costs.dtype), ends, jnp.ones(2, costs.dtype))
    infinity = jnp.asarray(jnp.inf, costs.dtype)
    return lax.while_loop(is_changing, iterate, (start, -infinity, infinity, 0))[0]


def separate(costs: Float[Array, " k"], usable: Bool[Array, " k"]) -> Bool[Array, " k"]:
    """Which of an object's candidates are positive: scheme (c) of the paper's figure 3, as published code has it.

    Of the candidates that the first Gaussian explains best, those up to the one of highest density (under the whole
    mixture; of equals, that of highest cost), by cost. An object with fewer than two candidates has none.
    """
    order = jnp.argsort(jnp.where(usable, costs, jnp.inf))
    costs, usable = costs[order], usable[order]
    costs = costs - costs[0]  # finer numbers around the first Gaussian
    joint = log_densities(costs, fit_mixture(costs, usable))
    first = usable & (joint[:, 0] >= joint[:, 1])
    density = jnp.where(first, jax.nn.logsumexp(joint, axis=1), -jnp.inf)
    # A Gaussian of just two costs has its mean between them; in the published code gaps of 1e-6 to 1e-14, half of them
    # float64's own rounding, then decide which is the peak. Here it is the one of higher cost.
    is_peak = first & (density >= density.max() - SAME_LOG_DENSITY)
    up_to_peak = jnp.cumsum(is_peak[::-1])[::-1] > 0
    positive = first & up_to_peak & (usable.sum() >= 2)
    return jnp.zeros_like(positive).at[order].set(positive)


def assign_paa(
    initial: Assignment,
    costs: Float[Array, " n"],
    valid: Bool[Array, " n"],
    gt_mask: Bool[Array, " m"],
    *,
    level_slices: tuple[slice, ...],
    topk: int = 9,
    chunk: int = 64,
) -> Assignment:
    """Keep the positives of one image that have a low cost; no gradient flows through it.

    An object's candidates are, on each level, the `topk` cheapest of the anchors that it has at first. A mixture of two
    Gaussians is fitted to their costs; the candidates of the cheaper one, up to its peak, stay positive. All other
    anchors become background (the published code ignores none), but those ignored at first.

    Args:
        initial: `assign_max_iou` with positive_iou = negative_iou = 0.1.
        costs: classification loss plus box loss of each anchor with the object it has at first; any number elsewhere.
        valid: False for anchors of locations outside the image's padded area.
        gt_mask: padded objects.
        level_slices: which part of N each level is.
        topk: candidates per level, clamped to the level's anchors.
        chunk: objects processed at a time; memory grows with chunk · N.

    Returns:
        Assignment over [N]; metric and soft_label are 1 on positives, iou is the initial one.
    """
    initial, costs = lax.stop_gradient(jax.tree.map(jnp.asarray, (initial, costs)))
    valid, gt_mask = jnp.asarray(valid), jnp.asarray(gt_mask)
    num_anchors = costs.shape[0]

    def select(index, gt_mask) -> Candidates:
        own = (initial.gt_index == index[:, None]) & valid & gt_mask[:, None]  # [G, N]
        own_costs = jnp.where(own, costs, jnp.inf)
        cheapest = [lax.top_k(-own_costs[:, s], min(topk, s.stop - s.start))[1] + s.start for s in level_slices]
        anchor = jnp.concatenate(cheapest, axis=1)  # [G, K]
        positive = jax.vmap(separate)(costs[anchor], jnp.take_along_axis(own, anchor, axis=1))
        iou = initial.iou[anchor]
        return Candidates(anchor, positive, iou, jnp.ones_like(iou))

    candidates = map_in_chunks(select, (jnp.arange(gt_mask.shape[0], dtype=jnp.int32), gt_mask), chunk)
    gt_index, kept = resolve_conflicts(candidates, num_anchors)
    ones = (gt_index >= 0).astype(candidates.iou.dtype)
    gt_index = jnp.where(ones == 0, jnp.minimum(initial.gt_index, -1), gt_index)
    return Assignment(gt_index, ones, scatter(candidates.iou, candidates, kept, num_anchors), ones)


def assign_paa_batch(initial, costs, valid, gt_mask, **options) -> Assignment:
    """Apply `assign_paa` to a batch: every argument has B in front."""
    return jax.vmap(lambda *image: assign_paa(*image, **options))(initial, costs, valid, gt_mask)
