"""Random crops, zoom-out, rotation, translation, scaling and shear as one affine map, drawn before decoding.

Coordinates are continuous pixels: pixel i covers [i, i + 1). Maps are [3, 3] float64 matrices of (x, y, 1). Sizes are
(height, width), boxes xyxy.
"""

from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np

from tood_jax.data.augmentation.presets import Augmentation
from tood_jax.data.transforms import resize, size_within

_CROP_TRIALS = 40
_MIN_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # one is drawn for each trial (SSD, section 2.2)
_MAX_CROP_ASPECT = 2.0  # longest crop, in the shape of the image
_MIN_SIDE = 1.0  # of a box that remains, pixels
_TURNED_ASPECT = 1.5  # images longer than this are turned by 180° only: by 90° they would become much smaller
_HALF = 0.5  # OpenCV's coordinates are those of pixel centres


class View(NamedTuple):
    """How an image is mapped to an output image."""

    matrix: np.ndarray  # from pixels of the image to pixels of the output
    size: tuple[int, int]  # of the output

    @property
    def magnification(self) -> float:
        """Largest factor by which a length grows."""
        return float(np.linalg.norm(self.matrix[:2, :2], 2))


def draw_view(
    size: tuple[int, int],
    boxes: np.ndarray,
    room: tuple[int, int],
    options: Augmentation,
    random: np.random.Generator,
    *,
    fill: bool = False,
) -> View:
    """Return a random view of an image.

    In this order: quarter turns, a random affine map around the centre, then a crop or a zoom-out, then resizing.

    Args:
        size: of the image.
        boxes: [n, 4] of its objects, pixels.
        room: size that the output may have at most.
        fill: the output has the size of `room` and shows a random part of the crop that has its aspect ratio, never
            zoomed out, as the parts of a mosaic are small already; otherwise it is the whole crop, as large as it fits.
    """
    if fill:
        options = replace(options, zoom_out=0.0)
    matrix, size = _quarter_turn(size, random) if options.quarter_turns else (np.eye(3), size)
    matrix = _draw_affine(size, options, random) @ matrix
    x, y, width, height = _draw_window(size, move_boxes(boxes, matrix), options, random)
    if fill:
        scale = max(room[0] / height, room[1] / width)
        x += random.uniform() * (width - room[1] / scale)
        y += random.uniform() * (height - room[0] / scale)
        return View(_scaling(scale, scale) @ _translation(-x, -y) @ matrix, room)
    output = size_within((height, width), room)
    return View(_scaling(output[1] / width, output[0] / height) @ _translation(-x, -y) @ matrix, output)


def warp(image: np.ndarray, view: View, size: tuple[int, int], background: tuple[int, int, int]) -> np.ndarray:
    """Return the output image of a view, with bilinear interpolation.

    Args:
        image: [h, w, 3] uint8 RGB; may be smaller than `size` after scaled decoding.
        size: of the image that the view was drawn for.
        background: RGB of pixels outside of the image.
    """
    decoded = _scaling(size[1] / image.shape[1], size[0] / image.shape[0])
    plain = _scaling(view.size[1] / size[1], view.size[0] / size[0])
    if np.allclose(view.matrix, plain, rtol=0, atol=1e-9):  # the same pixels as without augmentation
        return resize(image, view.size)
    matrix = _translation(-_HALF, -_HALF) @ view.matrix @ decoded @ _translation(_HALF, _HALF)
    height, width = view.size
    return cv2.warpAffine(
        image,
        matrix[:2],
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=background,
    )


def move_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return [n, 4] float64, the smallest upright boxes around the moved corners of boxes."""
    corners = boxes.astype(np.float64)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]  # [n, 4, 2]
    moved = corners @ matrix[:2, :2].T + matrix[:2, 2]
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def visible_boxes(boxes: np.ndarray, size: tuple[int, int], min_visible: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes clipped to an image, [n, 4] float32, and which of them remain, [n] bool.

    A box remains if at least `min_visible` (0–1] of its area is inside and that part has a width and a height of at
    least one pixel.
    """
    limits = np.asarray([size[1], size[0], size[1], size[0]], np.float64)
    clipped = np.clip(boxes, 0, limits)
    sides, visible = boxes[:, 2:] - boxes[:, :2], clipped[:, 2:] - clipped[:, :2]
    share = visible.prod(axis=1) / np.maximum(sides.prod(axis=1), 1e-12)
    remains = (share >= min_visible - 1e-6) & (visible >= _MIN_SIDE).all(axis=1)
    return clipped.astype(np.float32), remains


