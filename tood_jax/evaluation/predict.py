"""Run a model on batches and return its detections on the host."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, use_abstract_mesh

from tood_jax.config import Config
from tood_jax.criterion.losses import Divisors, loss_parts, losses_and_targets
from tood_jax.distributed.compiler_options import compiler_options
from tood_jax.distributed.mesh import map_per_device
from tood_jax.distributed.sharding import batch_shardings, over_batch, put_batch, replicated
from tood_jax.models.detector import Detector, detections, normalize_images
from tood_jax.types import Array, Batch, Predictions, Tree

DetectStep = Callable[[Tree, Tree, Batch], tuple[Any, ...]]
"""(params, batch_stats, batch) to (Detections, image indices [B]) and perhaps LossSums."""
LossSums = dict[str, tuple[Array, Array]]
"""By part of the loss: its sum over a batch, and the sum that it is to be divided by."""


class ImageDetections(NamedTuple):
    """Detections of an image on the host, best first, without padding."""

    image_index: int  # position of the image in the data set
    boxes: np.ndarray  # [k, 4] float32 xyxy, pixels of the original image
    scores: np.ndarray  # [k] float32, 0–1
    labels: np.ndarray  # [k] int32, 0…C-1
    non_finite: int = 0  # candidates dropped because their box or score was NaN or infinite


def compile_detect_step(model: Detector, config: Config, mesh: Mesh, with_losses: bool = False) -> Any:
    """Return a function from (params, batch_stats, batch) to detections and image indices, compiled for the mesh.

    With `with_losses` it also takes `in_tal_phase` ([] bool) and returns LossSums. Rows that only fill a batch have no
    losses, but `loss.normalizer` positives_per_image and positives_and_images count them as images.
    """
    of_batch = partial(_loss_sums, config=config) if with_losses else None
    return compile_prediction_step(model, config, mesh, lambda pred, batch: detections(pred, batch, config), of_batch)


def compile_prediction_step(
    model: Detector,
    config: Config,
    mesh: Mesh,
    of_images: Callable[[Predictions, Batch], Tree],
    of_batch: Callable[[Predictions, Batch, Array], Tree] | None = None,
) -> Any:
    """Return a function from (params, batch_stats, batch) to `of_images(predictions, batch)` and image indices.

    It is compiled for the mesh, and its results are replicated on every process, so that each of them can evaluate.

    Args:
        of_images: treats every image by itself; its results have B in front.
        of_batch: takes one more argument, which the function then takes last; its results come last, too.
    """

    def step(params, batch_stats, batch, *argument):
        images = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
        with use_abstract_mesh(mesh.abstract_mesh):
            pred: Any = model.apply({"params": params, "batch_stats": batch_stats}, images, False, batch.sizes)
            pred = lax.with_sharding_constraint(pred, over_batch(mesh))  # NMS needs whole images
            found = map_per_device(of_images)(pred, batch), batch.image_indices
            return found if of_batch is None else (*found, of_batch(pred, batch, *argument))

    replication = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(None, None, batch_shardings(mesh), *[replication] * (of_batch is not None)),
        out_shardings=replication,
        compiler_options=compiler_options(config, mesh),
    )


def _loss_sums(pred: Predictions, batch: Batch, in_tal_phase: Array, *, config: Config) -> LossSums:
    one = jnp.ones(())
    losses, summary = losses_and_targets(pred, batch, in_tal_phase, config, Divisors(one, one, one))
    divisors = summary.divisors._asdict() | {"distribution": summary.divisors.box}
    return {part: (getattr(losses, part).sum(), divisors[part]) for part in loss_parts(config)}


def mean_losses(batches: Sequence[LossSums]) -> dict[str, float]:
    """Return "loss" and its parts ("loss_cls", …) over all batches, as if these were one; {} without batches."""
    if not batches:
        return {}
    parts = {}
    for part in batches[0]:
        total, divisor = (float(sum(one[part][i] for one in batches)) for i in range(2))
        parts[f"loss_{part}"] = total / max(1.0, divisor)
    return {"loss": sum(parts.values()), **parts}


def detect_batches(
    detect_step: DetectStep,
    params: Tree,
    batch_stats: Tree,
    batches: Iterable[Batch],
    mesh: Mesh,
    loss_sums: list[LossSums] | None = None,
) -> Iterator[ImageDetections]:
    """Yield the detections of each image; rows that only fill a batch (index -1) are left out.

    While the devices compute a batch, the next one is made and the detections of the former are used. The LossSums of
    each batch, where the step returns them, are appended to `loss_sums`.
    """
    running = None
    for batch in batches:
        former, running = running, detect_step(params, batch_stats, put_batch(batch, mesh))
        if former is not None:
            yield from _on_host(former, loss_sums)
    if running is not None:
        yield from _on_host(running, loss_sums)


def _on_host(result: tuple[Any, ...], loss_sums: list[LossSums] | None) -> Iterator[ImageDetections]:
    detections, indices, *sums = jax.device_get(result)
    if loss_sums is not None:
        loss_sums.extend(sums)
    for row, index in enumerate(indices):
        if index < 0:
            continue
        is_real = detections.labels[row] >= 0
        yield ImageDetections(
            int(index),
            detections.boxes[row][is_real],
            detections.scores[row][is_real],
            detections.labels[row][is_real],
            0 if detections.non_finite is None else int(detections.non_finite[row]),
        )
