"""Augment one row of a training batch: a function of the row's key, the images and the config.

The order is: view (crop, zoom-out, affine map) of each image, mosaic or mixup, colour, flips, hook. The canvas of the
row and the size that the result may have at most were planned before, without decoding anything.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import cv2
import numpy as np

from tood_jax.config import DataConfig
from tood_jax.data.augmentation.color import jitter_color
from tood_jax.data.augmentation.geometry import draw_view, move_boxes, visible_boxes, warp
from tood_jax.data.augmentation.hook import call_hook
from tood_jax.data.augmentation.presets import augmentation_of
from tood_jax.data.dataset import AnnotatedImage
from tood_jax.data.preprocess import Sample
from tood_jax.data.transforms import flip_horizontal, flip_vertical, resize, scale_boxes, size_within

_MOSAIC_CENTER = (0.3, 0.7)  # range of the point where its four images meet, as a share of the side
_MIN_MOSAIC_SIDE = 8  # pixels; smaller images are not put together of four
_MIXUP_WEIGHT = (0.4, 0.6)  # range of the weight of the first image

Decode = Callable[[int, tuple[int, int]], np.ndarray | None]
"""(position among a row's images, (height, width) that is needed at least) to [h, w, 3] uint8 RGB; None for a broken
image that is left out, never for position 0."""
_Picture = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, boxes, labels


class Row(Protocol):
    """The part of a `RowSpec` that augmentation uses."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def flip(self) -> bool: ...
    @property
    def vertical_flip(self) -> bool: ...
    @property
    def key(self) -> tuple[int, ...]: ...


class Augmenter:
    """Augments rows by `data.augmentation` and `data.augment_hook`.

    Args:
        num_classes: of the data set.
    """

    def __init__(self, data: DataConfig, num_classes: int):
        self._data = data
        self._num_classes = num_classes
        self._options = augmentation_of(data)
        red, green, blue = (round(min(max(value, 0), 255)) for value in data.pixel_mean)
        self._background = (red, green, blue)  # 0 after normalization

    def __call__(self, row: Row, records: Sequence[AnnotatedImage], decode: Decode) -> Sample:
        """Return the augmented image, of at most the row's size, and the objects that are still visible.

        Args:
            row: its key is the seed of all random numbers.
            records: the row's image, then its partners: three for mosaic, one for mixup.

        Raises:
            BrokenImageError: of `decode`.
            DataError: data.augment_hook returns something unusable.
        """
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence(row.key)))
        if len(records) == 4 and min(row.size) >= _MIN_MOSAIC_SIDE:
            image, boxes, labels = self._mosaic(row.size, records, decode, random)
        else:
            image, boxes, labels = self._show(0, row.size, records, decode, random)
            if len(records) == 2:
                partner = self._show(1, row.size, records, decode, random)
                image, boxes, labels = self._mix((image, boxes, labels), partner, random)
        image = jitter_color(image, self._options, random)
        if row.flip:
            image, boxes = flip_horizontal(image, boxes)
        if row.vertical_flip:
            image, boxes = flip_vertical(image, boxes)
        if self._data.augment_hook:
            image, boxes, labels = self._apply_hook(row.size, (image, boxes, labels), random)
        scale = np.asarray([row.size[0] / records[0].height, row.size[1] / records[0].width], np.float32)
        return Sample(image, scale, boxes, labels)

    def _show(
        self,
        position: int,
        room: tuple[int, int],
        records: Sequence[AnnotatedImage],
        decode: Decode,
        random: np.random.Generator,
        *,
        fill: bool = False,
    ) -> _Picture:
        """Return a random view of an image; of the row's own image if that one is broken."""
        record = records[position]
        size = (record.height, record.width)
        view = draw_view(size, record.boxes, room, self._options, random, fill=fill)
        needed = min(1.0, view.magnification)
        decoded = decode(position, (round(size[0] * needed), round(size[1] * needed)))
        if decoded is None:
            return self._show(0, room, records, decode, random, fill=fill)
        boxes, remains = visible_boxes(move_boxes(record.boxes, view.matrix), view.size, self._data.min_visible)
        return warp(decoded, view, size, self._background), boxes[remains], record.labels[remains]

    def _mosaic(
        self,
        size: tuple[int, int],
        records: Sequence[AnnotatedImage],
        decode: Decode,
        random: np.random.Generator,
    ) -> _Picture:
        """Return four views that fill the four parts of an image, in random order."""
        height, width = size
        y, x = (round(random.uniform(*_MOSAIC_CENTER) * side) for side in size)
        corners = ((0, 0), (0, x), (y, 0), (y, x))
        rooms = ((y, x), (y, width - x), (height - y, x), (height - y, width - x))
        image, boxes, labels = np.empty((height, width, 3), np.uint8), [], []
        for position, part in enumerate(random.permutation(4).tolist()):
            (top, left), (rows, columns) = corners[part], rooms[part]
            picture = self._show(position, rooms[part], records, decode, random, fill=True)
            image[top : top + rows, left : left + columns] = picture[0]
            boxes.append(picture[1] + np.asarray([left, top, left, top], np.float32))
            labels.append(picture[2])
        return image, np.concatenate(boxes), np.concatenate(labels)

    def _mix(self, first: _Picture, second: _Picture, random: np.random.Generator) -> _Picture:
        """Return the weighted mean of two images, with the objects of both."""
        weight = float(random.uniform(*_MIXUP_WEIGHT))
        height, width = (max(first[0].shape[axis], second[0].shape[axis]) for axis in (0, 1))
        images = [
            cv2.copyMakeBorder(
                image,
                0,
                height - image.shape[0],
                0,
                width - image.shape[1],
                cv2.BORDER_CONSTANT,
                value=self._background,
            )
            for image, _, _ in (first, second)
        ]
        image = cv2.addWeighted(images[0], weight, images[1], 1 - weight, 0)
        return image, np.concatenate([first[1], second[1]]), np.concatenate([first[2], second[2]])

    def _apply_hook(self, room: tuple[int, int], picture: _Picture, random: np.random.Generator) -> _Picture:
        """Return what the hook returns, shrunk to fit and clipped; boxes of less than a pixel are dropped."""
        image, boxes, labels = call_hook(self._data.augment_hook, random, *picture, self._num_classes)
        size = image.shape[:2]
        if size[0] > room[0] or size[1] > room[1]:
            fitted = size_within(size, room)
            image = resize(image, fitted)
            boxes = scale_boxes(boxes, np.asarray([fitted[0] / size[0], fitted[1] / size[1]]))
        boxes, remains = visible_boxes(boxes, image.shape[:2], self._data.min_visible)
        return image, boxes[remains], labels[remains]
