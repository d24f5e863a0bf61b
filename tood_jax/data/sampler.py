"""Which images each batch contains, at which size and on which canvas: pure functions of the seed and the step.

The batches of an epoch follow from (seed, epoch) alone, and the content of a global batch never depends on the number
of processes. So the position in the data is the step number, and resuming needs nothing else.
"""

import functools
import math
import threading
from dataclasses import dataclass

import numpy as np

from tood_jax.config import DataConfig
from tood_jax.data.augmentation.presets import augmentation_of
from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.preprocess import FILLER, FILLER_SIZE, canvases, choose_canvas, smallest_canvas
from tood_jax.data.repeats import draw_counts, repeat_factors

_SHUFFLE, _AUGMENT, _REPEAT, _COMBINE, _ROW = range(5)  # streams of random numbers


@dataclass(frozen=True)
class RowSpec:
    """One row of a batch."""

    index: int  # position of the image in the data set, or FILLER
    size: tuple[int, int]  # (height, width) to resize to, pixels
    flip: bool = False
    vertical_flip: bool = False
    key: tuple[int, ...] = ()  # of the random numbers of this row's augmentation; () for none
    partners: tuple[int, ...] = ()  # positions of the images to combine it with: three for mosaic, one for mixup


@dataclass(frozen=True)
class BatchSpec:
    """One global batch."""

    canvas: tuple[int, int]  # (height, width), pixels
    rows: tuple[RowSpec, ...]


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of batches per epoch; the images that do not fill a batch are left out."""
    return max(1, num_images // batch_size)


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """Return the rows of a global batch that a process makes.

    Raises:
        DataError: the batch is not divisible by the number of processes.
    """
    if batch_size % process_count:
        raise DataError(
            f"A batch of {batch_size} images can't be shared by {process_count} processes: choose a multiple."
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def image_sizes(dataset: Dataset) -> np.ndarray:
    """Return [n, 2] int, (height, width) of every image, pixels."""
    return np.asarray([(image.height, image.width) for image in dataset.images], np.int64)


def image_repeats(dataset: Dataset, data: DataConfig) -> np.ndarray | None:
    """Return [n] float64, how often an epoch has each image in the mean; None: once (data.repeat_threshold = 0)."""
    if data.repeat_threshold == 0:
        return None
    return repeat_factors([image.labels for image in dataset.images], data.repeat_threshold)


def images_per_epoch(dataset: Dataset, data: DataConfig) -> int:
    """Return the number of images of an epoch, those that repeat counted each time."""
    return _epoch_images(len(dataset.images), image_repeats(dataset, data))


def train_sampler(
    dataset: Dataset, data: DataConfig, batch_size: int, seed: int, epochs: int | None = None
) -> "TrainSampler":
    """Return the sampler of a data set; arguments are those of `TrainSampler`."""
    return TrainSampler(image_sizes(dataset), data, batch_size, seed, epochs, image_repeats(dataset, data))


class TrainSampler:
    """The batches of training by step.

    Args:
        sizes: [n, 2] int, (height, width) of every image, pixels.
        batch_size: of the global batch.
        epochs: of the run, the last `data.closing_epochs` of which have no mosaic and mixup; None: all have.
        repeats: [n] ≥ 1, how often an epoch has each image in the mean; None: once.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        data: DataConfig,
        batch_size: int,
        seed: int,
        epochs: int | None = None,
        repeats: np.ndarray | None = None,
    ):
        self._sizes = np.asarray(sizes)
        self._data = data
        self._batch_size = batch_size
        self._seed = seed
        self._epochs = epochs
        self._repeats = repeats
        self._canvases = canvases(data)
        self.epoch_steps = steps_per_epoch(_epoch_images(len(self._sizes), repeats), batch_size)
        self._cached_epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)
        self._lock = threading.Lock()  # otherwise every thread that reaches a new epoch would draw it

    def __reduce__(self) -> tuple[type["TrainSampler"], tuple[object, ...]]:  # without the cache
        arguments = (self._sizes, self._data, self._batch_size, self._seed, self._epochs, self._repeats)
        return TrainSampler, arguments

    def batch(self, step: int) -> BatchSpec:
        """Return the global batch of a step (0, 1, …, over all epochs)."""
        epoch, position = divmod(step, self.epoch_steps)
        with self._lock:
            return self._cached_epoch(epoch)[position]

    def _draw_epoch(self, epoch: int) -> list[BatchSpec]:
        copies = self._draw_copies(epoch)
        count = len(copies)
        order = _random(self._seed, _SHUFFLE, epoch).permutation(count)
        if count < self._batch_size:  # fewer images than a batch has: some occur more than once
            order = np.resize(order, self._batch_size)
        order = order[: self.epoch_steps * self._batch_size]
        low, high = self._data.train_short_side
        random = _random(self._seed, _AUGMENT, epoch)
        short_sides = random.integers(low, high + 1, count)
        flips, vertical_flips = random.random(count), random.random(count)
        keys, partners = self._draw_keys(epoch, len(order)), self._draw_partners(epoch, len(order))
        pending: dict[tuple[int, int], list[RowSpec]] = {canvas: [] for canvas in self._canvases}
        batches = []
        for position, copy in enumerate(order.tolist()):
            index = int(copies[copy])
            height, width = self._sizes[index].tolist()
            canvas, size = choose_canvas(
                (height, width), int(short_sides[copy]), self._data.max_long_side, self._canvases
            )
            flip = bool(flips[copy] < self._data.flip_probability)
            vertical_flip = bool(vertical_flips[copy] < self._data.vertical_flip_probability)
            pending[canvas].append(RowSpec(index, size, flip, vertical_flip, keys[position], partners[position]))
            if len(pending[canvas]) == self._batch_size:
                batches.append(BatchSpec(canvas, tuple(pending[canvas])))
                pending[canvas] = []
        # The remaining rows of all buckets share batches on the smallest canvas that holds them.
        remaining = [row for rows in pending.values() for row in rows]
        for start in range(0, len(remaining), self._batch_size):
            rows = tuple(remaining[start : start + self._batch_size])
            batches.append(BatchSpec(smallest_canvas([row.size for row in rows], self._canvases), rows))
        return [batches[i] for i in _random(self._seed, _SHUFFLE, epoch, 1).permutation(len(batches))]

    def _draw_copies(self, epoch: int) -> np.ndarray:
        """Return the positions of an epoch's images, each as often as the epoch has it."""
        images = np.arange(len(self._sizes))
        if self._repeats is None:
            return images
        return np.repeat(images, draw_counts(self._repeats, _random(self._seed, _REPEAT, epoch)))

    def _draw_keys(self, epoch: int, count: int) -> list[tuple[int, ...]]:
        if augmentation_of(self._data).is_none and not self._data.augment_hook:
            return [()] * count
        return [(self._seed, _ROW, epoch, position) for position in range(count)]

    def _draw_partners(self, epoch: int, count: int) -> list[tuple[int, ...]]:
        """Return for each row the images that it is combined with."""
        options = augmentation_of(self._data)
        is_closing = self._epochs is not None and epoch >= self._epochs - self._data.closing_epochs
        if is_closing or options.mosaic == options.mixup == 0:
            return [()] * count
        random = _random(self._seed, _COMBINE, epoch)
        mosaic, mixup = random.random(count) < options.mosaic, random.random(count) < options.mixup
        partners = random.integers(0, len(self._sizes), (count, 3)).tolist()
        numbers = np.where(mosaic, 3, np.where(mixup, 1, 0)).tolist()
        return [tuple(row[:number]) for row, number in zip(partners, numbers, strict=True)]


