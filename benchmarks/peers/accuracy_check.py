"""Compare the first batch of both sides, as the networks read it, and its losses with the same initial weights."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax

from tood_jax.config import Config
from tood_jax.criterion.losses import loss_parts
from tood_jax.data.dataset import Dataset
from tood_jax.data.loader import train_batches
from tood_jax.distributed.sharding import make_mesh
from tood_jax.models.build import build_model
from tood_jax.models.detector import normalize_images
from tood_jax.training.train_step import batch_losses
from tood_jax.types import Tree

PHASES = ("warm_up", "trained")  # of the assigner; a detector with one assigner has the second only
MMDETECTION_PARTS = {"cls": "loss_cls", "box": "loss_bbox", "quality": "loss_centerness"}
Arrays = Mapping[str, np.ndarray]


class CheckedValue(NamedTuple):
    """One quantity of both sides."""

    what: str
    ours: float
    mmdetection: float
    difference: float  # relative to mmdetection's value; of images and boxes: the largest, absolute

    def is_relative(self) -> bool:
        """Return whether the difference is that of a loss or a gradient."""
        return not self.what.startswith(("images", "boxes", "labels"))


def first_batch(config: Config, dataset: Dataset, variables: Tree) -> dict[str, np.ndarray]:
    """Return the first batch of training and its losses, under the names of `mmdetection_accuracy.check`.

    Args:
        dataset: the train split, filtered for training.
        variables: initial {"params": …, "batch_stats": …}.
    """
    batch = next(
        train_batches(
            dataset,
            config.data,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            start_step=0,
            num_steps=1,
        )
    )
    model, mesh = build_model(config, len(dataset.classes)), make_mesh(jax.devices()[:1])
    images = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
    found = {"images": np.asarray(images).transpose(0, 3, 1, 2)}
    for i, real in enumerate(batch.gt_mask):
        found[f"boxes_{i}"], found[f"labels_{i}"] = batch.gt_boxes[i][real], batch.gt_labels[i][real]

    @jax.jit
    def losses_and_norm(params, in_tal_phase):
        gradient, (losses, *_) = jax.grad(
            lambda params: batch_losses(
                model, config, mesh, params, variables.get("batch_stats", {}), batch, in_tal_phase
            ),
            has_aux=True,
        )(params)
        return losses, optax.tree.norm(gradient)

    for in_tal_phase, phase in enumerate(PHASES):
        losses, norm = losses_and_norm(variables["params"], bool(in_tal_phase))
        found[f"{phase}_grad_norm"] = np.asarray(norm)
        for part in loss_parts(config):
            found[f"{phase}_{MMDETECTION_PARTS[part]}"] = np.asarray(getattr(losses, part))
    return found


def compare_first_batch(ours: Arrays, mmdetection: Arrays, phases: tuple[str, ...] = PHASES) -> list[CheckedValue]:
    """Return images, objects, losses (sums over levels, where there are levels) and gradient norms of both sides."""
    return [
        _compare_images(ours["images"], mmdetection["images"]),
        *_compare_objects(ours, mmdetection),
        *(
            _compare_numbers(name, float(np.sum(ours[name])), float(np.sum(mmdetection[name])))
            for name in ours
            if name.startswith(phases)
        ),
    ]


def _compare_images(ours: np.ndarray, mmdetection: np.ndarray) -> CheckedValue:
    if ours.shape != mmdetection.shape:
        return CheckedValue(f"images {ours.shape} and {mmdetection.shape}", ours.size, mmdetection.size, float("inf"))
    largest = float(np.abs(ours - mmdetection).max())
    return CheckedValue("images, mean", float(ours.mean()), float(mmdetection.mean()), largest)


def _compare_objects(ours: Arrays, mmdetection: Arrays) -> list[CheckedValue]:
    """Return numbers of objects, and the largest difference of boxes (pixels) and labels."""
    found = []
    for kind in ("boxes", "labels"):
        names = [name for name in ours if name.startswith(f"{kind}_")]
        count, of_mmdetection = (float(sum(len(side[name]) for name in names)) for side in (ours, mmdetection))
        differs = any(ours[name].shape != mmdetection[name].shape for name in names)
        pairs = [] if differs else [(ours[name].astype(float), mmdetection[name]) for name in names if len(ours[name])]
        largest = max((float(np.abs(a - b).max()) for a, b in pairs), default=0.0)
        found.append(CheckedValue(f"{kind}, number", count, of_mmdetection, float("inf") if differs else largest))
    return found


def _compare_numbers(what: str, ours: float, mmdetection: float) -> CheckedValue:
    relative = abs(ours - mmdetection) / max(abs(mmdetection), 1e-12)
    return CheckedValue(what.replace("_", " "), ours, mmdetection, relative)


def worst_difference(values: list[CheckedValue]) -> float:
    """Return the largest relative difference of a loss; infinite where images or objects differ in number."""
    relative = [value.difference for value in values if value.is_relative() and "norm" not in value.what]
    return max([*relative, *(v.difference for v in values if not v.is_relative() and np.isinf(v.difference))])
