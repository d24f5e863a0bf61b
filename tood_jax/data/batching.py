"""Which images make up which batch, at which size and on which canvas: pure functions of the seed and the step.

An epoch's batches follow from (seed, epoch) alone, and the content of a global batch never depends on the number of
processes. So the position in the data is the step number, and resuming needs nothing else.
"""

import functools
from dataclasses import dataclass

import numpy as np

from tood_jax.config import DataConfig
from tood_jax.data.errors import DataError
from tood_jax.data.transforms import fitted_size, resized_size

FILLER = -1  # index of a row that only fills a batch
_SHUFFLE, _AUGMENT = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Row:
    """One image of a batch."""

    index: int  # position in the data set, or FILLER
    size: tuple[int, int]  # (height, width) to resize to, pixels
    flip: bool = False
    vertical_flip: bool = False


@dataclass(frozen=True)
class BatchPlan:
    """One global batch."""

    canvas: tuple[int, int]  # (height, width), pixels
    rows: tuple[Row, ...]


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Batches an epoch: the rest of a division is left out, another one in each epoch."""
    return max(1, num_images // batch_size)


def canvases(data: DataConfig) -> tuple[tuple[int, int], ...]:
    """The buckets, smallest first, and last the canvas that holds all of them (for images that fit none).

    Raises:
        DataError: if a side is not a positive multiple of 32.
    """
    if not data.buckets or any(side <= 0 or side % 32 for bucket in data.buckets for side in bucket):
        raise DataError(f"data.buckets must be (height, width) pairs in multiples of 32, not {data.buckets}.")
    largest = (max(height for height, _ in data.buckets), max(width for _, width in data.buckets))
    return tuple(sorted({*data.buckets, largest}, key=lambda bucket: (bucket[0] * bucket[1], bucket)))


class TrainPlan:
    """Batches of training, by step.

    Args:
        sizes: [n, 2] int, (height, width) of every image, pixels.
    """

    def __init__(self, sizes: np.ndarray, data: DataConfig, batch_size: int, seed: int):
        self._sizes = np.asarray(sizes)
        self._data = data
        self._batch_size = batch_size
        self._seed = seed
        self._canvases = canvases(data)
        self.epoch_steps = steps_per_epoch(len(self._sizes), batch_size)
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def __reduce__(self) -> tuple[type["TrainPlan"], tuple[np.ndarray, DataConfig, int, int]]:
        return TrainPlan, (self._sizes, self._data, self._batch_size, self._seed)  # the cache stays behind

    def batch(self, step: int) -> BatchPlan:
        """The global batch of a step (0, 1, …, over all epochs)."""
        epoch, position = divmod(step, self.epoch_steps)
        return self._epoch(epoch)[position]

    def _plan_epoch(self, epoch: int) -> list[BatchPlan]:
        count = len(self._sizes)
        order = _random(self._seed, _SHUFFLE, epoch).permutation(count)
        if count < self._batch_size:  # too few for one batch: some come again
            order = np.resize(order, self._batch_size)
        order = order[: self.epoch_steps * self._batch_size]
        low, high = self._data.train_short_side
        random = _random(self._seed, _AUGMENT, epoch)
        short = random.integers(low, high + 1, count)
        flips, vertical = random.random(count), random.random(count)
        waiting: dict[tuple[int, int], list[Row]] = {canvas: [] for canvas in self._canvases}
        batches = []
        for index in order.tolist():
            height, width = self._sizes[index].tolist()
            canvas, size = place((height, width), int(short[index]), self._data.max_long_side, self._canvases)
            flipped = bool(flips[index] < self._data.flip_probability)
            upside_down = bool(vertical[index] < self._data.vertical_flip_probability)
            waiting[canvas].append(Row(index, size, flipped, upside_down))
            if len(waiting[canvas]) == self._batch_size:
                batches.append(BatchPlan(canvas, tuple(waiting[canvas])))
                waiting[canvas] = []
        # What is left over in every bucket shares batches on the smallest canvas that holds all of them.
        rest = [row for rows in waiting.values() for row in rows]
        for start in range(0, len(rest), self._batch_size):
            rows = tuple(rest[start : start + self._batch_size])
            batches.append(BatchPlan(_smallest([row.size for row in rows], self._canvases), rows))
        return [batches[i] for i in _random(self._seed, _SHUFFLE, epoch, 1).permutation(len(batches))]


def evaluation_plan(sizes: np.ndarray, data: DataConfig, batch_size: int) -> list[BatchPlan]:
    """Every image once, bucket by bucket; the last batch of a bucket is filled up with FILLER rows."""
    options = canvases(data)
    by_canvas: dict[tuple[int, int], list[Row]] = {}
    for index, (height, width) in enumerate(np.asarray(sizes).tolist()):
        canvas, size = place((height, width), data.eval_short_side, data.max_long_side, options)
        by_canvas.setdefault(canvas, []).append(Row(index, size))
    plans = []
    for canvas, rows in sorted(by_canvas.items()):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            filled = part + [Row(FILLER, (32, 32))] * (batch_size - len(part))
            plans.append(BatchPlan(canvas, tuple(filled)))
    return plans


def place(
    size: tuple[int, int], short_side: int, max_long_side: int, options: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(canvas, size on it) of an image of (height, width) pixels: the smallest canvas that holds it after resizing.

    An image that fits none is shrunk to fit the largest.
    """
    resized = resized_size(*size, short_side, max_long_side)
    canvas = _smallest([resized], options)
    return canvas, fitted_size(resized, canvas)


def padding_share(plans: list[BatchPlan]) -> float:
    """Share of canvas pixels (0–1) that belong to no image."""
    used = sum(row.size[0] * row.size[1] for plan in plans for row in plan.rows if row.index != FILLER)
    return 1 - used / sum(plan.canvas[0] * plan.canvas[1] * len(plan.rows) for plan in plans)


def _smallest(sizes: list[tuple[int, int]], options: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    for canvas in options:
        if canvas[0] >= height and canvas[1] >= width:
            return canvas
    return options[-1]


def _random(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
