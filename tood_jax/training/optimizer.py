"""The optimizer, its learning-rate schedule, and which parameters train."""

import operator
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import lax

from tood_jax.config import Config, ConfigError, OptimizerConfig
from tood_jax.config.conversion import did_you_mean
from tood_jax.models.resnet import stage_of
from tood_jax.types import Tree
from tood_jax.untrusted.printable import printable


def scaled_learning_rate(options: OptimizerConfig, batch_size: int) -> float:
    """Return the peak learning rate of a global batch: linear in its number of images (Goyal et al. 2017)."""
    return options.learning_rate * batch_size / options.learning_rate_batch


def learning_rate_schedule(
    options: OptimizerConfig, *, batch_size: int, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
    """Return the learning rate as a function of the step (0, 1, …): warm-up, then steps or a cosine; or one cycle."""
    peak = scaled_learning_rate(options, batch_size)
    total = steps_per_epoch * epochs
    if options.schedule == "one_cycle":
        return optax.cosine_onecycle_schedule(max(total, 4), peak)  # optax's needs a step in its first 30 %
    boundaries = {epoch * steps_per_epoch: options.step_factor for epoch in options.step_epochs}
    decay = {
        "step": lambda: optax.piecewise_constant_schedule(peak, boundaries),
        "cosine": lambda: optax.cosine_decay_schedule(peak, total),
    }[options.schedule]()
    if not options.warmup_steps:
        return decay

    def schedule(step):
        if options.warmup == "exponential":
            return decay(step) * options.warmup_factor ** jnp.maximum(1 - step / options.warmup_steps, 0.0)
        warm = options.warmup_factor + (1 - options.warmup_factor) * step / options.warmup_steps
        return decay(step) * jnp.minimum(warm, 1.0)

    return schedule


def is_trained(path: tuple, config: Config) -> bool:
    """Return whether a parameter trains: False in a frozen stage of the backbone, and where `optimizer.frozen` fits.

    Args:
        path: keys of the parameter in the tree of all.
    """
    names = [str(getattr(key, "key", key)) for key in path]
    in_frozen_stage = names[0] == "backbone" and stage_of(names[1]) <= config.backbone.frozen_stages
    return not in_frozen_stage and not any(_fits(pattern, names) for pattern in config.optimizer.frozen)


def trained_mask(params: Tree, config: Config) -> Tree:
    """Return a tree of bools in the shape of `params`: True where a parameter trains.

    Raises:
        ConfigError: a pattern of `optimizer.frozen` fits no parameter, or all of them are frozen.
    """
    mask = jax.tree_util.tree_map_with_path(lambda path, _: is_trained(path, config), params)
    if config.optimizer.frozen:
        paths = [[str(key.key) for key in path] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        _check_patterns(config.optimizer.frozen, paths)
        if not any(jax.tree.leaves(mask)):
            raise ConfigError("optimizer.frozen leaves no parameter to train.")
    return mask


def _fits(pattern: str, names: Sequence[str]) -> bool:
    """Return whether a pattern fits the full name of a parameter or of a group that it lies in."""
    return any(fnmatchcase("/".join(names[:end]), pattern) for end in range(1, len(names) + 1))


def _check_patterns(patterns: Sequence[str], paths: Sequence[Sequence[str]]) -> None:
    for pattern in patterns:
        if not any(_fits(pattern, path) for path in paths):
            groups = dict.fromkeys("/".join(path[:end]) for path in paths for end in range(1, len(path) + 1))
            hint = did_you_mean(pattern, groups, count=3, cutoff=0.5)
            top = ", ".join(dict.fromkeys(path[0] for path in paths))
            raise ConfigError(
                f"optimizer.frozen: no parameter fits {printable(repr(pattern), 100)}."
                f"{hint or f' All names begin with one of {top}.'}"
            )


def stop_frozen_gradients(params: Tree, config: Config) -> Tree:
    """Return `params`, those that `optimizer.frozen` names as constants, whose gradients are zero and not computed."""
    if not config.optimizer.frozen:
        return params
    return jax.tree.map(lambda x, trains: x if trains else lax.stop_gradient(x), params, trained_mask(params, config))


def make_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of a config; frozen parameters have no state and no update.

    `update` takes two keyword arguments: `learning_rate`, of this step, so that the step counter is that of the
    training state, which counts accepted steps only; and `accepted` (bool []), by default True: False keeps the state
    as it is.
    """
    options = config.optimizer
    clip = [] if options.clip_norm is None else [optax.clip_by_global_norm(options.clip_norm)]
    transformations = [_keep_state_unless_accepted(one) for one in OPTIMIZERS[options.kind](options)]
    factor = (
        [] if options.backbone_factor == 1 else [optax.stateless(partial(_scale_backbone, options.backbone_factor))]
    )
    trained = optax.chain(*transformations, _scale_by_given_learning_rate(), *factor)
    return optax.chain(
        *clip,
        optax.masked(trained, lambda params: trained_mask(params, config)),
        optax.masked(optax.set_to_zero(), lambda params: _negate(trained_mask(params, config))),
    )


def _negate(mask: Tree) -> Tree:
    return jax.tree.map(operator.not_, mask)


def _sgd(options: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Return SGD with momentum; weight decay is added to the gradient before the momentum, as PyTorch does."""
    return [optax.add_decayed_weights(options.weight_decay), optax.trace(options.momentum)]


def _adamw(options: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Return AdamW (Loshchilov and Hutter 2019), with `momentum` as β₁ and weight decay apart from the gradient."""
    return [optax.scale_by_adam(b1=options.momentum), optax.add_decayed_weights(options.weight_decay)]


def _lion(options: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Return Lion (Chen et al. 2023), with `momentum` as β₁, β₂ = 0.99 and weight decay apart from the gradient."""
    return [optax.scale_by_lion(b1=options.momentum, b2=0.99), optax.add_decayed_weights(options.weight_decay)]


def _muon(options: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Return Muon (Jordan et al. 2024) for kernels, as matrices of inputs × outputs, and AdamW for all else.

    Updates of kernels have the root mean square of AdamW's (Liu et al. 2025), so one learning rate serves both.
    """

    def matrices(params: Tree) -> Tree:
        def axes(x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
            return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1) if x.ndim > 1 else None

        return jax.tree.map(axes, params)

    return [
        optax.contrib.muon(
            -1.0,  # it multiplies by minus this rate; that of the step is applied afterwards
            beta=options.momentum,
            weight_decay=options.weight_decay,
            adam_b1=options.momentum,
            adam_weight_decay=options.weight_decay,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,
        )
    ]


OPTIMIZERS: dict[str, Callable[[OptimizerConfig], list[optax.GradientTransformation]]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "lion": _lion,
    "muon": _muon,
}
"""From gradients to updates before the learning rate, by `optimizer.kind`. A new optimizer is one entry."""


def _scale_backbone(factor: float, updates: Tree, _: Tree | None) -> Tree:
    return {
        name: jax.tree.map(lambda x: factor * x, tree) if name == "backbone" else tree for name, tree in updates.items()
    }


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
