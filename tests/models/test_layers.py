"""Norms, ReLU and the geometric mean of sigmoids."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_models import golden_ops
from tood_jax.models.layers import Norm
from tood_jax.ops.geometric_mean import sigmoid_geometric_mean
from tood_jax.ops.group_norm import EPSILON, group_norm
from tood_jax.ops.relu import relu


def test_frozen_batch_norm_uses_running_statistics():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 3, 2)), jnp.float32)
    variables = {
        "params": {"norm": {"scale": jnp.array([2.0, 1.0]), "bias": jnp.array([0.0, 1.0])}},
        "batch_stats": {"norm": {"mean": jnp.array([1.0, 0.0]), "var": jnp.array([4.0, 1.0])}},
    }
    y = Norm("frozen_batch").apply(variables, x, train=True)
    np.testing.assert_allclose(y[..., 0], (x[..., 0] - 1) / np.sqrt(4 + 1e-5) * 2, rtol=1e-5)
    np.testing.assert_allclose(y[..., 1], x[..., 1] / np.sqrt(1 + 1e-5) + 1, rtol=1e-5)


def test_batch_norm_trains_and_keeps_its_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 5, 5, 2)), jnp.float32)
    norm = Norm("batch")
    variables = norm.init(jax.random.key(0), x)
    y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(0, 1, 2)), 1, atol=1e-4)
    mean = updated["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * x.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(norm.apply(variables, x), x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_group_norm_of_large_values():
    """The variance is taken of differences: a mean of 1,000 doesn't spoil it."""
    x = jnp.asarray(np.random.default_rng(0).normal(1000, 1, (1, 8, 8, 8)), jnp.float32)
    y, _ = Norm("group", groups=2).init_with_output(jax.random.key(0), x)
    by_group = np.asarray(y).reshape(64, 2, 4)
    np.testing.assert_allclose(by_group.mean(axis=(0, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(by_group.std(axis=(0, 2)), 1, atol=1e-3)


def test_geometric_mean_equals_golden():
    ops = golden_ops()
    a, b = jnp.asarray(ops["gm.a"]), jnp.asarray(ops["gm.b"])
    np.testing.assert_allclose(sigmoid_geometric_mean(a, b), ops["gm.y"], rtol=1e-5, atol=1e-9)
    to_a, to_b = jax.jit(jax.grad(lambda a, b: sigmoid_geometric_mean(a, b).sum(), (0, 1)))(a, b)
    np.testing.assert_allclose(to_a, ops["gm.grad_a"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(to_b, ops["gm.grad_b"], rtol=1e-4, atol=3e-7)  # 1 − σ loses 1e-7 there, not here


def test_geometric_mean_literals_and_extremes():
    zero, big = jnp.zeros(1), np.array([0.0, 50, -50, 200, -200], np.float32)
    np.testing.assert_allclose(sigmoid_geometric_mean(zero, zero), 0.5, rtol=1e-6)
    np.testing.assert_allclose(sigmoid_geometric_mean(jnp.log(zero + 3), zero), np.sqrt(0.75 * 0.5), rtol=1e-6)
    pairs = jnp.asarray(np.stack(np.meshgrid(big, big)).reshape(2, -1))
    value, gradient = jax.jit(jax.value_and_grad(lambda p: sigmoid_geometric_mean(p[0], p[1]).sum()))(pairs)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    y = sigmoid_geometric_mean(pairs[0], pairs[1])
    assert ((y >= 0) & (y <= 1)).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.1)])
@pytest.mark.parametrize("shape", [(2, 5, 7, 12), (1, 1, 1, 4)])
def test_group_norm_is_flaxs(shape, dtype, tolerance):
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.normal(2, 3, shape), dtype) for _ in range(2))
    scale, bias = (jnp.asarray(rng.standard_normal(shape[-1]), jnp.float32) for _ in range(2))

    def theirs(x, scale, bias):
        norm = nn.GroupNorm(4, epsilon=EPSILON, dtype=dtype, use_fast_variance=False)
        return norm.apply({"params": {"scale": scale, "bias": bias}}, x)

    out, pull_back = jax.vjp(lambda *given: group_norm(*given, 4), x, scale, bias)
    expected, their_pull_back = jax.vjp(theirs, x, scale, bias)
    assert out.dtype == dtype
    for ours, other in zip((out, *pull_back(cotangent)), (expected, *their_pull_back(cotangent)), strict=True):
        assert ours.dtype == other.dtype
        np.testing.assert_allclose(
            ours.astype(jnp.float32), other.astype(jnp.float32), rtol=tolerance, atol=tolerance * (1 + shape[1])
        )


def test_relu_and_its_gradient_at_zero_and_nan():
    x = jnp.array([-1.0, 0.0, 2.0, jnp.nan])
    out, pull_back = jax.vjp(relu, x)
    np.testing.assert_array_equal(out, nn.relu(x))
    np.testing.assert_array_equal(pull_back(jnp.full(4, 3.0))[0], [0, 0, 3, 0])
