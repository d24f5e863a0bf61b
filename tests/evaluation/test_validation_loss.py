"""The loss on the val split, in the pass that detects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import random_batch, tiny_config
from tood_jax.criterion.losses import detection_losses
from tood_jax.distributed.sharding import make_mesh
from tood_jax.evaluation.predict import compile_detect_step, detect_batches, mean_losses
from tood_jax.models.build import build_model
from tood_jax.models.detector import normalize_images


@pytest.mark.slow
@pytest.mark.parametrize("in_tal_phase", [False, True])
def test_the_loss_of_batches_equals_that_of_all_their_images_at_once(in_tal_phase, tmp_path):
    """Also with a row that only fills a batch."""
    config = tiny_config(tmp_path, tmp_path)
    model = build_model(config, 4)
    mesh = make_mesh([jax.devices()[0]], 1)
    batch = random_batch(6)
    whole = jax.tree.map(jnp.asarray, batch)
    images = normalize_images(whole.images, whole.sizes, config.data.pixel_mean, config.data.pixel_std)
    variables = model.init(jax.random.key(0), images, False, whole.sizes)
    pred = jax.jit(lambda variables: model.apply(variables, images, False, whole.sizes))(variables)
    expected = jax.jit(lambda pred: detection_losses(pred, whole, in_tal_phase, config))(pred)

    first, second = (jax.tree.map(lambda x, part=part: x[part].copy(), batch) for part in (slice(0, 4), slice(2, 6)))
    for name, empty in (("sizes", 0), ("gt_mask", False), ("image_indices", -1), ("images", 0)):
        getattr(second, name)[:2] = empty
    step = compile_detect_step(model, config, mesh, with_losses=True)
    sums = []
    found = list(
        detect_batches(
            lambda *inputs: step(*inputs, jnp.asarray(in_tal_phase)),
            variables["params"],
            variables["batch_stats"],
            [first, second],
            mesh,
            sums,
        )
    )
    assert [one.image_index for one in found] == [0, 1, 2, 3, 4, 5]
    losses = mean_losses(sums)
    np.testing.assert_allclose(losses["loss_cls"], expected.cls.sum(), rtol=1e-4)
    np.testing.assert_allclose(losses["loss_box"], expected.box.sum(), rtol=1e-4)
    np.testing.assert_allclose(losses["loss"], expected.total, rtol=1e-4)


def test_without_losses_there_are_no_numbers():
    assert mean_losses([]) == {}
