"""The whole detector as one function of original images, and its export as StableHLO.

The weights are arguments of the program, so that the programs of all canvases share one file of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Int, UInt8

from tood_jax.checkpoint.reader import nest
from tood_jax.config import Config
from tood_jax.export.resizing import canvas_sizes, resize
from tood_jax.models.detector import Detector, detections, normalize_images
from tood_jax.types import Array, Batch

PLATFORMS = ("cpu", "cuda", "tpu")


class Found(NamedTuple):
    """Detections of the images, best first; rows from `counts` on have score 0 and label -1."""

    boxes: Array  # [B, K, 4] float32 xyxy, pixels of the original images
    scores: Array  # [B, K] float32, 0–1
    labels: Array  # [B, K] int32, 0…C-1, or -1
    counts: Array  # [B] int32, number of detections


def detect_in_originals(
    model: Detector,
    config: Config,
    canvas: tuple[int, int],
    weights: Mapping[str, Array],
    images: UInt8[Array, "b h w 3"],
    sizes: Int[Array, "b 2"],
) -> tuple[Array, ...]:
    """Return the fields of `Found` for original images.

    Args:
        canvas: (height, width) of the network's input, pixels.
        weights: by flax name, such as params/neck/….
        images: RGB, each at the top left of its array.
        sizes: (height, width) of each image, pixels, from (1, 1) to (h, w).
    """
    tree = nest(weights)
    new_sizes, scales = canvas_sizes(sizes, canvas, config.data)
    resized = resize(images, sizes, new_sizes, canvas)
    batch = Batch(resized, new_sizes, scales, None, None, None, None)
    pixels = normalize_images(resized, new_sizes, config.data.pixel_mean, config.data.pixel_std)
    pred: Any = model.apply(tree, pixels, False, new_sizes)
    found = detections(pred, batch, config)
    return tuple(Found(found.boxes, found.scores, found.labels, (found.labels >= 0).sum(axis=1, dtype=jnp.int32)))


def export_program(
    model: Detector,
    config: Config,
    canvas: tuple[int, int],
    weights: Mapping[str, Any],
    platforms: tuple[str, ...] = PLATFORMS,
) -> jax.export.Exported:
    """Return the program of a canvas for all platforms, with a symbolic number, height and width of the images."""
    b, h, w = jax.export.symbolic_shape("b, h, w")
    leaves = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    images = jax.ShapeDtypeStruct((b, h, w, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((b, 2), jnp.int32)

    def detect(weights, images, sizes):
        return detect_in_originals(model, config, canvas, weights, images, sizes)

    return jax.export.export(jax.jit(detect), platforms=platforms)(leaves, images, sizes)
