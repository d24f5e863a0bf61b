"""The optimizer, its learning-rate schedule, and which parameters train."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from tood_jax.config import BackboneConfig, Config, OptimizerConfig
from tood_jax.models.resnet import stage_of
from tood_jax.types import Tree


def scaled_learning_rate(options: OptimizerConfig, batch_size: int) -> float:
    """Return the peak learning rate of a global batch: linear in its number of images (Goyal et al. 2017)."""
    return options.learning_rate * batch_size / options.learning_rate_batch


def learning_rate_schedule(
    options: OptimizerConfig, *, batch_size: int, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
    """Return the learning rate as a function of the step (0, 1, …): linear warm-up, times steps or a cosine to zero."""
    peak = scaled_learning_rate(options, batch_size)
    total = steps_per_epoch * epochs
    boundaries = {epoch * steps_per_epoch: options.step_factor for epoch in options.step_epochs}
    decay = {
        "step": lambda: optax.piecewise_constant_schedule(peak, boundaries),
        "cosine": lambda: optax.cosine_decay_schedule(peak, total),
    }[options.schedule]()
    if not options.warmup_steps:
        return decay

    def schedule(step):
        warm = options.warmup_factor + (1 - options.warmup_factor) * step / options.warmup_steps
        return decay(step) * jnp.minimum(warm, 1.0)

    return schedule


def is_trained(path: tuple, backbone: BackboneConfig) -> bool:
    """Return False for the key path of a parameter in a frozen stage of the backbone, True for all others."""
    names = [getattr(key, "key", str(key)) for key in path]
    return names[0] != "backbone" or stage_of(names[1]) > backbone.frozen_stages


def trained_mask(params: Tree, backbone: BackboneConfig) -> Tree:
    """Return a tree of bools in the shape of `params`: True where a parameter trains."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_trained(path, backbone), params)


def make_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of a config; frozen parameters have no state and no update.

    `update` takes two keyword arguments: `learning_rate`, of this step, so that the step counter is that of the
    training state, which counts accepted steps only; and `accepted` (bool []), by default True: False keeps the state
    as it is.
    """
    options = config.optimizer
    clip = [] if options.clip_norm is None else [optax.clip_by_global_norm(options.clip_norm)]
    transformations = [_keep_state_unless_accepted(one) for one in OPTIMIZERS[options.kind](options)]
    trained = optax.chain(*transformations, _scale_by_given_learning_rate())
    return optax.chain(
        *clip,
        optax.masked(trained, lambda params: trained_mask(params, config.backbone)),
        optax.masked(optax.set_to_zero(), lambda params: _negate(trained_mask(params, config.backbone))),
    )


def _negate(mask: Tree) -> Tree:
    return jax.tree.map(operator.not_, mask)


def _sgd(options: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Return SGD with momentum; weight decay is added to the gradient before the momentum, as PyTorch does."""
    return [optax.add_decayed_weights(options.weight_decay), optax.trace(options.momentum)]


def _adamw(options: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Return AdamW (Loshchilov and Hutter 2019), with `momentum` as β₁ and weight decay apart from the gradient."""
    return [optax.scale_by_adam(b1=options.momentum), optax.add_decayed_weights(options.weight_decay)]


OPTIMIZERS: dict[str, Callable[[OptimizerConfig], list[optax.GradientTransformation]]] = {"sgd": _sgd, "adamw": _adamw}
"""From gradients to updates before the learning rate, by `optimizer.kind`. A new optimizer is one entry."""


def _keep_state_unless_accepted(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that keeps its state where a step is not accepted."""

    def update(updates, state, params=None, *, accepted=True, **_):
        updates, new = inner.update(updates, state, params)
        kept = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, state)
        # An update that is also stored, such as momentum, is taken as it is stored: so it is computed once.
        stored = {id(a): b for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(kept), strict=True)}
        return jax.tree.map(lambda x: stored.get(id(x), x), updates), kept

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _scale_by_given_learning_rate() -> optax.GradientTransformationExtraArgs:
    """Return the transformation that multiplies updates by minus the `learning_rate` given to `update`."""

    def update(updates, state, params=None, *, learning_rate, **_):
        return jax.tree.map(lambda x: -learning_rate * x, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
