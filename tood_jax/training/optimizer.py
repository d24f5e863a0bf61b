"""SGD with momentum as published, its learning-rate schedule, and which parameters train."""

import jax
import jax.numpy as jnp
import optax

from tood_jax.config import BackboneConfig, Config, OptimizerConfig
from tood_jax.training.state import Tree


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


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Momentum of every trained parameter; `descend` then follows it at the learning rate. Frozen ones have none.

    Weight decay is added to the gradient before the momentum, as PyTorch does.
    """
    options = config.optimizer
    momentum = optax.chain(optax.add_decayed_weights(options.weight_decay), optax.trace(options.momentum))
    clip = [] if options.clip_norm is None else [optax.clip_by_global_norm(options.clip_norm)]
    return optax.chain(*clip, optax.masked(momentum, lambda params: trained_mask(params, config.backbone)))


def descend(params: Tree, opt_state: Tree, learning_rate: jax.typing.ArrayLike) -> Tree:
    """Parameters less the learning rate times the momentum that the optimizer's state holds; frozen ones as they were.

    The momentum as it is stored, for so each of the two is updated in place, in one pass; from the momentum on its way
    there XLA:CPU computes it twice and copies both first.
    """

    def step(momentum, value):
        return value if isinstance(momentum, optax.MaskedNode) else value - learning_rate * momentum

    momenta = optax.tree.get(opt_state, "trace")
    return jax.tree.map(step, momenta, params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
