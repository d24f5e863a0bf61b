"""Random inputs of the cases, on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tood_jax.models.detector import Detector, canvas_pyramid
from tood_jax.types import Batch, Predictions


def random_variables(model: Detector, seed: int) -> tuple[Any, Any]:
    """Return (params, batch_stats) of a model: scaled noise in the kernels, 1 in scales and variances, else 0.

    Speed does not depend on the values, and this takes one second where the model's own initialisation takes many.
    """
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 64, 64, 3))), key)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name in ("kernel", "reduction"):
            deviation = np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
            return rng.standard_normal(leaf.shape, np.float32) * deviation
        return np.full(leaf.shape, name in ("scale", "scales", "var"), np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    return variables["params"], variables.get("batch_stats", {})


def random_batch(
    batch: int, height: int, width: int, *, objects: int, max_objects: int, classes: int, seed: int
) -> Batch:
    """Return noise that fills the canvas, with `objects` objects per image, padded to `max_objects`."""
    rng = np.random.default_rng(seed)
    canvas = np.array([width, height])
    sides = np.exp(rng.uniform(np.log(0.02), np.log(0.6), (batch, max_objects, 2))) * canvas
    corner = rng.uniform(0, 1, (batch, max_objects, 2)) * (canvas - sides)
    mask = np.broadcast_to(np.arange(max_objects) < objects, (batch, max_objects))
    return Batch(
        images=rng.integers(0, 256, (batch, height, width, 3), np.uint8),
        sizes=np.tile(np.array([[height, width]], np.int32), (batch, 1)),
        scales=np.ones((batch, 2), np.float32),
        gt_boxes=(np.concatenate([corner, corner + sides], axis=-1) * mask[..., None]).astype(np.float32),
        gt_labels=(rng.integers(0, classes, (batch, max_objects)) * mask).astype(np.int32),
        gt_mask=mask.copy(),
        image_indices=np.arange(batch, dtype=np.int32),
    )


def random_predictions(batch: Batch, classes: int, seed: int) -> Predictions:
    """Return predictions as a head might make them: few high scores, and a box around each location."""
    rng = np.random.default_rng(seed)
    locations = canvas_pyramid(batch)
    count, num_locations = len(batch.images), len(locations.points)
    distances = rng.uniform(0.5, 6, (count, num_locations, 2, 2)).astype(np.float32)  # left-top, right-bottom, strides
    points = locations.points / locations.strides[:, None]  # [N, 2]
    boxes = np.concatenate([points - distances[:, :, 0], points + distances[:, :, 1]], axis=-1)  # [B, N, 4]
    return Predictions(rng.uniform(0, 1, (count, num_locations, classes)).astype(np.float32) ** 8, boxes)


def random_nms_candidates(
    count: int, *, objects: int = 40, classes: int = 80, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (xyxy, pixels), scores and labels of candidates around some objects of an image of 800 × 1333.

    All scores are different.
    """
    rng = np.random.default_rng([seed, count])
    sides = rng.uniform(40, 300, (objects, 2))
    corner = rng.uniform(0, 1, (objects, 2)) * ([1333, 800] - sides)
    object_boxes = np.concatenate([corner, corner + sides], axis=1)
    which = rng.integers(0, objects, count)
    jitter = rng.normal(0, 0.08, (count, 4)) * np.tile(sides[which], 2)
    labels = rng.integers(0, classes, objects)[which]
    scores = (rng.permutation(count) + 1) / count  # far enough apart to be different in float32
    return (object_boxes[which] + jitter).astype(np.float32), scores.astype(np.float32), labels.astype(np.int32)
