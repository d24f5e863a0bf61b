"""Image files to RGB arrays, whatever they are: JPEG (also grey or CMYK), PNG (palette, alpha, 16 bit), WebP, BMP, …"""

import os
from pathlib import Path

import cv2
import numpy as np

from tood_jax.data.errors import BrokenImageError

cv2.setNumThreads(0)  # images are decoded side by side; threads within one only get in the way
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong with a file is said here, once

MAX_PIXELS = 200_000_000  # a JPEG or PNG that promises more is refused unread: a few kB can fill the memory
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
        raise BrokenImageError(
            f"{path} can't be read ({error.strerror or error}): restore the file or remove its entry."
        ) from None
    if not data:
        raise BrokenImageError(f"{path} is empty: restore the file or remove its entry.")
    # OpenCV decodes the first half of a torn file without a word, and leaves the rest grey.
    pixels, whole = _jpeg_header(data) if data[:2] == b"\xff\xd8" else _png_header(data)
    if pixels > MAX_PIXELS:
        raise BrokenImageError(
            f"{path} has {pixels / 1e6:.0f} million pixels, more than the {MAX_PIXELS // 1_000_000} million that are "
            "decoded: make it smaller or remove its entry."
        )
    if not whole:
        raise BrokenImageError(f"{path} is truncated: restore the file or remove its entry.")
    return data


def _jpeg_header(data: bytes) -> tuple[int, bool]:
    """(pixels the header promises or 0, whether the picture's end is there).

    The end is looked for behind the start of the first scan: a thumbnail in the header has an end of its own, and
    cameras append films and the like to the picture.
    """
    pixels, position = 0, 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:  # start of scan
            break
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            pixels = int.from_bytes(height) * int.from_bytes(width)
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return pixels, data.find(b"\xff\xd9", position) >= 0


def _png_header(data: bytes) -> tuple[int, bool]:
    """The same of a PNG; (0, True) for any other format, of which OpenCV judges."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return 0, True
    position = 8  # of a chunk: length, name, data, checksum
    while position + 12 <= len(data) and data[position + 4 : position + 8] != b"IEND":
        position += 12 + int.from_bytes(data[position : position + 4])
    return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]), position + 12 <= len(data)


def _decode(path: str | os.PathLike[str], data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        reason = "too many pixels" if "PIXELS" in str(error).upper() else "damaged"
        raise BrokenImageError(f"{path} can't be decoded ({reason}): replace the file or remove its entry.") from None
    if image is None:
        raise BrokenImageError(f"{path} is not an image that can be decoded: replace the file or remove its entry.")
    return image
