"""Pictures of the images with most errors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import BrokenImageError
from tood_jax.data.image_io import decode_image
from tood_jax.report.analysis import ImageErrors
from tood_jax.untrusted.printable import printable
from tood_jax.visualization.draw import Captioned, draw_errors, encode_image, resize_for_drawing

_LONG_SIDE = 1200  # pixels of a picture
_CAPTION_LENGTH = 20  # characters of a class name


class Picture(NamedTuple):
    """A drawing of the errors in one image."""

    file: str  # name in the folder of the report
    image: str  # name of the image
    right: int
    wrong: int
    missed: int
    data: bytes  # JPEG


def draw_worst(worst: Sequence[ImageErrors], dataset: Dataset, bit_depth: int, number: int) -> list[Picture]:
    """Draw the first `number` images that can be read."""
    records = {image.id: image for image in dataset.images}
    names = {info.id: printable(info.name, _CAPTION_LENGTH) for info in dataset.classes}
    pictures: list[Picture] = []
    for errors in worst:
        if len(pictures) == number:
            break
        record = records[errors.image_id]
        try:
            image = decode_image(record.path, bit_depth=bit_depth)
        except (BrokenImageError, OSError):
            continue
        drawing = _draw(image, errors, names)
        name = printable(record.path.name)
        file = f"worst/{len(pictures) + 1:02d}.jpg"
        counts = (len(errors.right), len(errors.wrong), len(errors.missed))
        pictures.append(Picture(file, name, *counts, encode_image(file, drawing)))
    return pictures


def _draw(image: np.ndarray, errors: ImageErrors, names: Mapping[Any, str]) -> np.ndarray:
    large, _ = resize_for_drawing(image, np.zeros((0, 4)))
    factor = min(1.0, _LONG_SIDE / max(large.shape[:2]))
    if factor < 1:
        size = (max(1, round(large.shape[1] * factor)), max(1, round(large.shape[0] * factor)))
        large = cv2.resize(large, size, interpolation=cv2.INTER_AREA)
    scale = np.asarray([large.shape[1] / image.shape[1], large.shape[0] / image.shape[0]] * 2)

    def captioned(rows: Sequence[Mapping[str, Any]]) -> list[Captioned]:
        found = []
        for row in sorted(rows, key=lambda row: row.get("score", 0)):
            x, y, width, height = row["bbox"]
            score = f" {row['score']:.2f}" if "score" in row else ""
            box = np.asarray([x, y, x + width, y + height]) * scale
            found.append((box.tolist(), names[row["category_id"]] + score))
        return found

    return draw_errors(large, captioned(errors.right), captioned(errors.wrong), captioned(errors.missed))
