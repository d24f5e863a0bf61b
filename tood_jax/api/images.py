"""Images as users have them: files, globs, arrays and PIL images."""

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tood_jax.config.paths import expand_home
from tood_jax.data.errors import DataError
from tood_jax.data.image_io import decode_image
from tood_jax.untrusted.printable import printable

Image: TypeAlias = Any
"""The path of a file (str or Path), uint8 RGB values [height, width, 3], or a PIL image."""

_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "LAB", "HSV"}


def is_single(images: Any) -> bool:
    """Return whether this is one image: a path that is no glob, an array or a PIL image."""
    if isinstance(images, str):
        return not _is_glob(images)
    return isinstance(images, Path | np.ndarray) or _is_pil(images)


def list_images(images: Any) -> Iterable[Image]:
    """Return the images of a glob (sorted), a list, or another iterable.

    Raises:
        DataError: a glob matches no file, or this is no iterable.
    """
    if isinstance(images, str):
        files = [file for file in sorted(glob.glob(expand_home(images), recursive=True)) if Path(file).is_file()]
        if not files:
            raise DataError(f"{printable(images)} matches no file.")
        return files
    if not isinstance(images, Iterable):
        raise DataError(f"an image is a path, an array or a PIL image, not {type(images).__name__}.")
    return images


def to_pixels(image: Image, bit_depth: int) -> np.ndarray:
    """Return an image as uint8 RGB [height, width, 3].

    A file is turned upright by its EXIF orientation; a PIL image is taken as it is.

    Args:
        image: the image.
        bit_depth: of files with more than 8 bits per channel, as in `decode_image`.

    Raises:
        DataError: the file cannot be read, or the image has another type, shape or depth.
    """
    if isinstance(image, str | Path):
        return decode_image(expand_home(str(image)), bit_depth=bit_depth)
    if _is_pil(image):
        if image.mode not in _EIGHT_BIT_MODES:
            raise DataError(f"a PIL image of mode {image.mode} has no 8 bits per channel: convert it first.")
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise DataError(f"an image is a path, an array or a PIL image, not {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"an image must be uint8 RGB values [height, width, 3], not {image.dtype} {list(image.shape)}.")
    return image


def _is_glob(path: str) -> bool:
    return glob.has_magic(path) and not Path(expand_home(path)).exists()


def _is_pil(image: Any) -> bool:
    """Return whether this is a PIL image, without importing PIL, which may be absent."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(image).__mro__)
