"""Pictures of missed objects: the object, the prediction that came furthest, and what stood in its way."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from tood_jax.cli.written_files import WrittenFiles
from tood_jax.config import ConfigError
from tood_jax.data.dataset import Dataset
from tood_jax.data.image_io import decode_image
from tood_jax.visualization.draw import BACKGROUND, draw_caption, draw_dashed_box, encode_image, resize_for_drawing

if TYPE_CHECKING:
    from tood_jax.api.missed import ObjectFate

OBJECT, PREDICTION, OTHER = (0, 110, 255), (255, 140, 0), (220, 0, 40)
_SURROUNDINGS = 1.0  # of the crop, in sides of the boxes
_LETTERS = 0.45  # scale of OpenCV's font


def write_pictures(
    folder: Path, fates: Sequence["ObjectFate"], texts: Sequence[str], dataset: Dataset, bit_depth: int
) -> None:
    """Write a picture for each object, named by its image and its position there.

    Raises:
        ConfigError: a file of that name was not written by this program.
        DataError: an image cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = WrittenFiles(folder)
    for fate, text in zip(fates, texts, strict=True):
        image = dataset.images[fate.image]
        name = f"{fate.image:06d}_{fate.position:03d}.png"
        if (folder / name).exists() and not written.has(name):
            raise ConfigError(f"--pictures: {folder / name} was not written by this program: name another folder.")
        picture = draw_fate(decode_image(image.path, bit_depth=bit_depth), fate, text)
        written.write(name, encode_image(name, picture))


def draw_fate(image: np.ndarray, fate: "ObjectFate", text: str) -> np.ndarray:
    """Return the surroundings of an object, uint8 RGB: object blue and dashed, prediction orange, other box red."""
    boxes = [box for box in (fate.gt_box, fate.box, fate.other_box) if (box[2:] > box[:2]).all()]
    crop, boxes = _crop(image, boxes)
    crop, resized = resize_for_drawing(crop, np.asarray(boxes))
    canvas = np.ascontiguousarray(crop).copy()
    thickness = max(1, round(min(canvas.shape[:2]) / 250))
    for box, color, name in zip(resized, (OBJECT, PREDICTION, OTHER), ("object", "prediction", "other"), strict=False):
        x0, y0, x1, y1 = np.round(box).astype(int).tolist()
        if color == OBJECT:
            draw_dashed_box(canvas, (x0, y0, x1, y1), color, thickness + 1)
        else:
            cv2.rectangle(canvas, (x0, y0), (x1, y1), color, thickness)
            corner = (x0, y1) if color == PREDICTION else (x0, y0)
            draw_caption(canvas, (max(0, corner[0]), int(np.clip(corner[1], 0, canvas.shape[0] - 1))), name, color)
    return np.concatenate([_headline(text, canvas.shape[1]), canvas])


def _crop(image: np.ndarray, boxes: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the part of an image around boxes, and the boxes in it."""
    height, width = image.shape[:2]
    low, high = np.min(boxes, axis=0)[:2], np.max(boxes, axis=0)[2:]
    margin = max(16.0, _SURROUNDINGS * float(np.max(high - low)) / 2)
    x0, y0 = np.clip(np.floor(low - margin), 0, (width - 1, height - 1)).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(high + margin), (x0 + 1, y0 + 1), (width, height)).astype(int).tolist()
    return image[y0:y1, x0:x1], [box - np.asarray([x0, y0, x0, y0]) for box in boxes]


def _headline(text: str, width: int) -> np.ndarray:
    """Return a strip of this width with a text, broken into lines."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and cv2.getTextSize(longer, cv2.FONT_HERSHEY_SIMPLEX, _LETTERS, 1)[0][0] > width - 12:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    strip = np.empty((8 + 18 * len(lines), width, 3), np.uint8)
    strip[:] = BACKGROUND
    for i, content in enumerate(lines):
        cv2.putText(
            strip, content, (6, 18 + 18 * i), cv2.FONT_HERSHEY_SIMPLEX, _LETTERS, (0, 0, 0), 1, cv2.LINE_AA
        )  # fmt: skip
    return strip
