"""The tower's ways agree, and its report has them."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import tower
from tood_jax.geometry.packing import packing
from tood_jax.networks.packed_norm import packed_norm


def test_the_report(measured, capsys):
    report = measured(tower, "--batch=1", "--height=64", "--width=64", "--channels=32")
    assert len(report["results"]) == 3
    assert all(row["hbm_bytes"] > 0 and row["compile_seconds"] > 0 for row in report["results"])
    assert "| packed_norm, our options" in capsys.readouterr().out


def test_both_norms_have_the_same_gradients():
    rng = np.random.default_rng(0)
    where = packing(((4, 6), (2, 3)))

    def noise(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    in_levels = jnp.asarray(where.level_map() >= 0, jnp.float32)[..., None]
    x, cotangent = (noise(2, where.height, where.width, 32) * in_levels for _ in range(2))
    layers = [(noise(3, 3, 32, 32), noise(32), noise(32)) for _ in range(tower.LAYERS)]
    ways = [jax.jit(tower.tower(norm, where))(layers, x, cotangent) for norm in (packed_norm, tower.norm_by_level)]
    for ours, theirs in zip(*map(jax.tree.leaves, ways), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(jnp.abs(theirs).max()))
