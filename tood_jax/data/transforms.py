"""Resizing, flipping and padding of uint8 images and their boxes; plain numpy and OpenCV, in the workers.

Images are [height, width, 3] uint8 RGB, boxes [n, 4] float32 xyxy in pixels of their image.
"""

import cv2
import numpy as np


def resized_size(height: int, width: int, short_side: int, max_long_side: int) -> tuple[int, int]:
    """(height, width) after bringing the short side to `short_side`, unless the long one then exceeded its limit."""
    scale = min(max_long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def fitted_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """`size` itself if it fits the canvas, or shrunk to fit it, keeping the ratio."""
    factor = min(1.0, canvas[0] / size[0], canvas[1] / size[1])
    return size if factor == 1.0 else (max(1, int(size[0] * factor)), max(1, int(size[1] * factor)))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, to (height, width)."""
    return image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def scale_boxes(boxes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Boxes times `scale` = (y, x)."""
    return boxes * np.asarray([scale[1], scale[0], scale[1], scale[0]], np.float32)


def flip_horizontal(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror left and right: x becomes width − x."""
    width = image.shape[1]
    flipped = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return cv2.flip(image, 1), flipped.astype(np.float32)


def flip_vertical(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror top and bottom: y becomes height − y."""
    height = image.shape[0]
    flipped = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
    return cv2.flip(image, 0), flipped.astype(np.float32)
