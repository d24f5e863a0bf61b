"""Decode image files to RGB arrays: JPEG (also grey or CMYK), PNG (palette, alpha, 16 bit), WebP, BMP, …"""

import errno
import functools

import cv2
import numpy as np

from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.image_headers import Header, read_header
from tood_jax.data.jpeg_damage import ends_early
from tood_jax.data.paths import ImagePath, as_path, read_bytes
from tood_jax.untrusted.file_kinds import unexpected_kind
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import NotRegularError

MAX_PIXELS = 200_000_000  # images with more are refused undecoded: a file of a few kB could fill the memory
MAX_BYTES = 2 << 30  # of an encoded image
DEEP = "images of more than 8 bits per channel, of which data.bit_depth selects 8"
DAMAGED = "JPEG files with damaged data inside, parts of which are grey or garbled"
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_JPEG = b"\xff\xd8"
_RAW = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# These flags give colour together with IMREAD_COLOR_RGB; OpenCV's IMREAD_REDUCED_COLOR_* give BGR and do not combine.
_REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}


def decode_image(
    path: str | ImagePath,
    size: tuple[int, int] | None = None,
    at_least: tuple[int, int] | None = None,
    bit_depth: int = 16,
    noticed: list[str] | None = None,
) -> np.ndarray:
    """Decode a file (or a record) to [height, width, 3] uint8 RGB, upright (EXIF orientation applied).

    Args:
        size: (height, width) of the image that was annotated. If only the image without its EXIF orientation has this
            size, the boxes were drawn on that image, and the orientation is ignored.
        at_least: (height, width) that is needed; it has an effect only with `size`. A JPEG is then decoded at a half, a
            quarter or an eighth of its size if that divides both sides and is not smaller than this: it is faster, and
            each pixel is the mean of the pixels that it replaces.
        bit_depth: 9–16, the significant bits of images with more than 8 per channel; the highest 8 of these are kept.
        noticed: DEEP and DAMAGED are appended if they apply to the image.

    Raises:
        BrokenImageError: missing, truncated, not an image, too large, or of another size than `size`.
        DataError: the machine or the object store fails, whatever the image is like.
    """
    data, header = _read(path)
    noticed = [] if noticed is None else noticed
    if header.bits > 8:
        noticed.append(DEEP)
        return _decode_to(path, data, size, 0, bit_depth if header.bits == 16 else 16)
    if data[:2] != _JPEG:
        return _decode_to(path, data, size, 0)
    factor = 1
    if at_least is not None and size is not None and sorted(size) == sorted((header.height, header.width)):
        factor = reduction(size, at_least)
    size = (size[0] // factor, size[1] // factor) if size else None
    image = _decode_to(path, data, size, _REDUCED.get(factor, 0))
    if header.is_damaged or ends_early(image, header.is_upright):
        noticed.append(DAMAGED)
    return image


def reduction(size: tuple[int, int], at_least: tuple[int, int]) -> int:
    """Return the largest of 8, 4, 2 and 1 that divides both sides and leaves them not smaller than `at_least`."""
    fits = (f for f in (8, 4, 2) if not any(a % f or a // f < b for a, b in zip(size, at_least, strict=True)))
    return next(fits, 1)


def _decode_to(
    path: str | ImagePath, data: bytes, size: tuple[int, int] | None, flags: int, bit_depth: int = 16
) -> np.ndarray:
    """Decode with additional flags to `size`, upright or, if only that has this size, without the EXIF orientation."""
    image = _decode(path, data, cv2.IMREAD_COLOR_RGB | flags, bit_depth)
    if size is None or image.shape[:2] == tuple(size):
        return image
    if image.shape[:2] == (size[1], size[0]):
        raw = _decode(path, data, _RAW | flags, bit_depth)
        if raw.shape[:2] == tuple(size):
            return raw
    raise BrokenImageError(
        f"{_name(path)} is {image.shape[1]}×{image.shape[0]} pixels, but its annotations are for {size[1]}×{size[0]}: "
        "correct 'width' and 'height' in the JSON, or provide the image that was annotated."
    )


def image_size(path: str | ImagePath) -> tuple[int, int]:
    """Return the (height, width) of the upright image in pixels. Raises as `decode_image` does.

    The header of a JPEG without EXIF is sufficient; other files are decoded, because only the decoder knows their
    orientation.
    """
    data, header = _read(path)
    if header.is_upright:
        return header.height, header.width
    height, width = _decode(path, data, cv2.IMREAD_COLOR_RGB).shape[:2]
    return height, width


def _read(path: str | ImagePath) -> tuple[bytes, Header]:
    try:
        data = read_bytes(as_path(path) if isinstance(path, str) else path, MAX_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from None
    if not data:
        raise BrokenImageError(f"{_name(path)} is empty: restore the file or remove its entry.")
    if kind := unexpected_kind(data):
        raise BrokenImageError(f"{_name(path)} is {kind}, not an image: restore the file or remove its entry.")
    header = read_header(data)
    pixels = header.height * header.width
    if pixels > MAX_PIXELS:
        raise BrokenImageError(
            f"{_name(path)} has {pixels / 1e6:.0f} million pixels, more than the {MAX_PIXELS // 1_000_000} million "
            "that are allowed: reduce its size or remove its entry."
        )
    if not header.is_complete:
        raise BrokenImageError(f"{_name(path)} is truncated: restore the file or remove its entry.")
    return data, header


def _unreadable(path: str | ImagePath, error: OSError) -> DataError:
    """Return a BrokenImageError, which may be skipped, only if the file is the cause and not the machine or store."""
    name, reason = _name(path), printable(error.strerror or error)
    if isinstance(error, NotRegularError) or error.errno in _MISSING or (error.errno is None and "://" not in name):
        return BrokenImageError(f"{name} can't be read ({reason}): restore the file or remove its entry.")
    if isinstance(error, FileNotFoundError):  # of an object store, which sets no error number
        return BrokenImageError(f"{name} can't be read ({reason}): restore the file or remove its entry.")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return DataError(
            f"{name} can't be opened ({reason}), which is not a fault of the image: raise the limit of open files "
            "(ulimit -n 65536), or write fewer, larger shards (to_array_record --shards)."
        )
    return DataError(
        f"{name} can't be read ({reason}), which is not a fault of the image: check the disk, network share or "
        "permissions, then start the same command again."
    )


def _name(path: object) -> str:
    return printable(path, 1000)


@functools.cache
def _configure_opencv() -> None:
    """Configure OpenCV for this process (program or worker) when it decodes its first image."""
    cv2.setNumThreads(0)  # images are decoded in parallel, so that threads for a single image only slow this down
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # this module reports what is wrong with a file


def _decode(path: object, data: bytes, flags: int, bit_depth: int = 16) -> np.ndarray:
    """Decode to RGB; of less than 16 significant bits the highest 8 are kept, and larger values become 255."""
    _configure_opencv()
    if bit_depth < 16:  # OpenCV garbles TIFF with IMREAD_ANYDEPTH and IMREAD_COLOR_RGB together
        flags = flags & ~cv2.IMREAD_COLOR_RGB | cv2.IMREAD_COLOR_BGR | cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        reason = "too many pixels" if "PIXELS" in str(error).upper() else "damaged"
        raise BrokenImageError(
            f"{_name(path)} can't be decoded ({reason}): replace the file or remove its entry."
        ) from None
    if image is None:
        raise BrokenImageError(
            f"{_name(path)} is not an image that can be decoded: replace the file or remove its entry."
        )
    if bit_depth < 16:
        deep = image[..., ::-1].astype(np.uint16)
        return np.ascontiguousarray(np.minimum(deep >> (bit_depth - 8), 255).astype(np.uint8))
    return image
