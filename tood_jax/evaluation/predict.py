"""Run a model over a data set and bring its detections to the host."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, use_abstract_mesh

from tood_jax.compiling import compiler_options
from tood_jax.config import Config
from tood_jax.detectors.detector import Detector, detections, normalize_images
from tood_jax.mesh import image_by_image
from tood_jax.training.sharding import batch_shardings, over_batch, put_batch, replicated
from tood_jax.training.state import Tree
from tood_jax.types import Array, Batch, Detections

DetectStep = Callable[[Tree, Tree, Batch], tuple[Detections, Array]]


class ImageDetections(NamedTuple):
    """Detections of one image on the host, best first, without padding."""

    image_index: int  # position in the data set
    boxes: np.ndarray  # [k, 4] float32 xyxy, pixels of the original image
    scores: np.ndarray  # [k] float32, 0–1
    labels: np.ndarray  # [k] int32, 0…C-1


def compile_detect_step(model: Detector, config: Config, mesh: Mesh) -> Any:
    """(params, batch_stats, batch) to detections and image indices, jitted over the mesh.

    Both come back whole on every process, so that any of them can evaluate.
    """

    def step(params, batch_stats, batch):
        images = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
        with use_abstract_mesh(mesh.abstract_mesh):
            pred: Any = model.apply({"params": params, "batch_stats": batch_stats}, images)
            pred = lax.with_sharding_constraint(pred, over_batch(mesh))  # NMS looks at whole images
            detect = image_by_image(lambda pred, batch: detections(pred, batch, config))
            return detect(pred, batch), batch.image_indices

    everywhere = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(None, None, batch_shardings(mesh)),
        out_shardings=everywhere,
        compiler_options=compiler_options(config, mesh),
    )


def detect_batches(
    detect_step: DetectStep, params: Tree, batch_stats: Tree, batches: Iterable[Batch], mesh: Mesh
) -> Iterator[ImageDetections]:
    """Detections image by image; rows that only fill a batch (index -1) are left out."""
    for batch in batches:
        detections, indices = jax.device_get(detect_step(params, batch_stats, put_batch(batch, mesh)))
        for row, index in enumerate(indices):
            if index < 0:
                continue
            real = detections.labels[row] >= 0
            yield ImageDetections(
                int(index), detections.boxes[row][real], detections.scores[row][real], detections.labels[row][real]
            )
