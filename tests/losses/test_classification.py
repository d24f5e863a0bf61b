"""Classification losses: golden numbers, literals, gradients that stay finite, masked batch equals its subset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_models import golden_ops
from tood_jax.losses.classification import binary_cross_entropy, focal_loss, quality_focal_loss

OPS = golden_ops()
PROB = jnp.asarray(OPS["loss.prob"])  # [40, 7]
ONE_HOT = jnp.asarray(np.eye(8, dtype=np.float32)[OPS["loss.label_7_is_background"]][:, :7])
SOFT = ONE_HOT * OPS["loss.soft"][:, None]


def test_quality_focal_loss_equals_golden():
    np.testing.assert_allclose(jax.jit(quality_focal_loss)(PROB, SOFT).sum(axis=1), OPS["loss.qfl"], rtol=1e-5)


def test_focal_loss_equals_golden():
    np.testing.assert_allclose(jax.jit(focal_loss)(PROB, ONE_HOT), OPS["loss.focal"], rtol=1e-5, atol=1e-9)


def test_literals():
    prob, target = jnp.asarray([0.5, 0.25, 0.9, 0.9]), jnp.asarray([1.0, 0.0, 0.6, 0.9])
    entropy = [0.693147, 0.287682, -0.6 * np.log(0.9) - 0.4 * np.log(0.1), 0.325083]
    np.testing.assert_allclose(binary_cross_entropy(prob, target), entropy, rtol=1e-5)
    expected = np.array([0.25, 0.0625, 0.09, 0]) * entropy
    np.testing.assert_allclose(quality_focal_loss(prob, target), expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(quality_focal_loss(prob, target, beta=1.0)[:2], [0.346574, 0.071921], rtol=1e-5)
    focal = focal_loss(prob[:2], target[:2])
    np.testing.assert_allclose(focal, [0.25 * 0.25 * 0.693147, 0.75 * 0.0625 * 0.287682], rtol=1e-5)


@pytest.mark.parametrize("loss", [quality_focal_loss, focal_loss])
def test_gradient_is_the_slope(loss):
    prob = jnp.asarray(np.linspace(0.05, 0.95, 19), jnp.float32)

    @jax.jit
    def gradient_and_slope(prob, target):
        target = jnp.full_like(prob, target)
        slope = (loss(prob + 1e-3, target) - loss(prob - 1e-3, target)) / 2e-3
        return jax.grad(lambda p: loss(p, target).sum())(prob), slope

    for target in (0.0, 1.0):
        gradient, slope = gradient_and_slope(prob, target)
        np.testing.assert_allclose(gradient, slope, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("loss", [quality_focal_loss, focal_loss, binary_cross_entropy])
def test_certain_scores_stay_finite(loss):
    """p = 0 and 1, right and wrong; a logarithm stops at −100."""
    prob, target = jnp.asarray([0.0, 0.0, 1.0, 1.0]), jnp.asarray([0.0, 1.0, 0.0, 1.0])
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, target).sum()))(prob)
    assert np.isfinite(gradient).all()
    assert gradient[1] < 0 < gradient[2]
    assert gradient[0] == gradient[3] == 0
    weight = 0.25 + 0.75 if loss is focal_loss else 2  # α and 1 − α
    assert float(value) == pytest.approx(100 * weight)


def test_no_gradient_flows_to_the_target():
    assert not jax.jit(jax.grad(lambda t: binary_cross_entropy(PROB, t).sum()))(SOFT).any()


def test_masked_equals_subset():
    keep = np.arange(40) % 3 > 0

    def total(prob, soft, mask):
        return jnp.where(mask[:, None], quality_focal_loss(prob, soft), 0).sum()

    learn = jax.jit(jax.value_and_grad(total))
    prob, soft = np.asarray(PROB), np.asarray(SOFT)
    value, gradient = jax.device_get(learn(prob, soft, keep))
    subset_value, subset = jax.device_get(learn(prob[keep], soft[keep], keep[keep]))
    assert float(value) == pytest.approx(float(subset_value), rel=1e-6)
    np.testing.assert_allclose(gradient[keep], subset, rtol=1e-6)
    assert not gradient[~keep].any()
