"""What analyses look at: a trained detector, and the annotated images of the val split."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from tood_jax.api.detector import TrainedModel, load_trained_model
from tood_jax.api.evaluation import check_classes
from tood_jax.checkpoint.store import Checkpoint
from tood_jax.config import Config, SplitConfig
from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.loader import eval_batches
from tood_jax.distributed.sharding import make_mesh, put_batch, put_whole, replicated
from tood_jax.evaluation.predict import compile_prediction_step
from tood_jax.types import Batch, Predictions, Tree


class Subject(NamedTuple):
    """A trained detector and annotated images of its classes."""

    trained: TrainedModel
    dataset: Dataset
    config: Config  # data.max_objects holds all objects of any image
    mesh: Mesh


def load_subject(checkpoint: Checkpoint, config: Config, log: Callable[[str], object]) -> Subject:
    """Load the detector of a checkpoint and the val split of the config, and log what the split has.

    Raises:
        ConfigError: the split has other classes than the checkpoint.
        DataError: the split cannot be read or is not annotated.
    """
    return make_subject(checkpoint, load_annotated(config.data.val, config, log), config)


def make_subject(checkpoint: Checkpoint, dataset: Dataset, config: Config) -> Subject:
    """Load the detector of a checkpoint for the val split of the config, which is loaded already and annotated.

    Raises:
        ConfigError: the split has other classes than the checkpoint.
    """
    trained = load_trained_model(checkpoint, config)
    check_classes(trained, dataset, config.data.val.source)
    most = max((len(image.labels) for image in dataset.images), default=0)
    config = replace(config, data=replace(config.data, max_objects=max(1, most)))
    return Subject(trained, dataset, config, make_mesh(space=config.parallel.space))


def load_annotated(split: SplitConfig, config: Config, log: Callable[[str], object]) -> Dataset:
    """Load a split that has annotations, and log what it has. Raises DataError."""
    dataset = load_dataset(split, config.data.broken_images, for_evaluation=False)
    if not dataset.has_annotations:
        raise DataError(
            f"{split.source} has no list 'annotations': name an annotated split with --data.val.images and "
            "--data.val.annotations."
        )
    log(f"{split.source}: {dataset.report.summary()}")
    return dataset


def analyze_images(
    subject: Subject, of_images: Callable[[Predictions, Batch], Tree]
) -> Iterator[tuple[int, Batch, int, Tree]]:
    """Yield (image index, batch, row in it, results of the row as numpy arrays) for every image of the data set.

    Args:
        subject: the detector and the images.
        of_images: computes on the devices from the predictions of a batch; treats every image by itself.
    """
    step = compile_prediction_step(subject.trained.model, subject.config, subject.mesh, of_images)
    variables = put_whole((subject.trained.params, subject.trained.batch_stats), replicated(subject.mesh))
    batches = eval_batches(subject.dataset, subject.config.data, batch_size=subject.config.train.eval_batch_size)
    with contextlib.closing(batches):
        for batch in batches:
            results, indices = jax.device_get(step(*variables, put_batch(batch, subject.mesh)))
            for row in np.flatnonzero(indices >= 0).tolist():
                yield int(indices[row]), batch, row, jax.tree.map(lambda x: x[row], results)  # noqa: B023
