"""Merge the detections of the views of an image (`tood_jax/data/views.py`)."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import jax
import numpy as np

from tood_jax.config import DetectConfig
from tood_jax.data.preprocess import Sample
from tood_jax.data.views import Placement, View
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.postprocess import merge_views

_BORDER = 0.02  # a box that ends this close to a border of its tile is cut, as a share of the tile's side
_SMALLEST = 256  # detections of the smallest compiled merge; others have a power of two

_merge = partial(jax.jit, static_argnames=("iou_threshold", "max_detections"))(merge_views)


class ViewMerger:
    """Gives numbers to the views of images, and merges the detections of an image when those of all views are found.

    Args:
        detect: its `nms_iou` and `max_detections` hold for the merged detections.
    """

    def __init__(self, detect: DetectConfig):
        self._detect = detect
        self._images: dict[int, tuple[int, Placement]] = {}  # by number: position of the image, and placement
        self._missing: dict[int, int] = {}  # by position of the image: views without detections so far
        self._found: dict[int, list[tuple[Placement, ImageDetections]]] = {}
        self._count = 0

    def samples(self, images: Iterable[tuple[int, Sequence[View]]]) -> Iterator[tuple[int, tuple[int, int], Sample]]:
        """Yield (number, canvas, sample) of each view of the images, which are (position, views)."""
        for position, views in images:
            self._missing[position], self._found[position] = len(views), []
            for canvas, sample, placement in views:
                number, self._count = self._count, self._count + 1
                self._images[number] = position, placement
                yield number, canvas, sample

    def merge(self, found: Iterable[ImageDetections]) -> Iterator[ImageDetections]:
        """Yield the detections of each image.

        Args:
            found: the detections of the views, whose `image_index` is their number.
        """
        for one in found:
            position, placement = self._images.pop(one.image_index)
            self._found[position].append((placement, one._replace(image_index=position)))
            self._missing[position] -= 1
            if not self._missing[position]:
                del self._missing[position]
                yield merge_detections(self._found.pop(position), self._detect)


def merge_detections(found: Sequence[tuple[Placement, ImageDetections]], detect: DetectConfig) -> ImageDetections:
    """Return the detections of an image from those of its views; a single plain view's are returned as they are.

    Args:
        found: where each view lies, and its detections in pixels of the view.
        detect: as for `ViewMerger`.
    """
    (placement, first), *others = found
    if not others and placement.is_whole and not placement.is_flipped:
        return first
    boxes = np.concatenate([to_image(one.boxes, placement) for placement, one in found])
    scores = np.concatenate([one.scores for _, one in found])
    labels = np.concatenate([one.labels for _, one in found])
    is_cut = np.concatenate([ends_at_tile(to_image(one.boxes, placement), placement) for placement, one in found])
    padding = max(_SMALLEST, 1 << (len(scores) - 1).bit_length()) - len(scores) if len(scores) else _SMALLEST
    arrays = (np.pad(one, [(0, padding)] + [(0, 0)] * (one.ndim - 1)) for one in (boxes, scores, labels, is_cut))
    kept = np.asarray(_merge(*arrays, iou_threshold=detect.nms_iou, max_detections=detect.max_detections))
    kept = kept[kept >= 0]
    dropped = sum(one.non_finite for _, one in found)
    return ImageDetections(first.image_index, boxes[kept], scores[kept], labels[kept], dropped)


def to_image(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    """Return boxes of a view, [k, 4] xyxy, in pixels of its image."""
    x0, y0, x1, _ = placement.area
    if placement.is_flipped:
        boxes = np.stack([x1 - x0 - boxes[:, 2], boxes[:, 1], x1 - x0 - boxes[:, 0], boxes[:, 3]], axis=1)
    return boxes + np.asarray([x0, y0, x0, y0], np.float32)


def ends_at_tile(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    """Return [k] bool: whether a box, in pixels of the image, ends at a border of the view inside the image."""
    x0, y0, x1, y1 = placement.area
    height, width = placement.image_size
    x, y = _BORDER * (x1 - x0), _BORDER * (y1 - y0)
    return (
        ((x0 > 0) & (boxes[:, 0] <= x0 + x))
        | ((y0 > 0) & (boxes[:, 1] <= y0 + y))
        | ((x1 < width) & (boxes[:, 2] >= x1 - x))
        | ((y1 < height) & (boxes[:, 3] >= y1 - y))
    )
