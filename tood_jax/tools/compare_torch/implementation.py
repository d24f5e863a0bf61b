"""The interface of both implementations in a comparison: numpy arrays, NCHW maps and mmdetection's parameter names.

Axes: B images · N locations · K detections. Boxes are xyxy.
"""

from typing import NamedTuple, Protocol

import numpy as np

from tood_jax.types import Batch

LEVELS = ("P3", "P4", "P5", "P6", "P7")
PHASES = {"atss": False, "tal": True}  # in_tal_phase by name; ATSS is the warm-up


class ImageDetections(NamedTuple):
    """Detections of an image, best first."""

    boxes: np.ndarray  # [K, 4] pixels of the original image
    scores: np.ndarray  # [K] 0–1
    labels: np.ndarray  # [K]


class ForwardResult(NamedTuple):
    """Maps and detections of a batch."""

    maps: dict[
        str, np.ndarray
    ]  # "image", "C2" … "P7", "scores P3", "boxes P3" (strides) …, in the order of computation
    detections: list[ImageDetections]


class TrainingResult(NamedTuple):
    """Losses and gradients of a batch in one phase."""

    losses: dict[str, np.ndarray]  # "cls" and "box", [5], per level
    gradients: dict[str, np.ndarray]  # by mmdetection's name
    gt_index: np.ndarray | None  # [B, N], object of each location or -1; None if unknown


class Implementation(Protocol):
    """A detector with its weights, which no method changes."""

    name: str

    def forward(self, batch: Batch) -> ForwardResult: ...

    def losses_and_gradients(self, batch: Batch, in_tal_phase: bool) -> TrainingResult: ...

    def trajectory(self, batches: list[Batch], in_tal_phase: bool) -> np.ndarray:
        """Return [steps, 2]: the losses (cls, box) before each SGD step, one step per batch."""
        ...


def name_maps(image, c, p, scores, boxes) -> dict[str, np.ndarray]:
    """Return `ForwardResult.maps` of NCHW arrays per level."""
    maps = {"image": image}
    maps |= {f"C{i}": array for i, array in enumerate(c, start=2)}
    maps |= dict(zip(LEVELS, p, strict=True))
    for level, score, box in zip(LEVELS, scores, boxes, strict=True):
        maps |= {f"scores {level}": score, f"boxes {level}": box}
    return {name: np.asarray(array) for name, array in maps.items()}
