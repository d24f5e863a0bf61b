"""SGD with momentum as published, its learning-rate schedule, and which parameters train."""

import jax
import jax.numpy as jnp
import optax

from tood_jax.config import BackboneConfig, Config, OptimizerConfig


def scaled_learning_rate(options: OptimizerConfig, batch_size: int) -> float:
    """Peak learning rate of a global batch: linear in its number of images (Goyal et al. 2017)."""
    return options.learning_rate * batch_size / options.learning_rate_batch


def learning_rate_schedule(
    options: OptimizerConfig, *, batch_size: int, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
    """Step (0, 1, …) to learning rate: linear warm-up, times steps at epochs or a cosine to zero."""
    peak = scaled_learning_rate(options, batch_size)
    total = steps_per_epoch * epochs
    if options.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, total)
    else:
        boundaries = {epoch * steps_per_epoch: options.step_factor for epoch in options.step_epochs}
        decay = optax.piecewise_constant_schedule(peak, boundaries)
    if not options.warmup_steps:
        return decay

    def schedule(step):
        warm = options.warmup_factor + (1 - options.warmup_factor) * step / options.warmup_steps
        return decay(step) * jnp.minimum(warm, 1.0)

    return schedule


def is_trained(path: tuple, backbone: BackboneConfig) -> bool:
    """Does the parameter at this key path train, or does it lie in a frozen stage of the backbone?"""
    names = [getattr(key, "key", str(key)) for key in path]
    if names[0] != "backbone":
        return True
    stage = int(names[1][len("layer")]) if names[1].startswith("layer") else 0
    return stage > backbone.frozen_stages


def trained_mask(params, backbone: BackboneConfig):
    """Tree of bools in the shape of `params`: True where a parameter trains."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_trained(path, backbone), params)


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Momentum SGD with weight decay on every trained parameter; frozen ones are never touched.

    Weight decay is added to the gradient before the momentum, as PyTorch does.
    """
    options = config.optimizer
    sgd = optax.chain(
        optax.add_decayed_weights(options.weight_decay),
        optax.trace(options.momentum),
        optax.scale_by_learning_rate(schedule),
    )

    def mask(params):
        return trained_mask(params, config.backbone)

    def frozen(params):
        return jax.tree.map(lambda trained: not trained, mask(params))

    clip = [] if options.clip_norm is None else [optax.clip_by_global_norm(options.clip_norm)]
    return optax.chain(*clip, optax.masked(sgd, mask), optax.masked(optax.set_to_zero(), frozen))
