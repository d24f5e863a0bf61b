"""Detect in a stream of images: threads read ahead, batches have one canvas, rows come in the order of the images."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tood_jax.api import TrainedDetector
from tood_jax.api.rows import Row, row_of
from tood_jax.cli.prediction.video import Frame, Video
from tood_jax.config import DataConfig
from tood_jax.data.errors import BrokenImageError
from tood_jax.data.image_io import decode_image
from tood_jax.data.paths import ImagePath
from tood_jax.data.preprocess import batch_by_canvas
from tood_jax.data.read_ahead import read_ahead
from tood_jax.data.views import View, Views
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.evaluation.views import ViewMerger
from tood_jax.types import Batch
from tood_jax.untrusted.printable import printable


class Task(NamedTuple):
    """An image to detect in."""

    position: int  # among all images of the job
    path: ImagePath | Frame
    drawing: str  # the name of its drawing; "" for none


Draw = Callable[[str, np.ndarray, ImageDetections], None]  # the name of a drawing, RGB pixels, detections


class _Image(NamedTuple):
    """An image that was read, or why it could not be."""

    task: Task
    path: str
    error: str = ""
    notes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)  # (height, width) of the original, pixels
    pixels: np.ndarray | None = None  # [h, w, 3] uint8 RGB, to draw on
    views: tuple[View, ...] = ()  # none if there is an error, and after they are copied to their batches


def detect_in_order(
    detector: TrainedDetector, tasks: Iterable[Task], views: Views, batch_rows: int, chunk: int, draw: Draw
) -> Iterator[tuple[int, Row]]:
    """Yield position and row of each image in the order of the tasks, after it is drawn.

    Args:
        tasks: positions must increase.
        views: of each image.
        batch_rows: views per batch.
        chunk: batches do not mix images whose position // chunk differs.

    Raises:
        DataError: the machine fails in reading an image, or a read hangs.
    """
    data = detector.config.data
    order: deque[int] = deque()  # positions whose rows are not yielded yet
    images: dict[int, _Image] = {}  # of batches that are not computed yet
    rows: dict[int, Row] = {}  # waiting for a row before them
    merger = ViewMerger(detector.config.detect)

    def batches() -> Iterator[Batch]:
        read = partial(_read, data, views)
        found = read_ahead(read, tasks, data.threads, data.timeout_seconds, lambda task: printable(task.path))
        for _, group in itertools.groupby(found, key=lambda image: image.task.position // chunk):
            yield from batch_by_canvas(merger.samples(with_views(group)), batch_rows)

    def with_views(group: Iterable[_Image]) -> Iterator[tuple[int, tuple[View, ...]]]:
        for image in group:
            position = image.task.position
            order.append(position)
            if not image.views:
                rows[position] = {"path": image.path, "error": image.error}
            else:
                images[position] = image._replace(views=())
                yield position, image.views

    def finished() -> Iterator[tuple[int, Row]]:
        while order and order[0] in rows:
            yield order[0], rows.pop(order.popleft())

    for found in merger.merge(detector.detect_batches(batches())):
        image = images.pop(found.image_index)
        notes = image.notes
        if image.pixels is not None:
            notes += _drawn(partial(draw, image.task.drawing, image.pixels, found))
        rows[found.image_index] = row_of(image.path, image.size, found, detector.classes, notes)
        yield from finished()
    yield from finished()


class DetectedFrame(NamedTuple):
    """A frame of a video whose objects are detected."""

    number: int
    row: Row
    drawing: np.ndarray | None  # [h, w, 3] uint8 RGB; None if it is not drawn


def detect_in_frames(
    detector: TrainedDetector,
    video: Video,
    views: Views,
    batch_rows: int,
    chunk: int,
    draw: Callable[[np.ndarray, ImageDetections], np.ndarray] | None,
) -> Iterator[DetectedFrame]:
    """Yield the frames of a video in their order; arguments as for `detect_in_order`.

    Args:
        draw: returns a drawing of a frame, RGB; None for no drawings.
    """
    drawn: dict[str, np.ndarray] = {}  # frames whose rows are not finished yet

    def keep(name: str, pixels: np.ndarray, found: ImageDetections) -> None:
        if draw is not None:
            drawn[name] = draw(pixels, found)

    tasks = (Task(frame.number, frame, str(frame.number) if draw else "") for frame in video.frames())
    for number, row in detect_in_order(detector, tasks, views, batch_rows, chunk, keep):
        yield DetectedFrame(number, row, drawn.pop(str(number), None))


def _read(data: DataConfig, views: Views, task: Task) -> _Image:
    """Decode an image and bring its views to their canvases; in a thread."""
    kinds: list[str] = []
    if isinstance(task.path, Frame):
        return _image(data, views, task, task.path.pixels)
    try:
        if isinstance(task.path, Path) and task.path.exists() and not os.access(task.path, os.R_OK):
            # otherwise the error looks like one of the machine
            raise BrokenImageError(f"{printable(task.path)} can't be read (permission denied).")
        pixels = decode_image(task.path, bit_depth=data.bit_depth, noticed=kinds)
    except BrokenImageError as error:
        return _Image(task, str(task.path), str(error))
    return _image(data, views, task, pixels, kinds)


def _image(data: DataConfig, views: Views, task: Task, pixels: np.ndarray, kinds: Sequence[str] = ()) -> _Image:
    height, width = pixels.shape[:2]
    notes = tuple(f"it is one of the {kind}" for kind in kinds)
    kept = pixels if task.drawing else None
    return _Image(task, str(task.path), "", notes, (height, width), kept, tuple(views.of(pixels, data)))


def _drawn(draw: Callable[[], None]) -> tuple[str, ...]:
    """Draw, and return a note if that fails: the other images still count."""
    try:
        draw()
    except Exception as error:
        return (f"not drawn ({printable(error) or type(error).__name__})",)
    return ()
