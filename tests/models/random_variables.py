"""Random weights of a network, none of which is 0: every bias fills the padding."""

import jax
import jax.numpy as jnp
import numpy as np

from tood_jax.models.detector import Detector
from tood_jax.types import Tree


def random_variables(model: Detector, seed: int = 0) -> Tree:
    """Return params and batch_stats; kernels keep the size of maps, scales and variances are in 0.5–1.5."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if len(shape) == 4:
            values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        elif name in ("scale", "scales", "var"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0.1, 0.3, shape)
        return jnp.asarray(values, jnp.float32)

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    return jax.tree.map_with_path(draw, shapes)
