"""Image files to RGB arrays, whatever they are: JPEG (also grey or CMYK), PNG (palette, alpha, 16 bit), WebP, BMP, …"""

from typing import NamedTuple

import cv2
import numpy as np

from tood_jax.data.errors import BrokenImageError
from tood_jax.data.paths import ImagePath, as_path, read_bytes

cv2.setNumThreads(0)  # images are decoded side by side; threads within one only get in the way
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong with a file is said here, once

MAX_PIXELS = 200_000_000  # a JPEG or PNG that promises more is refused unread: a few kB can fill the memory
_RAW = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
# … which joined with IMREAD_COLOR_RGB is in colour; OpenCV's IMREAD_REDUCED_COLOR_* are BGR and can't be.


def decode_image(
    path: str | ImagePath, size: tuple[int, int] | None = None, at_least: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode a file (or a record) to [height, width, 3] uint8 RGB, upright (EXIF orientation applied).

    Args:
        size: (height, width) that the annotations were made for. If only the raw pixels have this size, the boxes
            were drawn on them, and the orientation is ignored.
        at_least: (height, width) that is needed, `size` being given. A JPEG of whole multiples is then decoded at a
            half, a quarter or an eighth of its size, as long as that is at least this: faster, and each pixel is the
            mean of those it stands for.

    Raises:
        BrokenImageError: missing, truncated, not an image, too large, or of another size than `size`.
    """
    data, header = _read(path)
    if at_least is not None and size is not None and data[:2] == b"\xff\xd8":
        factor = reduction(size, at_least)
        if factor > 1 and sorted(size) == sorted((header.height, header.width)):
            return _decode_to(path, data, (size[0] // factor, size[1] // factor), _REDUCED[factor])
    return _decode_to(path, data, size, 0)


def reduction(size: tuple[int, int], at_least: tuple[int, int]) -> int:
    """The largest of 8, 4, 2 and 1 that divides both sides and leaves them `at_least` so long."""
    fits = (f for f in (8, 4, 2) if not any(a % f or a // f < b for a, b in zip(size, at_least, strict=True)))
    return next(fits, 1)


def _decode_to(path: str | ImagePath, data: bytes, size: tuple[int, int] | None, more: int) -> np.ndarray:
    """Decode with more flags, upright or, if only that has this size, raw."""
    image = _decode(path, data, cv2.IMREAD_COLOR_RGB | more)
    if size is None or image.shape[:2] == tuple(size):
        return image
    if image.shape[:2] == (size[1], size[0]):
        raw = _decode(path, data, _RAW | more)
        if raw.shape[:2] == tuple(size):
            return raw
    raise BrokenImageError(
        f"{path} is {image.shape[1]}×{image.shape[0]} pixels, but its annotations are for {size[1]}×{size[0]}: "
        "correct 'width' and 'height' in the JSON, or give the image they were made on."
    )


def image_size(path: str | ImagePath) -> tuple[int, int]:
    """(height, width) of a file in pixels, upright. Raises as `decode_image` does.

    Of a JPEG without EXIF the header tells it; anything else is decoded, for only the decoder knows which way is up.
    """
    data, header = _read(path)
    if header.upright:
        return header.height, header.width
    height, width = _decode(path, data, cv2.IMREAD_COLOR_RGB).shape[:2]
    return height, width


class _Header(NamedTuple):
    """What the first bytes of a file tell."""

    height: int = 0  # pixels that the header promises; 0 if unknown
    width: int = 0
    upright: bool = False  # these are surely the sides of the upright picture
    whole: bool = True  # the picture's end is there


def _read(path: str | ImagePath) -> tuple[bytes, _Header]:
    try:
        data = read_bytes(as_path(path) if isinstance(path, str) else path)
    except OSError as error:
        raise BrokenImageError(
            f"{path} can't be read ({error.strerror or error}): restore the file or remove its entry."
        ) from None
    if not data:
        raise BrokenImageError(f"{path} is empty: restore the file or remove its entry.")
    # OpenCV decodes the first half of a torn file without a word, and leaves the rest grey.
    header = _jpeg_header(data) if data[:2] == b"\xff\xd8" else _png_header(data)
    pixels = header.height * header.width
    if pixels > MAX_PIXELS:
        raise BrokenImageError(
            f"{path} has {pixels / 1e6:.0f} million pixels, more than the {MAX_PIXELS // 1_000_000} million that are "
            "decoded: make it smaller or remove its entry."
        )
    if not header.whole:
        raise BrokenImageError(f"{path} is truncated: restore the file or remove its entry.")
    return data, header


def _jpeg_header(data: bytes) -> _Header:
    """Of a JPEG.

    The end is looked for behind the start of the first scan: a thumbnail in the header has an end of its own, and
    cameras append films and the like to the picture.
    """
    height, width, exif, position = 0, 0, False, 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:  # start of scan
            break
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        exif |= marker == 0xE1
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height = int.from_bytes(data[position + 5 : position + 7])
            width = int.from_bytes(data[position + 7 : position + 9])
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return _Header(height, width, not exif and height * width > 0, data.find(b"\xff\xd9", position) >= 0)


def _png_header(data: bytes) -> _Header:
    """Of a PNG; nothing is known of any other format, of which OpenCV judges."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return _Header()
    position = 8  # of a chunk: length, name, data, checksum
    while position + 12 <= len(data) and data[position + 4 : position + 8] != b"IEND":
        position += 12 + int.from_bytes(data[position : position + 4])
    height, width = int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    return _Header(height, width, whole=position + 12 <= len(data))


def _decode(path: object, data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        reason = "too many pixels" if "PIXELS" in str(error).upper() else "damaged"
        raise BrokenImageError(f"{path} can't be decoded ({reason}): replace the file or remove its entry.") from None
    if image is None:
        raise BrokenImageError(f"{path} is not an image that can be decoded: replace the file or remove its entry.")
    return image
