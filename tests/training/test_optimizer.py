"""Schedules equal literals; SGD equals PyTorch's formula; frozen parameters stay."""

from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tood_jax.config import BackboneConfig, Config, ConfigError, OptimizerConfig
from tood_jax.training.optimizer import (
    OPTIMIZERS,
    learning_rate_schedule,
    make_optimizer,
    scaled_learning_rate,
    stop_frozen_gradients,
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


def test_one_cycle_rises_to_the_peak_and_ends_near_zero():
    options = OptimizerConfig(schedule="one_cycle")  # the warm-up of the default has no effect
    schedule = learning_rate_schedule(options, batch_size=16, steps_per_epoch=100, epochs=10)
    steps = [0, 150, 300, 650, 1000]
    np.testing.assert_allclose([schedule(s) for s in steps], [4e-4, 5.2e-3, 0.01, 0.005, 4e-8], rtol=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_schedule_of_a_very_short_run_is_finite(schedule, steps):
    options = OptimizerConfig(schedule=schedule, warmup_steps=0)
    rate = learning_rate_schedule(options, batch_size=16, steps_per_epoch=steps, epochs=1)
    assert all(0 <= float(rate(step)) <= 0.0100001 for step in range(steps))


def test_an_exponential_warm_up_grows_by_equal_factors():
    options = OptimizerConfig(warmup="exponential", warmup_steps=300, warmup_factor=0.001)
    schedule = learning_rate_schedule(options, batch_size=16, steps_per_epoch=7330, epochs=12)
    steps = [0, 100, 200, 300, 5000, 8 * 7330]
    np.testing.assert_allclose([schedule(s) for s in steps], [1e-5, 1e-4, 1e-3, 0.01, 0.01, 0.001], rtol=1e-5)


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
    mask = trained_mask(PARAMS, Config(backbone=backbone))
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


def first_update(options, params, gradients, rate=0.01):
    optimizer = make_optimizer(Config(backbone=BackboneConfig(frozen_stages=-1), optimizer=options))
    updates, _ = optimizer.update(gradients, optimizer.init(params), params, learning_rate=rate)
    return updates


def test_lion_is_that_of_the_paper():
    options = OptimizerConfig(kind="lion", weight_decay=0.5)
    optimizer = make_optimizer(Config(backbone=BackboneConfig(frozen_stages=-1), optimizer=options))
    params = {"head": jnp.asarray([2.0, -1.0])}
    state, value, momentum = optimizer.init(params), np.asarray([2.0, -1.0]), np.zeros(2)
    for gradient in ([0.5, 1.0], [-20.0, 0.0], [1.0, 3.0]):
        updates, state = optimizer.update({"head": jnp.asarray(gradient)}, state, params, learning_rate=0.1)
        params = optax.apply_updates(params, updates)
        value = value - 0.1 * (np.sign(0.9 * momentum + 0.1 * np.asarray(gradient)) + 0.5 * value)
        momentum = 0.99 * momentum + 0.01 * np.asarray(gradient)
        np.testing.assert_allclose(params["head"], value, rtol=1e-5)


def test_muon_orthogonalizes_kernels_and_is_adamw_for_all_else():
    rng = np.random.default_rng(0)
    shapes = {"backbone": {"conv1": {"kernel": (3, 3, 4, 8), "bias": (8,)}}, "head": {"reduction": (1, 1, 16, 4)}}
    params, gradients = (
        jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape)), shapes, is_leaf=lambda x: isinstance(x, tuple))
        for _ in range(2)
    )
    updates = first_update(OptimizerConfig(kind="muon", weight_decay=0.0), params, gradients)
    for kernel in (updates["backbone"]["conv1"]["kernel"], updates["head"]["reduction"]):
        values = np.linalg.svd(np.asarray(kernel).reshape(-1, kernel.shape[-1]), compute_uv=False)
        assert values.max() / values.min() < 2
        assert np.sqrt(np.mean(np.square(kernel))) == pytest.approx(0.01 * 0.2, rel=0.3)
    gradient = np.asarray(gradients["backbone"]["conv1"]["kernel"]).reshape(-1, 8)
    assert np.linalg.cond(gradient) > 2
    np.testing.assert_allclose(  # the first step of Adam with Nesterov's momentum
        updates["backbone"]["conv1"]["bias"],
        optax.adamw(0.01, b1=0.9, weight_decay=0.0, nesterov=True).update(
            gradients["backbone"]["conv1"]["bias"],
            optax.adamw(0.01, nesterov=True).init(params["backbone"]["conv1"]["bias"]),
            params["backbone"]["conv1"]["bias"],
        )[0],
        rtol=1e-5,
    )
    decayed = first_update(OptimizerConfig(kind="muon", weight_decay=0.5), params, gradients)
    jax.tree.map(lambda a, b, x: np.testing.assert_allclose(a, b - 0.005 * x, atol=1e-6), decayed, updates, params)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_factor_of_the_backbone_scales_its_updates_alone(kind):
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    plain = first_update(OptimizerConfig(kind=kind), PARAMS, gradients)
    scaled = first_update(OptimizerConfig(kind=kind, backbone_factor=0.1), PARAMS, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.1 * b, rtol=1e-6), scaled["backbone"], plain["backbone"])
    np.testing.assert_array_equal(scaled["head"]["scales"], plain["head"]["scales"])


