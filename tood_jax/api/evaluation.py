"""Evaluate a trained detector on a data set."""

import dataclasses
from pathlib import Path
from typing import Literal

from tood_jax.api.detector import TrainedModel, load_trained_model, open_with_config
from tood_jax.checkpoint.store import Checkpoint
from tood_jax.config import Config, ConfigError, SplitConfig
from tood_jax.data.dataset import Dataset, class_names
from tood_jax.data.image_io import decode_image
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.read_ahead import read_ahead
from tood_jax.data.views import PLAIN, Variant, parse_variants
from tood_jax.distributed.host_sync import is_primary
from tood_jax.distributed.process_group import connect_processes
from tood_jax.distributed.sharding import make_mesh, put_whole, replicated
from tood_jax.evaluation.evaluate import Evaluation, Merge, evaluate_detections, evaluate_set
from tood_jax.evaluation.predict import compile_detect_step
from tood_jax.export.exported import detect_images
from tood_jax.export.folder import ExportedFolder
from tood_jax.export.write import run_of


def evaluate(
    checkpoint: str | Path,
    split: SplitConfig | None = None,
    step: int | Literal["best", "latest"] = "best",
    tta: str = "",
) -> Evaluation:
    """Evaluate a trained detector on all devices.

    Args:
        checkpoint: as for `load`.
        split: the data set, for example `SplitConfig("val", "val.json")`; by default the val split of the config.
        step: as for `load`.
        tta: test-time augmentation such as "flip,0.8,1.2", as for the detector that `load` returns.

    Returns:
        COCO's metrics (`.metrics.AP`, 0–1), the detections of each image, and the same as COCO results.

    Raises:
        CheckpointError: as for `load`.
        ConfigError: the data set has other classes than the checkpoint, or `tta` is invalid.
        DataError: the data cannot be read.
    """
    opened, config = open_with_config(checkpoint, step)
    if split is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, val=split))
    variants = parse_variants(tta)
    dataset = load_dataset(config.data.val, config.data.broken_images, for_evaluation=is_primary())
    return evaluate_checkpoint(opened, dataset, config, variants)


def evaluate_checkpoint(
    checkpoint: Checkpoint, dataset: Dataset, config: Config, variants: tuple[Variant, ...] = (PLAIN,)
) -> Evaluation:
    """Detect in every image of the data set with the weights of a checkpoint, on all devices.

    Args:
        variants: of each image, which are merged.

    Raises:
        ConfigError: the checkpoint was trained on other classes, or is an exported program and `variants` are given.
    """
    if isinstance(checkpoint, ExportedFolder):
        if variants != (PLAIN,):
            raise ConfigError("tta is no part of an exported program: evaluate the checkpoint with it.")
        return evaluate_exported(checkpoint, dataset, config)
    trained = load_trained_model(checkpoint, config)
    check_classes(trained, dataset, config.data.val.source)
    mesh = make_mesh(space=config.parallel.space)
    connect_processes(mesh)
    detect_step = compile_detect_step(trained.model, config, mesh)
    params, batch_stats = put_whole((trained.params, trained.batch_stats), replicated(mesh))
    merge = None if variants == (PLAIN,) else Merge(variants, config.detect)
    rows = config.train.eval_batch_size
    return evaluate_set(detect_step, params, batch_stats, dataset, config.data, rows, mesh, merge)


def evaluate_exported(opened: ExportedFolder, dataset: Dataset, config: Config, name: str = "") -> Evaluation:
    """Detect with the exported program in images as they are in their files; `name` of a format is as in `run_of`.

    Raises:
        ConfigError: other classes than the data set's, or another config than the program was made of.
        DataError: an image can't be read.
    """
    check_classes(opened, dataset, config.data.val.source)
    fixed = ("eval_short_side", "max_long_side", "buckets")
    same = all(getattr(config.data, name) == getattr(opened.config.data, name) for name in fixed)
    if not same or config.detect != opened.config.detect:
        raise ConfigError(
            f"detect.* and data.{', data.'.join(fixed)} are parts of an exported program: export it again with them."
        )
    run, rows = run_of(opened, name)
    data = config.data
    paths = ((i, image.path) for i, image in enumerate(dataset.images))

    def read(numbered):
        index, path = numbered
        return index, decode_image(path, bit_depth=data.bit_depth)

    images = read_ahead(read, paths, data.threads)
    return evaluate_detections(dataset, list(detect_images(run, data, images, rows or config.train.eval_batch_size)))


def check_classes(trained: TrainedModel | ExportedFolder, dataset: Dataset, source: str) -> None:
    """Raise ConfigError if the data set has other classes than the checkpoint."""
    if trained.classes != dataset.classes:
        raise ConfigError(
            f"{source} has the categories {list(class_names(dataset.classes))}, but the checkpoint was "
            f"trained on {list(class_names(trained.classes))}; ids and names must agree."
        )
