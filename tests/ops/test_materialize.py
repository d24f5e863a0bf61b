import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.ops.materialize import materialize

# Nothing subnormal: compiled as the tests are, the division is carried out, and XLA's threads flush such to zero.
EXTREMES = [0.0, -0.0, 1.5, -1.5, np.inf, -np.inf, np.nan, -np.nan, np.finfo(np.float32).tiny, np.finfo(np.float32).max]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_changes_no_bit(dtype):
    x = jnp.asarray(np.resize(np.array(EXTREMES, np.float32), 1024), dtype)
    out = jax.jit(materialize)(x)
    assert out.dtype == x.dtype
    number = np.dtype(f"uint{8 * x.dtype.itemsize}")
    np.testing.assert_array_equal(np.asarray(out).view(number), np.asarray(x).view(number))


def test_gradient_is_the_cotangent():
    x = jnp.linspace(-2, 2, 64)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: (materialize(x) * x).sum()))(x), 2 * x)


def test_a_chain_read_by_three_is_computed_once():
    def times_computed(keep):
        def run(a, b, c):
            chain = keep(jnp.maximum(a * b + c, 0))
            return chain + 1, chain.sum(axis=0), jnp.pad(chain, 1)

        return jax.jit(run).lower(*[jnp.ones((64, 64))] * 3).compile().as_text().count(" maximum(")

    assert times_computed(materialize) == 1
    assert times_computed(lambda x: x) > 1  # else there is no need for it any more


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_is_nothing_elsewhere(platform):
    text = jax.jit(materialize).trace(jnp.ones(8)).lower(lowering_platforms=(platform,)).as_text()
    assert "divide" not in text
