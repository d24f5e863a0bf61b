"""Batches by step through Grain: decoding in threads or worker processes, always the same bits.

The Grain source is a list of *batches*, not of images: element s is this process's share of the global batch of step
s, so a batch can be made anywhere and in any order. No JAX here: the workers never touch a device.
"""

import functools
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from tood_jax.config import DataConfig
from tood_jax.data.activity import Activity, set_worker
from tood_jax.data.batching import (
    FILLER,
    BatchPlan,
    Row,
    TrainPlan,
    canvases,
    evaluation_plan,
    padding_share,
)
from tood_jax.data.coco import CocoSet, ImageRecord
from tood_jax.data.decode import decode_image
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.stream import BatchStream, Crash, DataCounts, TimeLimit
from tood_jax.data.transforms import flip_horizontal, flip_vertical, resize, resized_size, scale_boxes
from tood_jax.types import Batch

_AFTER_SIGTERM = 60.0  # seconds that a worker goes on after SIGTERM, which may be meant for it alone


class Sample(NamedTuple):
    """One image ready for its canvas."""

    image: np.ndarray  # [h, w, 3] uint8
    scale: np.ndarray  # [2] float32 (y, x)
    boxes: np.ndarray  # [n, 4] float32 xyxy, canvas pixels
    labels: np.ndarray  # [n] int32


class _BatchSource:
    """Element i: the batch of position `start + i`, or the text of an error."""

    def __init__(self, plan_of: Callable[[int], BatchPlan], make: "BatchMaker", start: int, length: int):
        self._plan_of, self._make, self._start, self._length = plan_of, make, start, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: Any) -> tuple[Batch, DataCounts] | str:
        step = self._start + int(position)
        try:
            return self._make(self._plan_of(step), step)
        except DataError as error:
            return str(error)
        except Exception:
            return Crash(traceback.format_exc())


