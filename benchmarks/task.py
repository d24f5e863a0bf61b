"""What versus_torch.py gives both sides to work on, on the host."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks import deformable, nms
from benchmarks.common import ModelOptions, random_batch, random_predictions
from tood_jax.cli import compare_torch
from tood_jax.config import Config
from tood_jax.detectors.detector import canvas_pyramid
from tood_jax.geometry.pyramid import cells_in_image
from tood_jax.types import Batch

Run = Callable[[], object]


@dataclass(frozen=True)
class Sizes(ModelOptions):
    """Of the inputs."""

    objects: int = 8
    """Objects an image."""
    candidates: int = 5000
    """Boxes that NMS gets."""


class Task(NamedTuple):
    """Inputs of every row."""

    config: Config
    classes: int
    variables: Any  # ours
    weights: Mapping[str, np.ndarray]  # by mmdetection's names
    batch: Batch
    scores: np.ndarray  # [B, N, C], what a head might say
    boxes: np.ndarray  # [B, N, 4] pixels
    valid: np.ndarray  # [B, N]
    candidates: tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes, scores, labels before NMS
    map: np.ndarray  # [B, H, W, I] of the deformable convolution
    offsets: np.ndarray  # [B, H, W, G, 9, 2]
    mask: np.ndarray  # [B, H, W, G, 9]
    kernel: np.ndarray  # [3, 3, I, O]


def make_task(args: Sizes, config: Config) -> Task:
    """Of the seed alone; the deformable convolution's map is C4 of the canvas."""
    weights = compare_torch.load_weights(compare_torch.Args(num_classes=args.classes, seed=args.seed), config)
    batch = random_batch(
        args.batch,
        args.height,
        args.width,
        objects=args.objects,
        max_objects=args.objects,
        classes=args.classes,
        seed=args.seed,
    )
    pred, cells = random_predictions(batch, args.classes, args.seed), canvas_pyramid(batch)
    sizes = deformable.Args(batch=args.batch, height=args.height // 16, width=args.width // 16, seed=args.seed)
    offered = nms.Args(classes=args.classes, seed=args.seed)
    return Task(
        config,
        args.classes,
        weights.ours,
        weights.theirs,
        batch,
        np.asarray(pred.scores),
        np.asarray(pred.boxes * cells.strides[:, None]),
        np.asarray(cells_in_image(cells, jnp.asarray(batch.sizes))),
        nms.random_candidates(offered, args.candidates),
        *map(np.asarray, deformable.random_arrays(sizes)[:4]),
    )
