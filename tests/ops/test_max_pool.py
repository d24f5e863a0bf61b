"""Max-pooling of slices against XLA's own, forward and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.ops.max_pool import _native, max_pool


@pytest.mark.parametrize("shape", [(2, 8, 10, 3), (1, 7, 9, 4), (3, 1, 2, 2)])
@pytest.mark.parametrize("levels", [3, 1000])
def test_equals_the_native_one(shape, levels):
    """With three levels of values nearly every window has equal cells: the first gets the gradient."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-levels, levels, shape), jnp.float32)
    out, pull_back = jax.vjp(max_pool, x)
    expected, native_pull_back = jax.vjp(_native, x)
    np.testing.assert_array_equal(out, expected)
    cotangent = jnp.asarray(rng.integers(-8, 8, out.shape), jnp.float32)
    np.testing.assert_array_equal(pull_back(cotangent)[0], native_pull_back(cotangent)[0])


@pytest.mark.parametrize("at", [(3, 3), (4, 4), (0, 7)])
def test_a_nan_is_not_lost(at):
    x = jnp.zeros((1, 8, 8, 1)).at[0, at[0], at[1], 0].set(jnp.nan)
    np.testing.assert_array_equal(jnp.isnan(max_pool(x)), jnp.isnan(_native(x)))


def test_platform_compiled_for_decides():
    def text(platform):
        gradient = jax.jit(jax.grad(lambda x: max_pool(x).sum()))
        return gradient.trace(jnp.ones((1, 8, 8, 2))).lower(lowering_platforms=(platform,)).as_text()

    assert "select_and_scatter" not in text("cpu")
    assert "select_and_scatter" in text("tpu")
    assert "select_and_scatter" in text("cuda")
