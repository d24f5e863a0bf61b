"""Run a model on batches and return its detections on the host."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, use_abstract_mesh

from tood_jax.config import Config
from tood_jax.distributed.compiler_options import compiler_options
from tood_jax.distributed.mesh import map_per_device
from tood_jax.distributed.sharding import batch_shardings, over_batch, put_batch, replicated
from tood_jax.models.detector import Detector, detections, normalize_images
from tood_jax.types import Array, Batch, Detections, Tree

DetectStep = Callable[[Tree, Tree, Batch], tuple[Detections, Array]]


class ImageDetections(NamedTuple):
    """Detections of an image on the host, best first, without padding."""

    image_index: int  # position of the image in the data set
    boxes: np.ndarray  # [k, 4] float32 xyxy, pixels of the original image
    scores: np.ndarray  # [k] float32, 0–1
    labels: np.ndarray  # [k] int32, 0…C-1
    non_finite: int = 0  # candidates dropped because their box or score was NaN or infinite


def compile_detect_step(model: Detector, config: Config, mesh: Mesh) -> Any:
    """Return a function from (params, batch_stats, batch) to detections and image indices, compiled for the mesh.

    Its results are replicated on every process, so that each of them can evaluate.
    """

    def step(params, batch_stats, batch):
        images = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
        with use_abstract_mesh(mesh.abstract_mesh):
            pred: Any = model.apply({"params": params, "batch_stats": batch_stats}, images, False, batch.sizes)
            pred = lax.with_sharding_constraint(pred, over_batch(mesh))  # NMS needs whole images
            detect = map_per_device(lambda pred, batch: detections(pred, batch, config))
            return detect(pred, batch), batch.image_indices

    replication = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(None, None, batch_shardings(mesh)),
        out_shardings=replication,
        compiler_options=compiler_options(config, mesh),
    )


def detect_batches(
    detect_step: DetectStep, params: Tree, batch_stats: Tree, batches: Iterable[Batch], mesh: Mesh
) -> Iterator[ImageDetections]:
    """Yield the detections of each image; rows that only fill a batch (index -1) are left out.

    While the devices compute a batch, the next one is made and the detections of the former are used.
    """
    running = None
    for batch in batches:
        former, running = running, detect_step(params, batch_stats, put_batch(batch, mesh))
        if former is not None:
            yield from _on_host(former)
    if running is not None:
        yield from _on_host(running)


def _on_host(result: tuple[Detections, Array]) -> Iterator[ImageDetections]:
    detections, indices = jax.device_get(result)
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
