"""GIoU loss: golden numbers, literals, gradients, masked batch equals its subset."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden_models import golden_ops
from tood_jax.losses.regression import giou_loss

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