def evaluation_batches(sizes: np.ndarray, data: DataConfig, batch_size: int, flip: bool = False) -> list[BatchSpec]:
    """Return batches that contain every image once, bucket by bucket; FILLER rows complete a bucket's last batch."""
    options = canvases(data)
    by_canvas: dict[tuple[int, int], list[RowSpec]] = {}
    for index, (height, width) in enumerate(np.asarray(sizes).tolist()):
        canvas, size = choose_canvas((height, width), data.eval_short_side, data.max_long_side, options)
        by_canvas.setdefault(canvas, []).append(RowSpec(index, size, flip))
    batches = []
    for canvas, rows in sorted(by_canvas.items()):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            fillers = [RowSpec(FILLER, FILLER_SIZE)] * (batch_size - len(part))
            batches.append(BatchSpec(canvas, tuple(part + fillers)))
    return batches


def _epoch_images(count: int, repeats: np.ndarray | None) -> int:
    return count if repeats is None else math.floor(repeats.sum())


def padding_share(batches: list[BatchSpec]) -> float:
    """Return the share of canvas pixels (0–1) that belong to no image."""
    used = sum(row.size[0] * row.size[1] for batch in batches for row in batch.rows if row.index != FILLER)
    return 1 - used / sum(batch.canvas[0] * batch.canvas[1] * len(batch.rows) for batch in batches)


def _random(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
