"""Image files to RGB arrays, whatever they are: JPEG (also grey or CMYK), PNG (palette, alpha, 16 bit), WebP, BMP, …"""

import os
from pathlib import Path

import cv2
import numpy as np

from tood_jax.data.errors import BrokenImageError

cv2.setNumThreads(0)  # images are decoded side by side; threads within one only get in the way
if hasattr(cv2, "setLogLevel"):
    cv2.setLogLevel(0)  # what is wrong with a file is said here, once

_RAW = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a file to [height, width, 3] uint8 RGB, upright (EXIF orientation applied).

    Args:
        size: (height, width) that the annotations were made for. If only the raw pixels have this size, the boxes
            were drawn on them, and the orientation is ignored.

    Raises:
        BrokenImageError: missing, truncated, not an image, too large, or of another size than `size`.
    """
    data = _read(Path(path))
    image = _decode(path, data, cv2.IMREAD_COLOR_RGB)
    if size is None or image.shape[:2] == tuple(size):
        return image
    if image.shape[:2] == (size[1], size[0]):
        raw = _decode(path, data, _RAW)
        if raw.shape[:2] == tuple(size):
            return raw
    raise BrokenImageError(
        f"{path} is {image.shape[1]}×{image.shape[0]} pixels, but its annotations are for {size[1]}×{size[0]}: "
        "correct 'width' and 'height' in the JSON, or give the image they were made on."
    )


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of a file in pixels, upright."""
    height, width = decode_image(path).shape[:2]
    return height, width


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BrokenImageError(f"{path} can't be read ({error.strerror or error}): restore the file or remove its entry.") from None
    if not data:
        raise BrokenImageError(f"{path} is empty: restore the file or remove its entry.")
    # OpenCV decodes the first half of a torn file without a word, and leaves the rest grey.
    torn_jpeg = data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    torn_png = data[:4] == b"\x89PNG" and b"IEND" not in data[-64:]
    if torn_jpeg or torn_png:
        raise BrokenImageError(f"{path} is truncated: restore the file or remove its entry.")
    return data


def _decode(path: str | os.PathLike[str], data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        reason = "more than 200 million pixels" if "PIXELS" in str(error).upper() else "damaged"
        raise BrokenImageError(f"{path} can't be decoded ({reason}): replace the file or remove its entry.") from None
    if image is None:
        raise BrokenImageError(f"{path} is not an image that can be decoded: replace the file or remove its entry.")
    return image
