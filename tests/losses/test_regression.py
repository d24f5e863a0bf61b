"""Box losses: golden numbers, literals, gradients, masked batch equals its subset."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden_models import golden_ops
from tood_jax.losses.regression import distribution_focal_loss, giou_loss, smooth_l1_loss

OPS = golden_ops()


def test_equals_golden():
    loss = jax.jit(giou_loss)(OPS["pred_boxes"], OPS["giou_target"])
    np.testing.assert_allclose(loss, OPS["loss.giou"], rtol=1e-5, atol=1e-6)


def test_literals():
    pred = jnp.asarray([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1]])
    target = jnp.asarray([[0.0, 0, 2, 2], [1, 1, 3, 3], [3, 0, 4, 1]])
    np.testing.assert_allclose(giou_loss(pred, target), [0, 1 - 1 / 7 + 2 / 9, 1.5], atol=1e-6)


def test_gradient_of_apart_and_degenerate_boxes_is_finite():
    pred = jnp.asarray([[0.0, 0, 1, 1], [5, 5, 5, 5], [0, 0, 0, 0], [-1e4, -1e4, 1e4, 1e4]])
    target = jnp.asarray([[3.0, 0, 4, 1], [4, 4, 6, 6], [0, 0, 0, 0], [0, 0, 1, 1]])
    gradient = jax.jit(jax.grad(lambda p: giou_loss(p, target).sum()))(pred)
    assert np.isfinite(gradient).all()
    assert gradient[0, 2] < 0  # its right side should move right


def test_masked_equals_subset():
    pred, target = OPS["pred_boxes"][:64], OPS["giou_target"][:64]
    keep = np.arange(64) % 3 > 0

    def total(pred, target, weight):
        return (giou_loss(pred, target) * weight).sum()

    gradient = jax.jit(jax.grad(total))(pred, target, keep.astype(np.float32))
    subset = jax.jit(jax.grad(total))(pred[keep], target[keep], np.ones(keep.sum(), np.float32))
    np.testing.assert_allclose(gradient[keep], subset, rtol=1e-6)
    assert not gradient[~keep].any()


def test_smooth_l1_literals_and_slope():
    difference = jnp.asarray([-1.0, -0.055, 0.0, 0.055, 0.11, 2.0])
    quarter = 0.5 * 0.055**2 / 0.11
    np.testing.assert_allclose(
        jax.jit(smooth_l1_loss)(difference), [0.945, quarter, 0, quarter, 0.055, 1.945], rtol=1e-5, atol=1e-7
    )
    slope = jax.grad(lambda d: smooth_l1_loss(d).sum())(difference)
    np.testing.assert_allclose(slope, [-1, -0.5, 0, 0.5, 1, 1], rtol=1e-5)


def test_distribution_focal_loss_literals():
    """Between two bins the loss weighs both by nearness; on a bin it is that bin's cross entropy."""
    logits = jnp.log(jnp.asarray([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]]))
    loss = jax.jit(distribution_focal_loss)(logits, jnp.asarray([1.25, 2.0]))
    np.testing.assert_allclose(loss, [-(0.75 * np.log(0.2) + 0.25 * np.log(0.3)), -np.log(0.3)], rtol=1e-5)


def test_distribution_focal_loss_pulls_its_mean_to_the_distance():
    """At the minimum the two bins around the distance hold all, in the right shares, and the gradient is zero."""
    logits = jnp.full((1, 6), -50.0).at[0, 3].set(jnp.log(0.7)).at[0, 4].set(jnp.log(0.3))
    gradient = jax.grad(lambda x: distribution_focal_loss(x, jnp.asarray([3.3])).sum())
    np.testing.assert_allclose(gradient(logits), 0, atol=1e-6)
    assert np.isfinite(gradient(1000 * logits)).all()
