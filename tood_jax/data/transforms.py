"""Sizes, resizing and flipping of uint8 images and their boxes; numpy and OpenCV only, as the data workers run it.

Images are [height, width, 3] uint8 RGB, boxes [n, 4] float32 xyxy in pixels of their image, sizes (height, width).
`preprocess.py` combines these functions.
"""

import cv2
import numpy as np


def resized_size(height: int, width: int, short_side: int, max_long_side: int) -> tuple[int, int]:
    """Return the size at which the short side is `short_side`, or the long side `max_long_side` if that is smaller."""
    scale = min(max_long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def fitted_size(size: tuple[int, int], canvas: tuple[int, int], *, enlarge: bool = False) -> tuple[int, int]:
    """Return `size`, shrunk to fit the canvas if it is larger; the aspect ratio is kept, sides are rounded down.

    Args:
        enlarge: also enlarge a smaller size until it fills the height or the width of the canvas.
    """
    factor = min(canvas[0] / size[0], canvas[1] / size[1])
    if factor == 1.0 or (factor > 1.0 and not enlarge):
        return size
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


def size_within(size: tuple[float, float], room: tuple[int, int]) -> tuple[int, int]:
    """Return the size of an image that fills the height or the width of `room`; the aspect ratio is kept, rounded."""
    factor = min(room[0] / size[0], room[1] / size[1])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to (height, width) with bilinear interpolation; an image of that size is returned as it is."""
    return image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def scale_boxes(boxes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Multiply boxes by `scale` = (y, x)."""
    return boxes * np.asarray([scale[1], scale[0], scale[1], scale[0]], np.float32)


def flip_horizontal(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exchange left and right: x becomes width − x."""
    width = image.shape[1]
    flipped = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return cv2.flip(image, 1), flipped.astype(np.float32)


def flip_vertical(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exchange top and bottom: y becomes height − y."""
    height = image.shape[0]
    flipped = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
    return cv2.flip(image, 0), flipped.astype(np.float32)
