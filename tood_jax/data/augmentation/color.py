"""Random changes of brightness, contrast, saturation and hue."""

import cv2
import numpy as np

from tood_jax.data.augmentation.presets import Augmentation

_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)  # BT.601, of RGB


def jitter_color(image: np.ndarray, options: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Return the image with random colours; the four changes are drawn uniformly and independently.

    Args:
        image: [h, w, 3] uint8 RGB.
        options: its fields brightness, contrast and saturation (largest change as a share) and hue_degrees are used.
    """
    limits = (options.brightness, options.contrast, options.saturation, options.hue_degrees)
    brightness, contrast, saturation, hue = (float(random.uniform(-limit, limit)) for limit in limits)
    if not any(limits):
        return image
    return change_color(image, 1 + brightness, 1 + contrast, 1 + saturation, hue)


def change_color(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue_degrees: float
) -> np.ndarray:
    """Return the image after one linear map of its RGB values, rounded and limited to 0–255.

    Args:
        image: [h, w, 3] uint8 RGB.
        brightness: factor of all values.
        contrast: factor of the distance from the mean luma of the image.
        saturation: factor of the distance of a pixel from its own luma.
        hue_degrees: rotation of the chroma of YIQ.
    """
    matrix = brightness * contrast * (_hue_rotation(hue_degrees) @ _saturation(saturation))
    mean = float(cv2.mean(image)[:3] @ _LUMA)
    offset = brightness * (1 - contrast) * mean
    changed = cv2.transform(image, np.column_stack([matrix, np.full(3, offset)]).astype(np.float32))
    return changed


def _saturation(factor: float) -> np.ndarray:
    return factor * np.eye(3) + (1 - factor) * np.tile(_LUMA, (3, 1))


def _hue_rotation(degrees: float) -> np.ndarray:
    """Return the 3 × 3 matrix that rotates the plane of I and Q (NTSC) and keeps luma."""
    to_yiq = np.asarray([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]], np.float64)
    angle = np.radians(degrees)
    rotation = np.asarray(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]], np.float64
    )
    return np.linalg.inv(to_yiq) @ rotation @ to_yiq
