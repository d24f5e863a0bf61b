"""Made pictures for the assigners that look at predictions (task-aligned, SimOTA, OTA)."""

import numpy as np
from hypothesis import strategies as st

from tood_jax.geometry.locations import make_pyramid

CELLS = make_pyramid(64, 64)
N, M, C = len(CELLS.points), 6, 3
OBJECTS = ("gt_boxes", "gt_labels", "gt_mask")
SEEDS = st.integers(0, 2**32 - 1)


def picture(seed, objects=M, scores=(0, 1)):
    """Noisy predictions, and objects of all sizes, by the names of the assigners' arguments.

    Args:
        scores: the range they are drawn from.
    """
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-4, 50, (objects, 2))
    gt_boxes = np.concatenate([corner, corner + rng.uniform(2, 60, (objects, 2))], axis=1)
    half = rng.uniform(0.5, 4, (N, 2)) * CELLS.strides[:, None]
    boxes = np.concatenate([CELLS.points - half, CELLS.points + half], axis=1)
    return {
        "scores": rng.uniform(*scores, (N, C)).astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "points": CELLS.points,
        "strides": CELLS.strides,
        "valid": rng.random(N) < 0.8,
        "gt_boxes": gt_boxes.astype(np.float32),
        "gt_labels": rng.integers(0, C, objects).astype(np.int32),
        "gt_mask": rng.random(objects) < 0.8,
    }


def overlap(a, b):
    """IoU of two boxes in plain numbers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
