"""What a training step sees: its batch, rebuilt from the seed and the step, and the assignment of its objects."""

import contextlib
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh, use_abstract_mesh

from tood_jax.config import Config
from tood_jax.criterion.assign import assign_on_devices
from tood_jax.data.dataset import Dataset
from tood_jax.data.loader import train_batches
from tood_jax.distributed.sharding import batch_shardings, replicated
from tood_jax.models.detector import Detector
from tood_jax.training.train_step import predict_in_training
from tood_jax.types import Batch


def batch_of_step(dataset: Dataset, config: Config, step: int) -> Batch:
    """Return the global batch that the update after `step` updates learns from, bit for bit.

    Args:
        dataset: the train split, filtered for training.
        step: 0 for the first update; the log counts updates from 1.

    Raises:
        DataError: an image of the batch cannot be read.
    """
    data = replace(config.data, workers=0)  # processes make the same batches, and take longer to start
    seed, batch_size = config.train.seed, config.train.batch_size
    options = {"batch_size": batch_size, "seed": seed, "epochs": config.train.epochs}
    batches = train_batches(dataset, data, **options, start_step=step, num_steps=1)
    with contextlib.closing(batches):
        return next(batches)


def compile_assignment(model: Detector, config: Config, mesh: Mesh) -> Any:
    """Return a function from (params, batch_stats, batch, in_tal_phase) to the `Assignment` of a training batch.

    The network runs as in training: norms take the statistics of this batch.
    """

    def run(params, batch_stats, batch, in_tal_phase):
        pred, _ = predict_in_training(model, config, mesh, params, batch_stats, batch)
        with use_abstract_mesh(mesh.abstract_mesh):
            return assign_on_devices(pred, batch, in_tal_phase, config)

    return jax.jit(run, in_shardings=(None, None, batch_shardings(mesh), None), out_shardings=replicated(mesh))
