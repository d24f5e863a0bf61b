"""The formulations of the interactive layers agree, and the report has them."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import interactive_layers
from benchmarks.cases.interactive_layers import layers_gradient, norm_relu_by_level
from tood_jax.ops.t_head.level_maps import layout_of
from tood_jax.ops.t_head.norm_relu import norm_relu


def test_the_report(measured, capsys):
    report = measured(interactive_layers, "--batch=1", "--height=64", "--width=64", "--channels=32")
    assert len(report["results"]) == 3
    assert all(row["hbm_bytes"] > 0 and row["compile_seconds"] > 0 for row in report["results"])
    assert "| norm_relu, options of tood_jax" in capsys.readouterr().out


def test_both_norms_have_the_same_gradients():
    rng = np.random.default_rng(0)
    layout = layout_of(((4, 6), (2, 3)))

    def noise(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    in_levels = jnp.asarray(layout.level_index() >= 0, jnp.float32)[..., None]
    x, cotangent = (noise(2, layout.height, layout.width, 32) * in_levels for _ in range(2))
    layers = [(noise(3, 3, 32, 32), noise(32), noise(32)) for _ in range(interactive_layers.LAYERS)]
    gradients = [
        jax.jit(layers_gradient(norm, layout))(layers, x, cotangent) for norm in (norm_relu, norm_relu_by_level)
    ]
    for packed, by_level in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(packed, by_level, rtol=1e-3, atol=1e-3 * float(jnp.abs(by_level).max()))
