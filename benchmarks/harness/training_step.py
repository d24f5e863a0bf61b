"""The package's training step, compiled for a benchmark."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from benchmarks.harness.inputs import random_batch
from benchmarks.harness.options import TrainingStepOptions
from benchmarks.harness.programs import Program, compile_program
from tood_jax.config import Config
from tood_jax.distributed.sharding import put_batch, replicated
from tood_jax.models.build import build_model
from tood_jax.models.detector import Detector
from tood_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tood_jax.training.state import TrainState
from tood_jax.training.train_step import compile_train_step
from tood_jax.types import Batch

STEPS_PER_EPOCH = 1000  # any number: it only decides at which step the warm-up ends


def with_negligible_learning_rate(config: Config, batch_size: int) -> Config:
    """Return the config for steps of `batch_size` images that change no weight, so that each repeat does the same."""
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_size=batch_size),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-12),
    )


def random_training_batch(args: TrainingStepOptions, config: Config) -> Batch:
    """Return the batch of noise that the options of a case describe."""
    return random_batch(
        args.batch,
        args.height,
        args.width,
        objects=args.objects,
        max_objects=max(args.objects, config.data.max_objects),
        classes=args.classes,
        seed=args.seed,
    )


def build_training_step(
    config: Config, model: Detector, steps_per_epoch: int, mesh: Mesh
) -> tuple[optax.GradientTransformation, Any]:
    """Return the optimizer of a config, and its jitted step: (state, batch) to (state, metrics)."""
    schedule = learning_rate_schedule(
        config.optimizer,
        batch_size=config.train.batch_size,
        steps_per_epoch=steps_per_epoch,
        epochs=config.train.epochs,
    )
    optimizer = make_optimizer(config)
    return optimizer, compile_train_step(model, config, optimizer, schedule, steps_per_epoch, mesh)


def compile_training_step(
    config: Config, num_classes: int, variables: tuple[Any, Any], batch: Batch, mesh: Mesh
) -> tuple[Program, Callable[[int], Any]]:
    """Compile the training step of a config, and return it with a function that runs it.

    Args:
        variables: (params, batch_stats), on the host.
        batch: on the host.

    Returns:
        The program, and a function from a step count to (state, metrics); each run takes over the buffers of the state
        that the run before returned.
    """
    optimizer, step = build_training_step(config, build_model(config, num_classes), STEPS_PER_EPOCH, mesh)
    params, batch_stats = variables
    ema = {} if config.optimizer.ema_decay is None else params
    everywhere = replicated(mesh)
    state = jax.device_put(TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params), ema), everywhere)
    on_device = put_batch(batch, mesh)
    program = compile_program(step, state, on_device)

    def run(step_count: int) -> Any:
        nonlocal state
        at_step = state._replace(step=jax.device_put(np.int32(step_count), everywhere))
        state, metrics = program.run(at_step, on_device)
        return state, metrics

    return program, run