def train_batches(
    dataset: CocoSet,
    data: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchStream:
    """Batches of steps start_step … start_step + num_steps − 1; `batch_size` is global, the rows are this process's."""
    plan = TrainPlan(_sizes(dataset), data, batch_size, seed)
    share = _share(batch_size, process_index, process_count)
    return _stream(dataset, data, share, plan.batch, start_step, num_steps, replace_broken=True)


def eval_batches(
    dataset: CocoSet, data: DataConfig, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> BatchStream:
    """Every image exactly once over all processes, unflipped; rows that only fill a batch have index -1."""
    plans = evaluation_plan(_sizes(dataset), data, batch_size)
    share = _share(batch_size, process_index, process_count)
    return _stream(dataset, data, share, plans.__getitem__, 0, len(plans), replace_broken=False)


def describe_batches(dataset: CocoSet, data: DataConfig, batch_size: int, seed: int) -> str:
    """What the buckets make of a training set, for the log: "2 canvases, 4 % padding"."""
    plan = TrainPlan(_sizes(dataset), data, batch_size, seed)
    epoch = [plan.batch(step) for step in range(plan.epoch_steps)]
    number = len({batch.canvas for batch in epoch})
    text = f"{number} canvas{'es' if number > 1 else ''}, {padding_share(epoch):.0%} padding".replace("%", " %")
    height, width = canvases(data)[-1]
    resized = [
        resized_size(one.height, one.width, data.train_short_side[1], data.max_long_side) for one in dataset.images
    ]
    if shrunk := sum(size[0] > height or size[1] > width for size in resized):
        text += f", {shrunk} images shrunk because they fit none of data.buckets"
    return text


class BatchMaker:
    """Makes the rows of a batch from its plan.

    Args:
        share: which rows of the global batch are made.
        activity: is told which image is being read.
        replace_broken: with data.broken_images = "skip", a broken image's row takes the next image that decodes
            (training), or becomes a filler (evaluation).
    """

    def __init__(
        self,
        images: tuple[ImageRecord, ...],
        data: DataConfig,
        share: slice,
        activity: Activity,
        *,
        replace_broken: bool,
    ):
        self._images, self._data, self._share, self._replace = images, data, share, replace_broken
        self._activity = activity

    def __call__(self, plan: BatchPlan, step: int) -> tuple[Batch, DataCounts]:
        rows = plan.rows[self._share]
        counts = DataCounts()
        batch = empty_batch(len(rows), plan.canvas, self._data.max_objects)
        for position, row in enumerate(rows):
            if row.index == FILLER:
                continue
            found = self._sample(row, step, counts)
            if found is not None:
                _put(batch, position, *found, counts)
        return batch, counts

    def _sample(self, row: Row, step: int, counts: DataCounts) -> tuple[int, Sample] | None:
        reason = ""
        for offset in range(len(self._images)):
            index = (row.index + offset) % len(self._images)
            try:
                with self._activity.reading(step, index):
                    sample = load_sample(self._images[index], row, offset > 0, self._data.scaled_decoding)
            except BrokenImageError as error:
                if self._data.broken_images == "fail":
                    raise BrokenImageError(f"{error} Or leave such images out with data.broken_images=skip.") from None
                reason = str(error)
                counts.broken[reason] += 1
                if not self._replace:
                    return None
                continue
            return index, sample
        raise DataError(f"Not one image of the set can be decoded; the last one: {reason}")


def load_sample(record: ImageRecord, row: Row, stand_in: bool = False, scaled: bool = False) -> Sample:
    """Decode, resize and flip one image as its row says.

    Args:
        stand_in: the row was planned for another image, a broken one; this one keeps its own ratio inside that size.
        scaled: data.scaled_decoding.
    """
    size = row.size
    if stand_in:
        factor = min(row.size[0] / record.height, row.size[1] / record.width)
        size = (max(1, round(record.height * factor)), max(1, round(record.width * factor)))
    image = decode_image(record.path, (record.height, record.width), size if scaled else None)
    scale = np.asarray([size[0] / record.height, size[1] / record.width], np.float32)
    image, boxes = resize(image, size), scale_boxes(record.boxes, scale)
    if row.flip:
        image, boxes = flip_horizontal(image, boxes)
    if row.vertical_flip:
        image, boxes = flip_vertical(image, boxes)
    return Sample(image, scale, boxes, record.labels)


def empty_batch(rows: int, canvas: tuple[int, int], max_objects: int) -> Batch:
    """Filler rows only; their sizes are valid, so that nothing divides by zero."""
    return Batch(
        images=np.zeros((rows, *canvas, 3), np.uint8),
        sizes=np.full((rows, 2), 32, np.int32),
        scales=np.ones((rows, 2), np.float32),
        gt_boxes=np.zeros((rows, max_objects, 4), np.float32),
        gt_labels=np.zeros((rows, max_objects), np.int32),
        gt_mask=np.zeros((rows, max_objects), bool),
        image_indices=np.full(rows, FILLER, np.int32),
    )


def _put(batch: Batch, position: int, index: int, sample: Sample, counts: DataCounts) -> None:
    """Write a sample into its row; of too many objects the largest stay."""
    boxes, labels = sample.boxes, sample.labels
    limit = batch.gt_mask.shape[1]
    if len(labels) > limit:
        counts.truncated_objects += len(labels) - limit
        counts.truncated_images += 1
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        largest = np.sort(np.argsort(-area, kind="stable")[:limit])
        boxes, labels = boxes[largest], labels[largest]
    height, width = sample.image.shape[:2]
    batch.images[position, :height, :width] = sample.image
    batch.sizes[position] = height, width
    batch.scales[position] = sample.scale
    batch.gt_boxes[position, : len(labels)] = boxes
    batch.gt_labels[position, : len(labels)] = labels
    batch.gt_mask[position, : len(labels)] = True
    batch.image_indices[position] = index


def _sizes(dataset: CocoSet) -> np.ndarray:
    return np.asarray([(one.height, one.width) for one in dataset.images], np.int64)


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise DataError(
            f"A batch of {batch_size} images can't be shared by {process_count} processes: choose a multiple."
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _stream(
    dataset: CocoSet,
    data: DataConfig,
    share: slice,
    plan_of: Callable[[int], BatchPlan],
    start: int,
    length: int,
    *,
    replace_broken: bool,
) -> BatchStream:
    import grain  # here, as Grain imports JAX (and leaves the devices alone): decoding and planning do without both

    activity = Activity(data.workers, data.threads)
    make = BatchMaker(dataset.images, data, share, activity, replace_broken=replace_broken)
    source = grain.MapDataset.source(_BatchSource(plan_of, make, start, length))
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=max(1, data.prefetch_batches))
    iterable = source.to_iter_dataset(options)
    if data.workers:
        if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl's flags, which nobody has parsed here
            flags.FLAGS.mark_as_parsed()
        per_worker = max(1, data.prefetch_batches // data.workers)
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=per_worker),
            functools.partial(_begin_worker, os.getpid()),
        )
    limit = TimeLimit(data.timeout_seconds, activity, lambda index: dataset.images[index].path)
    return BatchStream(iter(iterable), start, length, limit)


def _begin_worker(parent: int, worker_index: int, worker_count: int) -> None:
    """Run first in a worker process: requests to stop are the parent's affair, and no worker outlives its parent.

    A terminal sends Ctrl-C to the workers too, and SLURM its signals; without them the parent couldn't finish its step.
    And Grain's workers would wait forever for a parent that was killed.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, _AFTER_SIGTERM))  # then SIGALRM kills
    set_worker(worker_index)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
