"""Which images each batch contains, at which size and on which canvas: pure functions of the seed and the step.

The batches of an epoch follow from (seed, epoch) alone, and the content of a global batch never depends on the number
of processes. So the position in the data is the step number, and resuming needs nothing else.
"""

import functools
import threading
from dataclasses import dataclass

import numpy as np

from tood_jax.config import DataConfig
from tood_jax.data.errors import DataError
from tood_jax.data.preprocess import FILLER, FILLER_SIZE, canvases, choose_canvas, smallest_canvas

_SHUFFLE, _AUGMENT = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class RowSpec:
    """One row of a batch."""

    index: int  # position of the image in the data set, or FILLER
    size: tuple[int, int]  # (height, width) to resize to, pixels
    flip: bool = False
    vertical_flip: bool = False


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


class TrainSampler:
    """The batches of training by step.

    Args:
        sizes: [n, 2] int, (height, width) of every image, pixels.
        batch_size: of the global batch.
    """

    def __init__(self, sizes: np.ndarray, data: DataConfig, batch_size: int, seed: int):
        self._sizes = np.asarray(sizes)
        self._data = data
        self._batch_size = batch_size
        self._seed = seed
        self._canvases = canvases(data)
        self.epoch_steps = steps_per_epoch(len(self._sizes), batch_size)
        self._cached_epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)
        self._lock = threading.Lock()  # otherwise every thread that reaches a new epoch would draw it

    def __reduce__(self) -> tuple[type["TrainSampler"], tuple[np.ndarray, DataConfig, int, int]]:
        return TrainSampler, (self._sizes, self._data, self._batch_size, self._seed)  # without the cache

    def batch(self, step: int) -> BatchSpec:
        """Return the global batch of a step (0, 1, …, over all epochs)."""
        epoch, position = divmod(step, self.epoch_steps)
        with self._lock:
            return self._cached_epoch(epoch)[position]

    def _draw_epoch(self, epoch: int) -> list[BatchSpec]:
        count = len(self._sizes)
        order = _random(self._seed, _SHUFFLE, epoch).permutation(count)
        if count < self._batch_size:  # fewer images than a batch has: some occur more than once
            order = np.resize(order, self._batch_size)
        order = order[: self.epoch_steps * self._batch_size]
        low, high = self._data.train_short_side
        random = _random(self._seed, _AUGMENT, epoch)
        short_sides = random.integers(low, high + 1, count)
        flips, vertical_flips = random.random(count), random.random(count)
        pending: dict[tuple[int, int], list[RowSpec]] = {canvas: [] for canvas in self._canvases}
        batches = []
        for index in order.tolist():
            height, width = self._sizes[index].tolist()
            canvas, size = choose_canvas(
                (height, width), int(short_sides[index]), self._data.max_long_side, self._canvases
            )
            flip = bool(flips[index] < self._data.flip_probability)
            vertical_flip = bool(vertical_flips[index] < self._data.vertical_flip_probability)
            pending[canvas].append(RowSpec(index, size, flip, vertical_flip))
            if len(pending[canvas]) == self._batch_size:
                batches.append(BatchSpec(canvas, tuple(pending[canvas])))
                pending[canvas] = []
        # The remaining rows of all buckets share batches on the smallest canvas that holds them.
        remaining = [row for rows in pending.values() for row in rows]
        for start in range(0, len(remaining), self._batch_size):
            rows = tuple(remaining[start : start + self._batch_size])
            batches.append(BatchSpec(smallest_canvas([row.size for row in rows], self._canvases), rows))
        return [batches[i] for i in _random(self._seed, _SHUFFLE, epoch, 1).permutation(len(batches))]


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


def padding_share(batches: list[BatchSpec]) -> float:
    """Return the share of canvas pixels (0–1) that belong to no image."""
    used = sum(row.size[0] * row.size[1] for batch in batches for row in batch.rows if row.index != FILLER)
    return 1 - used / sum(batch.canvas[0] * batch.canvas[1] * len(batch.rows) for batch in batches)


def _random(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
