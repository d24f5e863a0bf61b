"""What each side of the comparison answers, in numpy: NCHW maps and mmdetection's parameter names.

Axes: B images · N cells · K detections. Boxes are xyxy.
"""

from typing import NamedTuple, Protocol

import numpy as np

from tood_jax.types import Batch

LEVELS = ("P3", "P4", "P5", "P6", "P7")
PHASES = {"atss": False, "tal": True}  # name → is the assignment task-aligned? (ATSS is the warm-up)


class Found(NamedTuple):
    """Detections of one image, best first."""

    boxes: np.ndarray  # [K, 4] pixels of the original image
    scores: np.ndarray  # [K] 0–1
    labels: np.ndarray  # [K]


class Forward(NamedTuple):
    """From pixels to detections."""

    maps: dict[
        str, np.ndarray
    ]  # "image", "C2" … "P7", "scores P3", "boxes P3" (strides) …, in the order of computation
    detections: list[Found]


class Learnt(NamedTuple):
    """One phase's losses and gradients on a batch."""

    losses: dict[str, np.ndarray]  # "cls" and "box", [5], a level
    gradients: dict[str, np.ndarray]  # by mmdetection's name
    gt_index: np.ndarray | None  # [B, N], the object of each cell or -1; None if the side doesn't tell


class Side(Protocol):
    """A detector with its weights. Nothing that it is asked changes them."""

    name: str

    def forward(self, batch: Batch) -> Forward: ...

    def learn(self, batch: Batch, aligned: bool) -> Learnt: ...

    def trajectory(self, batches: list[Batch], aligned: bool) -> np.ndarray:
        """[steps, 2]: the losses (cls, box) before each of SGD's steps, one a batch."""
        ...


def forward_maps(image, c, p, scores, boxes) -> dict[str, np.ndarray]:
    """`Forward.maps` of NCHW arrays, level by level."""
    maps = {"image": image}
    maps |= {f"C{i}": array for i, array in enumerate(c, start=2)}
    maps |= dict(zip(LEVELS, p, strict=True))
    for level, score, box in zip(LEVELS, scores, boxes, strict=True):
        maps |= {f"scores {level}": score, f"boxes {level}": box}
    return {name: np.asarray(array) for name, array in maps.items()}
