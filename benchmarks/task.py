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
TASK_ALIGNED, ATSS = "task-aligned assigner", "ATSS"  # rows that another benchmark has too


@dataclass(frozen=True)
class Sizes(ModelOptions):
    """Of the inputs."""

    objects: int = 8
    """Objects an image."""
    candidates: int = 5000
    """Boxes that NMS gets."""


class ToAssign(NamedTuple):
    """What assigners get."""

    batch: Batch
    scores: np.ndarray  # [B, N, C], what a head might say
    boxes: np.ndarray  # [B, N, 4] pixels
    valid: np.ndarray  # [B, N]


def make_to_assign(batch: Batch, classes: int, seed: int) -> ToAssign:
    """Random predictions for the objects of a batch."""
    pred, cells = random_predictions(batch, classes, seed), canvas_pyramid(batch)
    boxes = np.asarray(pred.boxes * cells.strides[:, None])
    valid = np.asarray(cells_in_image(cells, jnp.asarray(batch.sizes)))
    return ToAssign(batch, np.asarray(pred.scores), boxes, valid)


class Task(NamedTuple):
    """Inputs of every row."""

    config: Config
    classes: int
    variables: Any  # ours
    weights: Mapping[str, np.ndarray]  # by mmdetection's names
    batch: Batch
    to_assign: ToAssign
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
    sizes = deformable.Args(batch=args.batch, height=args.height // 16, width=args.width // 16, seed=args.seed)
    offered = nms.Args(classes=args.classes, seed=args.seed)
    return Task(
        config,
        args.classes,
        weights.ours,
        weights.theirs,
        batch,
        make_to_assign(batch, args.classes, args.seed),
        nms.random_candidates(offered, args.candidates),
        *map(np.asarray, deformable.random_arrays(sizes)[:4]),
    )
