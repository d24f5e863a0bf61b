"""Compare the detections of an exported program with those of the checkpoint.

Detections are matched one to one within their label. One may be missing only where rounding decides whether it is
reported at all: its score is within the limit of the score threshold, or of the lowest score of a full list.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tood_jax.evaluation.predict import ImageDetections
from tood_jax.export.folder import ExportError
from tood_jax.untrusted.printable import printable

MAX_BOX_DIFFERENCE = 1e-3  # pixels of the original image or, where that is resized to a smaller one, of the smaller
MAX_SCORE_DIFFERENCE = 1e-4
MAX_AP_DIFFERENCE = 0.0005


class Difference(NamedTuple):
    """How far the detections of an image differ."""

    box: float  # pixels as for MAX_BOX_DIFFERENCE, largest of all sides of matched boxes
    score: float
    matched: int
    unmatched: int  # without those at the limit of being reported


def difference(
    one: ImageDetections, other: ImageDetections, score_threshold: float, max_detections: int, pixel: float = 1.0
) -> Difference:
    """Return how far two lists of detections of an image differ.

    Args:
        score_threshold: of the config.
        max_detections: of the config.
        pixel: side of the pixels in which boxes are compared, in pixels of the original image; 1 or more.
    """
    pairs = _match(one, other)
    first, second = (np.asarray(side, int) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    box = np.abs(one.boxes[first] - other.boxes[second]).max(initial=0)
    score = np.abs(one.scores[first] - other.scores[second]).max(initial=0)
    unmatched = 0
    for found, used in ((one, first), (other, second)):
        full = len(found.scores) == max_detections
        lowest = found.scores.min() if full else score_threshold
        left = np.delete(found.scores, used)
        unmatched += int((left > lowest + MAX_SCORE_DIFFERENCE).sum())
    return Difference(float(box) / pixel, float(score), len(pairs), unmatched)


def _match(one: ImageDetections, other: ImageDetections) -> list[tuple[int, int]]:
    """Return pairs of detections of one label: for each of `one`, best first, the nearest box that is left."""
    pairs, left = [], np.ones(len(other.scores), bool)
    for i, (box, score, label) in enumerate(zip(one.boxes, one.scores, one.labels, strict=True)):
        fits = left & (other.labels == label) & (np.abs(other.scores - score) <= 10 * MAX_SCORE_DIFFERENCE)
        distance = np.where(fits, np.abs(other.boxes - box).max(axis=1, initial=0), np.inf)
        if fits.any():
            j = int(distance.argmin())
            left[j] = False
            pairs.append((i, j))
    return pairs


def compare(
    names: Sequence[str],
    original: Sequence[ImageDetections],
    exported: Sequence[ImageDetections],
    score_threshold: float,
    max_detections: int,
    pixels: Sequence[float],
) -> dict[str, Any]:
    """Return the content of a part of parity.json: the differences of each image and the largest of all."""
    pairs = zip(original, exported, pixels, strict=True)
    found = [difference(one, other, score_threshold, max_detections, pixel) for one, other, pixel in pairs]
    return {
        "unit of boxes": "pixels of the image, or of the resized one if that is smaller",
        "limits": {"box": MAX_BOX_DIFFERENCE, "score": MAX_SCORE_DIFFERENCE, "unmatched": 0},
        "largest": {name: max(getattr(one, name) for one in found) for name in ("box", "score", "unmatched")},
        "detections": sum(one.matched for one in found),
        "images": [{"image": name, **one._asdict()} for name, one in zip(names, found, strict=True)],
    }


def check(result: dict[str, Any], what: str) -> None:
    """Raise ExportError, which names the image, if the detections of an image differ by more than the limits."""
    for image in result["images"]:
        if wrong := [f"{name} {image[name]:.3g}" for name, most in result["limits"].items() if image[name] > most]:
            raise ExportError(
                f"the {what} gives other detections than the checkpoint on {printable(image['image'])} "
                f"(difference of {', '.join(wrong)}), so nothing was exported; float32 (--train.precision=float32) and "
                "a canvas as large as the images differ least."
            )
