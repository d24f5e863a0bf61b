"""Bring one image to its canvas: training, evaluation, predict.py and compare_torch.py all use these functions.

A decoded image is resized to its size on the canvas (`preprocess`) and written into the top left corner of its row of
a batch (`write_sample`); the rest of the canvas stays zero. `choose_canvas` gives canvas and size outside of training,
where `sampler.py` also draws the short side at random.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from tood_jax.config import DataConfig
from tood_jax.data.errors import DataError
from tood_jax.data.transforms import fitted_size, flip_horizontal, flip_vertical, resize, resized_size, scale_boxes
from tood_jax.types import Batch

FILLER = -1  # image index of a row that only fills the batch
FILLER_SIZE = (32, 32)  # (height, width) of such a row, pixels: valid, so that nothing divides by zero
_NO_BOXES = np.zeros((0, 4), np.float32)
_NO_LABELS = np.zeros(0, np.int32)


class Sample(NamedTuple):
    """One image at its size on the canvas, and its objects."""

    image: np.ndarray  # [h, w, 3] uint8 RGB
    scale: np.ndarray  # [2] float32 (y, x): canvas pixels per pixel of the original image
    boxes: np.ndarray = _NO_BOXES  # [n, 4] float32 xyxy, canvas pixels
    labels: np.ndarray = _NO_LABELS  # [n] int32


def canvases(data: DataConfig) -> tuple[tuple[int, int], ...]:
    """Return the buckets, smallest first; the last canvas is as high and as wide as the largest, for all other images.

    Raises:
        DataError: a side is not a positive multiple of 32.
    """
    if not data.buckets or any(side <= 0 or side % 32 for bucket in data.buckets for side in bucket):
        raise DataError(f"data.buckets must be (height, width) pairs in multiples of 32, not {data.buckets}.")
    largest = (max(height for height, _ in data.buckets), max(width for _, width in data.buckets))
    return tuple(sorted({*data.buckets, largest}, key=lambda bucket: (bucket[0] * bucket[1], bucket)))


def smallest_canvas(sizes: list[tuple[int, int]], options: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Return the first of `canvases` that holds every one of the sizes, or else the last."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    for canvas in options:
        if canvas[0] >= height and canvas[1] >= width:
            return canvas
    return options[-1]


def choose_canvas(
    size: tuple[int, int], short_side: int, max_long_side: int, options: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the smallest canvas that holds an image after resizing, and the size of the image on it.

    An image that fits no canvas is shrunk to fit the largest one.

    Args:
        size: (height, width) of the original image, pixels.
        short_side: of the resized image, pixels, unless the long side would exceed `max_long_side`.
        options: of `canvases`.

    Returns:
        (height, width) of the canvas and (height, width) of the image on it, pixels.
    """
    resized = resized_size(*size, short_side, max_long_side)
    canvas = smallest_canvas([resized], options)
    return canvas, fitted_size(resized, canvas)


def preprocess(
    image: np.ndarray,
    size: tuple[int, int],
    *,
    original_size: tuple[int, int] | None = None,
    boxes: np.ndarray = _NO_BOXES,
    labels: np.ndarray = _NO_LABELS,
    flip: bool = False,
    vertical_flip: bool = False,
) -> Sample:
    """Resize an image and its boxes, then flip both.

    Args:
        image: [h, w, 3] uint8 RGB, as `decode_image` returns it.
        size: (height, width) on the canvas, pixels.
        original_size: (height, width) of the image that the boxes were annotated on; that of `image` by default, which
            is smaller after scaled decoding.
        boxes: [n, 4] float32 xyxy, pixels of the original image.
        labels: [n] int32.
    """
    height, width = image.shape[:2] if original_size is None else original_size
    scale = np.asarray([size[0] / height, size[1] / width], np.float32)
    image, boxes = resize(image, size), scale_boxes(boxes, scale)
    if flip:
        image, boxes = flip_horizontal(image, boxes)
    if vertical_flip:
        image, boxes = flip_vertical(image, boxes)
    return Sample(image, scale, boxes, labels)


def empty_batch(rows: int, canvas: tuple[int, int], max_objects: int) -> Batch:
    """Return a batch of filler rows only."""
    return Batch(
        images=np.zeros((rows, *canvas, 3), np.uint8),
        sizes=np.full((rows, 2), FILLER_SIZE, np.int32),
        scales=np.ones((rows, 2), np.float32),
        gt_boxes=np.zeros((rows, max_objects, 4), np.float32),
        gt_labels=np.zeros((rows, max_objects), np.int32),
        gt_mask=np.zeros((rows, max_objects), bool),
        image_indices=np.full(rows, FILLER, np.int32),
    )


def write_sample(batch: Batch, row: int, sample: Sample, image_index: int) -> int:
    """Write a sample into a filler row of a batch; of too many objects the largest are kept.

    Returns:
        The number of objects that were left out.
    """
    boxes, labels = sample.boxes, sample.labels
    limit = batch.gt_mask.shape[1]
    excess = max(0, len(labels) - limit)
    if excess:
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        largest = np.sort(np.argsort(-area, kind="stable")[:limit])
        boxes, labels = boxes[largest], labels[largest]
    height, width = sample.image.shape[:2]
    batch.images[row, :height, :width] = sample.image
    batch.sizes[row] = height, width
    batch.scales[row] = sample.scale
    batch.gt_boxes[row, : len(labels)] = boxes
    batch.gt_labels[row, : len(labels)] = labels
    batch.gt_mask[row, : len(labels)] = True
    batch.image_indices[row] = image_index
    return excess


def to_canvas(
    image: np.ndarray,
    data: DataConfig,
    boxes: np.ndarray = _NO_BOXES,
    labels: np.ndarray = _NO_LABELS,
    flip: bool = False,
) -> tuple[tuple[int, int], Sample]:
    """Return the (height, width) of the canvas of an image in evaluation, and the image at its size on it."""
    canvas, size = choose_canvas(image.shape[:2], data.eval_short_side, data.max_long_side, canvases(data))
    return canvas, preprocess(image, size, boxes=boxes, labels=labels, flip=flip)


def batch_by_canvas(samples: Iterable[tuple[int, tuple[int, int], Sample]], rows: int) -> Iterator[Batch]:
    """Yield batches of `rows` images of the same canvas; at the end those that are not full.

    Args:
        samples: (image index, canvas, image) of each image, as `to_canvas` returns them.
    """
    incomplete: dict[tuple[int, int], tuple[Batch, int]] = {}
    for index, canvas, sample in samples:
        batch, used = incomplete.pop(canvas) if canvas in incomplete else (empty_batch(rows, canvas, 1), 0)
        write_sample(batch, used, sample, index)
        if used + 1 == rows:
            yield batch
        else:
            incomplete[canvas] = batch, used + 1
    yield from (batch for batch, _ in incomplete.values())


def single_image_batch(
    image: np.ndarray,
    data: DataConfig,
    image_index: int = 0,
    boxes: np.ndarray = _NO_BOXES,
    labels: np.ndarray = _NO_LABELS,
) -> Batch:
    """Return a batch of one image and its objects, as evaluation would bring it to its canvas."""
    canvas, sample = to_canvas(image, data, boxes, labels)
    batch = empty_batch(1, canvas, max_objects=max(1, len(labels)))
    write_sample(batch, 0, sample, image_index)
    return batch
