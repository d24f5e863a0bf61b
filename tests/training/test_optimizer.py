"""Schedules equal literals; SGD equals PyTorch's formula; frozen parameters stay."""

from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tood_jax.config import BackboneConfig, Config, OptimizerConfig
from tood_jax.training.optimizer import (
    OPTIMIZERS,
    learning_rate_schedule,
    make_optimizer,
    scaled_learning_rate,
    trained_mask,
)

PARAMS = {
    "backbone": {
        "conv1": {"kernel": jnp.ones(3)},
        "norm1": {"norm": {"scale": jnp.ones(3)}},
        "layer1_0": {"conv1": {"kernel": jnp.ones(3)}},
        "layer2_0": {"conv1": {"kernel": jnp.ones(3)}},
    },
    "head": {"scales": jnp.ones(5)},
}


def test_the_rate_follows_the_global_batch():
    assert scaled_learning_rate(OptimizerConfig(), 16) == pytest.approx(0.01)
    assert scaled_learning_rate(OptimizerConfig(), 256) == pytest.approx(0.16)


def test_published_1x_schedule():
    schedule = learning_rate_schedule(OptimizerConfig(), batch_size=16, steps_per_epoch=7330, epochs=12)
    steps = [0, 250, 500, 8 * 7330 - 1, 8 * 7330, 11 * 7330]
    expected = [1e-5, 0.01 * 0.5005, 0.01, 0.01, 0.001, 0.0001]
    np.testing.assert_allclose([schedule(s) for s in steps], expected, rtol=1e-5)


def test_cosine_ends_at_zero():
    options = OptimizerConfig(schedule="cosine", warmup_steps=0)
    schedule = learning_rate_schedule(options, batch_size=16, steps_per_epoch=10, epochs=4)
    np.testing.assert_allclose([schedule(0), schedule(20), schedule(40)], [0.01, 0.005, 0], atol=1e-8)


def test_sgd_is_pytorchs():
    optimizer = make_optimizer(Config(backbone=BackboneConfig(frozen_stages=-1)))
    params, gradient = {"head": jnp.asarray([2.0])}, {"head": jnp.asarray([0.5])}
    state, value, momentum = optimizer.init(params), 2.0, 0.0
    for _ in range(3):
        updates, state = optimizer.update(gradient, state, params, learning_rate=0.1)
        params = optax.apply_updates(params, updates)
        momentum = 0.9 * momentum + (0.5 + 1e-4 * value)
        value -= 0.1 * momentum
        np.testing.assert_allclose(params["head"], [value], rtol=1e-6)


@pytest.mark.parametrize(("stages", "trained"), [(-1, 5), (0, 3), (1, 2), (4, 1)])
def test_frozen_stages(stages, trained):
    backbone = BackboneConfig(frozen_stages=stages)
    mask = trained_mask(PARAMS, backbone)
    assert sum(jax.tree.leaves(mask)) == trained
    optimizer = make_optimizer(Config(backbone=backbone))
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    updates, state = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS, learning_rate=0.1)
    assert len(jax.tree.leaves(state)) == trained  # frozen parameters have no momentum
    moved = jax.tree.map(lambda new, old: bool((new != old).all()), optax.apply_updates(PARAMS, updates), PARAMS)
    assert moved == mask


def test_clipping_bounds_the_gradient():
    config = Config(backbone=BackboneConfig(frozen_stages=-1), optimizer=OptimizerConfig(clip_norm=1.0, weight_decay=0))
    optimizer = make_optimizer(config)
    params = {"head": jnp.zeros(4)}
    updates, _ = optimizer.update({"head": jnp.full(4, 100.0)}, optimizer.init(params), params, learning_rate=1.0)
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0, rel=1e-5)


def test_adamw_equals_optax():
    options = OptimizerConfig(kind="adamw", weight_decay=0.05)
    optimizer = make_optimizer(Config(backbone=BackboneConfig(frozen_stages=-1), optimizer=options))
    expected = optax.adamw(0.01, weight_decay=0.05)
    ours = theirs = {"head": jnp.asarray([2.0, -1.0])}
    state, their_state = optimizer.init(ours), expected.init(theirs)
    for gradient in ([0.5, 1.0], [-2.0, 0.0], [1.0, 3.0]):
        gradients = {"head": jnp.asarray(gradient)}
        updates, state = optimizer.update(gradients, state, ours, learning_rate=0.01)
        their_updates, their_state = expected.update(gradients, their_state, theirs)
        ours, theirs = optax.apply_updates(ours, updates), optax.apply_updates(theirs, their_updates)
        np.testing.assert_allclose(ours["head"], theirs["head"], rtol=1e-6)


def test_a_parameter_of_no_known_stage_is_refused():
    """Else it would count as a part of the stem and be frozen silently."""
    params = {"backbone": {"attention": {"kernel": jnp.ones(3)}}}
    with pytest.raises(ValueError, match=r"parameter attention, and models\.resnet\.stage_of does not know its stage"):
        trained_mask(params, BackboneConfig())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_that_is_not_accepted_leaves_the_state(kind):
    """Whatever the gradients are: NaN must not get into a momentum."""
    optimizer = make_optimizer(Config(optimizer=OptimizerConfig(kind=kind)))
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    _, state = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS, learning_rate=0.1)
    broken = jax.tree.map(lambda x: x * jnp.nan, gradients)
    _, after = optimizer.update(broken, state, PARAMS, learning_rate=0.1, accepted=jnp.asarray(False))
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("schedule", get_args(get_type_hints(OptimizerConfig)["schedule"]))
def test_every_schedule_of_the_config_exists(schedule):
    options = OptimizerConfig(schedule=schedule)
    rate = learning_rate_schedule(options, batch_size=16, steps_per_epoch=100, epochs=12)(1100)
    assert 0 < float(rate) < 0.01
