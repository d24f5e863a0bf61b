"""Views of an image, in each of which objects are detected: the image, its tiles, and flipped or scaled variants.

A tile is brought to its canvas as an image of its size would be, and so is each variant.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tood_jax.config import ConfigError, DataConfig
from tood_jax.data.preprocess import Sample, to_canvas
from tood_jax.untrusted.printable import printable

_SCALES = (0.25, 4.0)  # smallest and largest
_MIN_TILE = 32  # pixels
_MAX_OVERLAP = 0.9  # the number of tiles grows with 1 / (1 − overlap)²


class Variant(NamedTuple):
    """How a view differs from what evaluation reads: mirrored, or of another size on its canvas."""

    is_flipped: bool = False
    scale: float = 1.0


PLAIN = Variant()


class Placement(NamedTuple):
    """Where a view lies in its image."""

    image_size: tuple[int, int]  # (height, width) of the image, pixels
    area: tuple[int, int, int, int]  # xyxy of the view, pixels of the image
    is_flipped: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the view shows the whole image."""
        return self.area == (0, 0, *self.image_size[::-1])


class View(NamedTuple):
    """A view of an image at its size on a canvas."""

    canvas: tuple[int, int]  # (height, width), pixels
    sample: Sample
    placement: Placement


@dataclass(frozen=True)
class Views:
    """Which views of an image there are; by default only the image.

    Args:
        tiles: side of a tile, pixels of the image; 0 for no tiles. A larger image is one more view.
        overlap: smallest share of a tile's side that neighbouring tiles have in common, 0–0.9.
        variants: of the image and of each tile.

    Raises:
        ConfigError: `tiles` or `overlap` is out of range.
    """

    tiles: int = 0
    overlap: float = 0.2
    variants: tuple[Variant, ...] = (PLAIN,)

    def __post_init__(self) -> None:
        if self.tiles and self.tiles < _MIN_TILE:
            raise ConfigError(f"tiles={self.tiles} must be at least {_MIN_TILE} pixels, or 0 for no tiles.")
        if not 0 <= self.overlap <= _MAX_OVERLAP:
            raise ConfigError(f"overlap={self.overlap} must be a number from 0 to {_MAX_OVERLAP}.")

    @property
    def is_one(self) -> bool:
        """Whether every image has only itself as a view."""
        return not self.tiles and self.variants == (PLAIN,)

    def of(self, image: np.ndarray, data: DataConfig) -> list[View]:
        """Return the views of an image, [h, w, 3] uint8 RGB."""
        height, width = image.shape[:2]
        areas = [(0, 0, width, height)]
        if self.tiles and max(height, width) > self.tiles:
            areas += tile_areas((height, width), self.tiles, self.overlap)
        views = []
        for variant in self.variants:
            scaled = scaled_data(data, variant.scale)
            for area in areas:
                x0, y0, x1, y1 = area
                canvas, sample = to_canvas(image[y0:y1, x0:x1], scaled, flip=variant.is_flipped)
                views.append(View(canvas, sample, Placement((height, width), area, variant.is_flipped)))
        return views


def parse_variants(text: str) -> tuple[Variant, ...]:
    """Return the plain variant and those that a text names: "flip", scales such as "0.8", or several with commas.

    Raises:
        ConfigError: the text has something else, or the same twice.
    """
    variants = [PLAIN]
    for word in (word.strip() for word in text.split(",") if text.strip()):
        variant = Variant(is_flipped=True) if word == "flip" else Variant(scale=_scale(word))
        if variant in variants:
            raise ConfigError(f"tta={printable(text)}: {printable(word)} adds nothing; name each variant once, not 1.")
        variants.append(variant)
    return tuple(variants)


def _scale(word: str) -> float:
    low, high = _SCALES
    try:
        scale = float(word)
    except ValueError:
        scale = math.nan
    if not low <= scale <= high:
        raise ConfigError(f"tta has {printable(word)!r}: write flip, or a scale from {low} to {high:g}, with commas.")
    return scale


def scaled_data(data: DataConfig, scale: float) -> DataConfig:
    """Return the config with which evaluation reads images larger by this factor, on canvases that hold them."""
    if scale == 1:
        return data
    return dataclasses.replace(
        data,
        eval_short_side=max(1, round(data.eval_short_side * scale)),
        max_long_side=max(1, round(data.max_long_side * scale)),
        buckets=tuple((_enlarged(height, scale), _enlarged(width, scale)) for height, width in data.buckets),
    )


def _enlarged(side: int, scale: float) -> int:
    return 32 * math.ceil(side * scale / 32)


def tile_areas(size: tuple[int, int], side: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Return the xyxy of the tiles, row by row; all have the same size and lie evenly, the outer ones at the borders.

    Args:
        size: (height, width) of the image, pixels.
        side: of a tile, pixels; a tile is not larger than the image.
        overlap: as for `Views`.
    """
    height, width = (min(side, length) for length in size)
    return [
        (x, y, x + width, y + height)
        for y in _starts(size[0], height, overlap)
        for x in _starts(size[1], width, overlap)
    ]


def _starts(length: int, side: int, overlap: float) -> Iterator[int]:
    step = max(1, int(side * (1 - overlap)))
    count = -(-(length - side) // step)  # of steps
    yield from (round(i * (length - side) / max(1, count)) for i in range(count + 1))
