"""`compare_torch.py --precision double` computes a network in float64: a whole training step must trace so.

PyTorch isn't needed here, and nothing is compiled, so this runs with the quick tests; the comparison itself is among
the checks that need PyTorch.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import random_batch, tiny_config
from tood_jax.config import BackboneConfig, Config, HeadConfig, NeckConfig
from tood_jax.criterion.losses import losses_and_targets
from tood_jax.models.build import build_model

TINY = tiny_config(Path(), Path())
DEFORMABLE = Config(
    backbone=BackboneConfig(depth=50, width=8, deformable_stages=(4,)),
    neck=NeckConfig(channels=16),
    head=HeadConfig(channels=16, num_convs=2, norm_groups=4, deformable_convs=1),
)


@pytest.mark.parametrize("config", [TINY, DEFORMABLE], ids=["tiny", "deformable"])
def test_a_training_step_is_traced_in_float64(config):
    batch = random_batch(2)
    with jax.enable_x64(True):
        batch = jax.tree.map(jnp.asarray, batch._replace(gt_boxes=batch.gt_boxes.astype(np.float64)))
        model = build_model(config, 4, dtype=jnp.float64)
        images = jax.ShapeDtypeStruct(batch.images.shape, np.float64)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float64), variables)

        def step(variables, images, aligned):
            def total(params):
                pred, _ = model.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])
                return losses_and_targets(pred, batch, aligned, config)[0].total, pred

            return jax.value_and_grad(total, has_aux=True)(variables["params"])

        found = jax.eval_shape(step, variables, images, jax.ShapeDtypeStruct((), bool))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"float64"}
