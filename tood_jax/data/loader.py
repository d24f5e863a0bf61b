"""Batches by step through Grain: decoded in threads or worker processes, with the same result bit for bit.

The Grain source is a list of *batches*, not of images: element s is this process's rows of the global batch of step s,
so batches can be made anywhere and in any order. This module does not import JAX: the workers never touch a device.
"""

import contextlib
import functools
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags

from tood_jax.config import DataConfig
from tood_jax.data.active_reads import ActiveReads, set_worker_index
from tood_jax.data.augmentation.augment import Augmenter
from tood_jax.data.augmentation.hook import load_hook
from tood_jax.data.batch_iterator import BatchIterator, Traceback
from tood_jax.data.counts import DataCounts
from tood_jax.data.dataset import AnnotatedImage, Dataset
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.image_io import decode_image
from tood_jax.data.preprocess import FILLER, Sample, canvases, empty_batch, preprocess, write_sample
from tood_jax.data.sampler import (
    BatchSpec,
    RowSpec,
    evaluation_batches,
    image_sizes,
    padding_share,
    process_rows,
    train_sampler,
)
from tood_jax.data.shared_memory import check_shared_memory
from tood_jax.data.temporary_files import owner_prefix, set_shared_memory_prefix
from tood_jax.data.transforms import resized_size, size_within
from tood_jax.types import Batch
from tood_jax.untrusted.printable import printable

_DEFAULTS = DataConfig()
_AFTER_SIGTERM = 60.0  # seconds that a worker continues after SIGTERM, which may be sent to it alone


class _BatchSource:
    """Element i: the batch of step `start + i` and its counts, or the text of an error."""

    def __init__(self, spec_of: Callable[[int], BatchSpec], build: "BatchBuilder", start: int, length: int):
        self._spec_of, self._build, self._start, self._length = spec_of, build, start, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: Any) -> tuple[Batch, DataCounts] | str:
        step = self._start + int(position)
        try:
            return self._build(self._spec_of(step), step)
        except DataError as error:
            return str(error)
        except Exception:
            return Traceback(traceback.format_exc())


