"""What training carries from step to step."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tood_jax.models.detector import Detector
from tood_jax.types import Tree


class TrainState(NamedTuple):
    """Everything a checkpoint must hold of the device.

    There is no random key: all randomness (initial weights, shuffling, augmentation) is a pure function of the
    config's seed and the step.
    """

    step: jax.Array  # [] int32, updates done
    params: Tree  # float32
    batch_stats: Tree  # float32, running mean and var of BatchNorm; {} without
    opt_state: Tree
    ema: Tree  # moving average of params; {} if not kept

    @property
    def eval_params(self) -> Tree:
        """The weights to evaluate: the moving average where there is one."""
        return self.ema or self.params


def init_variables(model: Detector, seed: int) -> tuple[Tree, Tree]:
    """Random (params, batch_stats) of a model, float32, from the seed alone."""
    # rbg keys compile in seconds where the default generator takes half a minute for a hundred kernels.
    variables = _init_program(model)(jax.random.key(seed, impl="rbg"))
    return variables["params"], variables.get("batch_stats", {})


@lru_cache(maxsize=4)  # for several runs in one process: tracing a model takes seconds
def _init_program(model: Detector) -> Callable[[jax.Array], Tree]:
    return jax.jit(lambda key: model.init(key, jnp.zeros((1, 64, 64, 3))))


def init_state(model: Detector, optimizer: optax.GradientTransformation, *, seed: int, keep_ema: bool) -> TrainState:
    """The state before the first step."""
    params, batch_stats = init_variables(model, seed)
    # One program, instead of one for each shape of a parameter.
    return jax.jit(lambda params, stats: _begin(params, stats, optimizer, keep_ema))(params, batch_stats)


def _begin(params: Tree, batch_stats: Tree, optimizer: optax.GradientTransformation, keep_ema: bool) -> TrainState:
    ema = jax.tree.map(jnp.copy, params) if keep_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), ema)


def state_shapes(model: Detector, optimizer: optax.GradientTransformation, *, keep_ema: bool) -> TrainState:
    """Shapes and dtypes of `init_state`, without computing anything."""
    params, batch_stats = _variable_shapes(model)
    return jax.eval_shape(lambda params, stats: _begin(params, stats, optimizer, keep_ema), params, batch_stats)


@cache  # a start asks several times, and tracing a model takes seconds
def _variable_shapes(model: Detector) -> tuple[Tree, Tree]:
    return jax.eval_shape(lambda: init_variables(model, seed=0))


def with_weights(
    state: TrainState, params: Tree, batch_stats: Tree, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return a state that begins with other weights; its moving average, if `state` has one, starts from them."""
    ema = jax.tree.map(np.copy, params) if state.ema else {}
    return TrainState(state.step, params, batch_stats, optimizer.init(params), ema)