def _draw_affine(size: tuple[int, int], options: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Return a random rotation, shear, scaling and translation around the centre of an image."""
    height, width = size
    angle, shear_x, shear_y = (
        np.radians(random.uniform(-limit, limit))
        for limit in (options.rotation_degrees, options.shear_degrees, options.shear_degrees)
    )
    scale = np.exp(random.uniform(*np.log(options.scaling)))
    shift_x, shift_y = random.uniform(-options.translation, options.translation, 2) * (width, height)
    rotation = np.asarray([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shear = np.asarray([[1, np.tan(shear_x), 0], [np.tan(shear_y), 1, 0], [0, 0, 1]])
    center = (width / 2, height / 2)
    return (
        _translation(center[0] + shift_x, center[1] + shift_y)
        @ rotation @ shear @ _scaling(scale, scale)
        @ _translation(-center[0], -center[1])
    )  # fmt: skip


def _quarter_turn(size: tuple[int, int], random: np.random.Generator) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a random turn by 0°, 90°, 180° or 270°, and the size of the turned image."""
    height, width = size
    turns = int(random.integers(4))
    if max(size) > _TURNED_ASPECT * min(size):
        turns = 2 * (turns % 2)
    matrices = (
        np.eye(3),
        np.asarray([[0, -1, height], [1, 0, 0], [0, 0, 1]], np.float64),
        np.asarray([[-1, 0, width], [0, -1, height], [0, 0, 1]], np.float64),
        np.asarray([[0, 1, 0], [-1, 0, width], [0, 0, 1]], np.float64),
    )
    return matrices[turns], (width, height) if turns % 2 else size


def _draw_window(
    size: tuple[int, int], boxes: np.ndarray, options: Augmentation, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return (x, y, width, height) of the part of an image that is shown, which may be larger than the image."""
    height, width = size
    choice = random.uniform()
    if choice < options.crop:
        return _draw_crop(size, boxes, options, random)
    if choice < options.crop + options.zoom_out:
        factor = random.uniform(1, options.zoom_out_max)
        x, y = -random.uniform(0, factor - 1, 2) * (width, height)
        return x, y, factor * width, factor * height
    return 0.0, 0.0, float(width), float(height)


def _draw_crop(
    size: tuple[int, int], boxes: np.ndarray, options: Augmentation, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return a crop that has at least a drawn IoU with some object whose centre it contains (SSD, section 2.2).

    Of an image without objects, any crop; the whole image if no trial succeeds.
    """
    whole = np.asarray([size[1], size[0]], np.float64)  # (width, height)
    for _ in range(_CROP_TRIALS):
        shares, corner, choice = random.uniform(options.crop_min_side, 1, 2), random.uniform(size=2), random.uniform()
        if max(shares) > _MAX_CROP_ASPECT * min(shares):
            continue
        sides = shares * whole
        corner *= whole - sides
        iou = _best_iou(np.concatenate([corner, corner + sides]), boxes)
        if len(boxes) == 0 or (iou > 0 and iou >= _MIN_IOUS[int(choice * len(_MIN_IOUS))]):
            return float(corner[0]), float(corner[1]), float(sides[0]), float(sides[1])
    return 0.0, 0.0, float(whole[0]), float(whole[1])


def _best_iou(window: np.ndarray, boxes: np.ndarray) -> float:
    """Return the largest IoU of a window with the boxes whose centres are inside of it; 0 if there is none."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = boxes[((centers > window[:2]) & (centers < window[2:])).all(axis=1)]
    common = np.minimum(inside[:, 2:], window[2:]) - np.maximum(inside[:, :2], window[:2])
    common_area = common.clip(0).prod(axis=1)
    areas = (inside[:, 2:] - inside[:, :2]).prod(axis=1) + (window[2:] - window[:2]).prod()
    return float((common_area / np.maximum(areas - common_area, 1e-12)).max(initial=0))


def _translation(x: float, y: float) -> np.ndarray:
    return np.asarray([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _scaling(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])