def train_batches(
    dataset: Dataset,
    data: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Return this process's rows of the batches of steps start_step … start_step + num_steps − 1.

    Args:
        batch_size: of the global batch.
        epochs: of the run (train.epochs), for data.closing_epochs; None: no epoch is a closing one.

    Raises:
        DataError: the batch is not divisible by the number of processes, shared memory is too small, or
            data.augment_hook cannot be imported.
    """
    load_hook(data.augment_hook)
    sampler = train_sampler(dataset, data, batch_size, seed, epochs)
    rows = process_rows(batch_size, process_index, process_count)
    return _iterate(dataset, data, rows, sampler.batch, start_step, num_steps, for_training=True)


def eval_batches(
    dataset: Dataset,
    data: DataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    flip: bool = False,
) -> BatchIterator:
    """Return batches that contain every image exactly once over all processes; filler rows have index -1.

    Args:
        flip: exchange left and right.

    Raises:
        DataError: as `train_batches`.
    """
    batches = evaluation_batches(image_sizes(dataset), data, batch_size, flip)
    rows = process_rows(batch_size, process_index, process_count)
    return _iterate(dataset, data, rows, batches.__getitem__, 0, len(batches), for_training=False)


def count_eval_batches(dataset: Dataset, data: DataConfig, batch_size: int) -> int:
    """Return the number of batches of `eval_batches`."""
    return len(evaluation_batches(image_sizes(dataset), data, batch_size))


def describe_batches(dataset: Dataset, data: DataConfig, batch_size: int, seed: int) -> str:
    """Return how the training images fill the canvases, for the log: "2 canvases, 4 % padding"."""
    sampler = train_sampler(dataset, data, batch_size, seed)
    epoch = [sampler.batch(step) for step in range(sampler.epoch_steps)]
    number = len({batch.canvas for batch in epoch})
    text = f"{number} canvas{'es' if number > 1 else ''}, {padding_share(epoch):.0%} padding".replace("%", " %")
    height, width = canvases(data)[-1]
    resized = [
        resized_size(image.height, image.width, data.train_short_side[1], data.max_long_side)
        for image in dataset.images
    ]
    if shrunk := sum(size[0] > height or size[1] > width for size in resized):
        text += f", {shrunk} images shrunk because they fit none of data.buckets"
    return text


class BatchBuilder:
    """Builds this process's rows of a batch.

    Args:
        rows: of the global batch.
        active_reads: records which image is being read.
        num_classes: of the data set, to check what data.augment_hook returns.
        for_training: with data.broken_images = "skip", a broken image is replaced by the next image that can be
            decoded, and objects beyond data.max_objects are counted. In evaluation a broken image's row becomes a
            filler, and the objects come from the data set, not from the batch.
    """

    def __init__(
        self,
        images: tuple[AnnotatedImage, ...],
        data: DataConfig,
        rows: slice,
        active_reads: ActiveReads,
        *,
        num_classes: int,
        for_training: bool,
    ):
        self._images, self._data, self._rows, self._for_training = images, data, rows, for_training
        self._active_reads = active_reads
        self._augment = Augmenter(data, num_classes)

    def __call__(self, spec: BatchSpec, step: int) -> tuple[Batch, DataCounts]:
        rows = spec.rows[self._rows]
        counts = DataCounts()
        batch = empty_batch(len(rows), spec.canvas, self._data.max_objects)
        for position, row in enumerate(rows):
            if row.index == FILLER:
                continue
            loaded = self._load(row, step, counts)
            if loaded is None:
                continue
            index, sample = loaded
            truncated = write_sample(batch, position, sample, index)
            if self._for_training:
                counts.truncated_objects += truncated
                counts.truncated_images += truncated > 0
        return batch, counts

    def _load(self, row: RowSpec, step: int, counts: DataCounts) -> tuple[int, Sample] | None:
        """Return the index and the sample of the row's image or of its replacement; None for a filler."""
        reason = ""
        for offset in range(len(self._images)):
            index = (row.index + offset) % len(self._images)
            try:
                if row.key:
                    return index, self._load_augmented(index, row, step, counts)
                return index, self._load_plain(index, row, offset > 0, step, counts)
            except BrokenImageError as error:
                if self._data.broken_images == "fail":
                    raise BrokenImageError(f"{error} Or leave such images out with data.broken_images=skip.") from None
                reason = str(error)
                counts.broken[reason] += 1
                if not self._for_training:
                    return None
        raise DataError(f"No image of the data set can be decoded; the last error: {reason}")

    def _load_plain(self, index: int, row: RowSpec, is_replacement: bool, step: int, counts: DataCounts) -> Sample:
        with self._reading(index, step, counts) as noticed:
            return load_sample(self._images[index], row, is_replacement, self._data, noticed)

    def _load_augmented(self, index: int, row: RowSpec, step: int, counts: DataCounts) -> Sample:
        """Return the augmented image; with data.broken_images = "skip", it takes the place of broken partners."""

        numbers = (index, *row.partners)

        def decode(position: int, needed: tuple[int, int]) -> np.ndarray | None:
            image = self._images[numbers[position]]
            at_least = needed if self._data.scaled_decoding else None
            try:
                with self._reading(numbers[position], step, counts) as noticed:
                    return decode_image(
                        image.path, (image.height, image.width), at_least, self._data.bit_depth, noticed
                    )
            except BrokenImageError as error:
                if position == 0 or self._data.broken_images == "fail":
                    raise
                counts.broken[str(error)] += 1
                return None

        return self._augment(row, [self._images[number] for number in numbers], decode)

    @contextlib.contextmanager
    def _reading(self, index: int, step: int, counts: DataCounts) -> Iterator[list[str]]:
        """Record that an image is read, and count the unusual properties that are appended to the list."""
        noticed: list[str] = []
        with self._active_reads.reading(step, index):
            yield noticed
        for what in noticed:
            counts.notice(what, printable(self._images[index].path))


def load_sample(
    image: AnnotatedImage,
    row: RowSpec,
    is_replacement: bool = False,
    data: DataConfig = _DEFAULTS,
    noticed: list[str] | None = None,
) -> Sample:
    """Decode, resize and flip one image as its row specifies.

    Args:
        is_replacement: the row was drawn for another image; this one keeps its aspect ratio within the row's size.
        data: its fields scaled_decoding and bit_depth are used.
        noticed: unusual properties of the image are appended, see `decode_image`.
    """
    original_size, size = (image.height, image.width), row.size
    if is_replacement:
        size = size_within(original_size, row.size)
    needed = size if data.scaled_decoding else None
    return preprocess(
        decode_image(image.path, original_size, needed, data.bit_depth, noticed),
        size,
        original_size=original_size,
        boxes=image.boxes,
        labels=image.labels,
        flip=row.flip,
        vertical_flip=row.vertical_flip,
    )


def _iterate(
    dataset: Dataset,
    data: DataConfig,
    rows: slice,
    spec_of: Callable[[int], BatchSpec],
    start: int,
    length: int,
    *,
    for_training: bool,
) -> BatchIterator:
    import grain  # not at the top: Grain imports JAX (without using a device), which decoding and sampling do not need

    active_reads = ActiveReads(data.workers, data.threads)
    build = BatchBuilder(
        dataset.images, data, rows, active_reads, num_classes=len(dataset.classes), for_training=for_training
    )
    source = grain.MapDataset.source(_BatchSource(spec_of, build, start, length))
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=max(1, data.prefetch_batches))
    iterable = source.to_iter_dataset(options)
    if data.workers:
        if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl's flags, and this program parses none
            flags.FLAGS.mark_as_parsed()
        per_worker = max(1, data.prefetch_batches // data.workers)
        height, width = canvases(data)[-1]
        check_shared_memory((rows.stop - rows.start) * height * width * 3, data.workers, per_worker)
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=per_worker),
            functools.partial(_start_worker, os.getpid(), owner_prefix()),
        )
    return BatchIterator(
        iter(iterable),
        start,
        length,
        timeout_seconds=data.timeout_seconds,
        active_reads=active_reads,
        path_of=lambda index: dataset.images[index].path,
    )


def _start_worker(parent: int, prefix: str, worker_index: int, worker_count: int) -> None:
    """Prepare a worker process: only its parent reacts to requests to stop, and it ends when its parent does.

    A terminal sends Ctrl-C to the workers too, and SLURM its signals; without workers the parent could not finish its
    step. And Grain's workers would wait forever for a parent that was killed.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, _AFTER_SIGTERM))  # then SIGALRM kills
    set_worker_index(worker_index)
    set_shared_memory_prefix(prefix)  # Grain passes batches in shared memory, which outlives a kill of all processes

    def exit_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
