"""Fit the recipe of configs/small_set.py to a data set: image size, canvases, objects, and the length of the run.

Every decision follows from the training split alone, so that the same data always give the same config.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tood_jax.config import Config, DataConfig
from tood_jax.data.dataset import Dataset
from tood_jax.data.health import SIZE_LIMITS, object_sides
from tood_jax.data.preprocess import canvases, smallest_canvas
from tood_jax.data.sampler import steps_per_epoch
from tood_jax.data.transforms import fitted_size, resized_size

_SHORT_SIDES = (240, 320, 480, 640)  # tried in this order
_SMALL_SHARE = 0.05  # of objects that may be smaller than the smallest stride
_MULTIPLE = 16  # of short sides, pixels
_CANVAS_MULTIPLE = 32
_LOW, _HIGH = 208 / 240, 256 / 240  # range of the short side in training, as in small_set
_ASPECT_QUANTILE = 0.95  # images that are longer are shrunk
_MAX_ASPECT = 3.0
_MAX_BUCKETS = 3  # each is one compilation
_MIN_GAIN = 0.05  # of the canvas area, for one more
_CANDIDATES = 24  # most frequent canvas sizes that are tried
_OBJECTS_MULTIPLE, _MAX_OBJECTS = 10, 500
_STEPS, _STEPS_PER_IMAGE = (600, 1500), 3
_WARMUP_SHARE = 8  # an eighth of the run for each warm-up, as in docs/tutorial.md
_EVALUATIONS = 4


class Decision(NamedTuple):
    """A value that was chosen for the data."""

    fields: str  # of the config, with their values
    reason: str

    def __str__(self) -> str:
        return f"{self.fields}: {self.reason}"


def fit_recipe(config: Config, train_set: Dataset) -> tuple[Config, list[Decision]]:
    """Return a config fitted to a training split, and the decisions.

    Args:
        config: `presets.small_set()` with the splits of the folder.
        train_set: its training split.
    """
    data, decisions = _fit_images(config.data, train_set)
    config, run = _fit_run(replace(config, data=data), len(train_set.images))
    return config, [*decisions, *run]


def _fit_images(data: DataConfig, train_set: Dataset) -> tuple[DataConfig, list[Decision]]:
    sizes = [(image.height, image.width) for image in train_set.images]
    short_side, reason = _short_side(data, train_set)
    low, high = (round(short_side * factor / _MULTIPLE) * _MULTIPLE for factor in (_LOW, _HIGH))
    aspects = [max(size) / min(size) for size in sizes]
    aspect = min(_MAX_ASPECT, float(np.quantile(aspects, _ASPECT_QUANTILE)))
    long_side = _round_up(high * aspect, _CANVAS_MULTIPLE)
    data = replace(data, train_short_side=(low, high), eval_short_side=short_side, max_long_side=long_side)
    resized = [resized_size(*size, high, long_side) for size in sizes]
    buckets = _buckets(resized, high)
    data = replace(data, buckets=buckets)
    most = max(len(image.labels) for image in train_set.images)
    max_objects = min(_MAX_OBJECTS, max(_OBJECTS_MULTIPLE, _round_up(most, _OBJECTS_MULTIPLE)))
    shown = ",".join(f"{height}x{width}" for height, width in buckets)
    padding = 1 - _used_share(resized, buckets)
    return replace(data, max_objects=max_objects), [
        Decision(f"data.eval_short_side={short_side} data.train_short_side={low},{high}", reason),
        Decision(
            f"data.max_long_side={long_side}", f"{_ASPECT_QUANTILE:.0%} of the images are at most {aspect:.2f} : 1"
        ),
        Decision(f"data.buckets={shown}", f"{padding:.0%} of the canvases is padding at the largest short side"),
        Decision(f"data.max_objects={max_objects}", f"an image has at most {most} objects"),
    ]


def _short_side(data: DataConfig, train_set: Dataset) -> tuple[int, str]:
    """Return the smallest short side at which few objects are smaller than a stride; images are not enlarged for it."""
    median = float(np.median([min(image.height, image.width) for image in train_set.images]))
    first, *larger = _SHORT_SIDES
    options = [first, *(side for side in larger if side <= median)]
    for side in options:
        sides = object_sides(train_set, replace(data, eval_short_side=side, max_long_side=round(side * _MAX_ASPECT)))
        small = float((sides < SIZE_LIMITS[0]).mean()) if len(sides) else 0.0
        if small <= _SMALL_SHARE:
            break
    return side, (
        f"{small:.1%} of the objects are smaller than {SIZE_LIMITS[0]} pixels, the smallest stride; the images' short "
        f"side is {median:.0f} (median)"
    )


def _buckets(sizes: Sequence[tuple[int, int]], short_side: int) -> tuple[tuple[int, int], ...]:
    """Return the canvases that leave least padding, as few as reasonable; the last one holds every image.

    Args:
        sizes: (height, width) of the resized images.
        short_side: the largest of training, which the last canvas reaches even if no image does.
    """
    rounded = Counter((_round_up(h, _CANVAS_MULTIPLE), _round_up(w, _CANVAS_MULTIPLE)) for h, w in sizes)
    least = _round_up(short_side, _CANVAS_MULTIPLE)
    largest = max(least, *(h for h, _ in rounded)), max(least, *(w for _, w in rounded))
    candidates = [size for size, _ in rounded.most_common(_CANDIDATES) if size != largest]
    best: tuple[tuple[int, int], ...] = (largest,)
    for count in range(1, _MAX_BUCKETS):
        options = [tuple(sorted({*some, largest}, key=_area)) for some in itertools.combinations(candidates, count)]
        if not options:
            break
        option = min(options, key=lambda option: _canvas_area(rounded, option))
        if _canvas_area(rounded, option) > (1 - _MIN_GAIN) * _canvas_area(rounded, best):
            break
        best = option
    return best


def _canvas_area(rounded: Counter[tuple[int, int]], options: tuple[tuple[int, int], ...]) -> int:
    """Return the sum of the areas of the canvases of images with these sizes."""
    return sum(_area(smallest_canvas([size], options)) * count for size, count in rounded.items())


def _used_share(sizes: Iterable[tuple[int, int]], buckets: tuple[tuple[int, int], ...]) -> float:
    options = canvases(DataConfig(buckets=buckets))
    pairs = [(size, smallest_canvas([size], options)) for size in sizes]
    return sum(_area(fitted_size(*pair)) for pair in pairs) / sum(_area(canvas) for _, canvas in pairs)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _round_up(value: float, multiple: int) -> int:
    return int(-(-value // multiple) * multiple)


def _fit_run(config: Config, num_images: int) -> tuple[Config, list[Decision]]:
    batch_size = min(config.train.batch_size, num_images)
    epoch = steps_per_epoch(num_images, batch_size)
    wanted = min(max(_STEPS_PER_IMAGE * num_images, _STEPS[0]), _STEPS[1])
    epochs = max(1, round(wanted / epoch))
    steps = epochs * epoch
    warmup_epochs, warmup_steps = round(epochs / _WARMUP_SHARE, 2), max(1, steps // _WARMUP_SHARE)
    every = max(1, epochs // _EVALUATIONS)
    train = replace(config.train, epochs=epochs, batch_size=batch_size, eval_every_epochs=every)
    config = replace(
        config,
        train=train,
        assigner=replace(config.assigner, warmup_epochs=warmup_epochs),
        optimizer=replace(config.optimizer, warmup_steps=warmup_steps),
    )
    return config, [
        Decision(f"train.batch_size={batch_size} train.epochs={epochs}", f"{steps} steps for {num_images} images"),
        Decision(
            f"assigner.warmup_epochs={warmup_epochs} optimizer.warmup_steps={warmup_steps}",
            f"one part in {_WARMUP_SHARE} of the run",
        ),
        Decision(f"train.eval_every_epochs={every}", f"about {_EVALUATIONS} evaluations"),
    ]