def test_the_state_keeps_its_names_so_that_old_checkpoints_resume():
    for options in (OptimizerConfig(), OptimizerConfig(backbone_factor=0.1)):
        state = make_optimizer(Config(optimizer=options)).init(PARAMS)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        trace = "[0].inner_state[1].trace"
        assert paths == [f"{trace}['backbone']['layer2_0']['conv1']['kernel']", f"{trace}['head']['scales']"]


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        ((), {"conv1", "norm1", "layer1_0", "layer2_0", "scales"}),
        (("backbone",), {"scales"}),
        (("backbone/layer*",), {"conv1", "norm1", "scales"}),
        (("*/kernel", "head/scales"), {"norm1"}),
        (("backbone/norm1/norm/scale", "backbone/layer[12]_0"), {"conv1", "scales"}),
    ],
)
def test_parameters_frozen_by_patterns_have_no_state_and_no_gradient(patterns, trained):
    config = Config(
        backbone=BackboneConfig(frozen_stages=-1), optimizer=OptimizerConfig(frozen=patterns, clip_norm=9.0)
    )
    mask = trained_mask(PARAMS, config)
    names = {**mask["backbone"], **mask["head"]}
    assert {name for name, tree in names.items() if all(jax.tree.leaves(tree))} == trained
    assert len(jax.tree.leaves(make_optimizer(config).init(PARAMS))) == len(trained)

    def loss(params):
        return sum((x**2).sum() for x in jax.tree.leaves(stop_frozen_gradients(params, config)))

    gradients = jax.grad(loss)(PARAMS)
    assert jax.tree.map(lambda x: bool(x.any()), gradients) == mask
    updates, _ = make_optimizer(config).update(
        gradients, make_optimizer(config).init(PARAMS), PARAMS, learning_rate=0.1
    )
    assert jax.tree.map(lambda x: bool(x.any()), updates) == mask


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("backbone/layr1_*", r"no parameter fits 'backbone/layr1_\*'\. Did you mean backbone/layer1_0 or "),
        ("", r"no parameter fits ''\. All names begin with one of backbone, head\."),
        ("Head", r"Did you mean head\?"),
        ("*", "leaves no parameter to train"),
    ],
)
def test_a_pattern_without_a_parameter_is_refused_with_near_names(pattern, message):
    config = Config(optimizer=OptimizerConfig(frozen=("head/scales", pattern)))
    with pytest.raises(ConfigError, match=message):
        make_optimizer(config).init(PARAMS)


def test_a_parameter_of_no_known_stage_is_refused():
    """Else it would count as a part of the stem and be frozen silently."""
    params = {"backbone": {"attention": {"kernel": jnp.ones(3)}}}
    with pytest.raises(ValueError, match=r"parameter attention, and models\.resnet\.stage_of does not know its stage"):
        trained_mask(params, Config())


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
