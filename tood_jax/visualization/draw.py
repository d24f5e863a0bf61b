"""Draw boxes on images, and combine images.

Images are uint8 RGB [h, w, 3] and not modified. Boxes are [K, 4] xyxy in pixels of the image and are clipped to it. The
sizes of lines and letters are proportional to the image.
"""

import colorsys
import math
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

LONG_SIDE = 16_000  # largest long side of a drawing, pixels; WebP allows 16,383
PIXELS = 40_000_000  # largest number of pixels of a drawing
ENLARGED_LONG_SIDE = 4_000  # largest long side of an enlarged small image, pixels
BACKGROUND = (255, 255, 255)
GREEN, RED, BLUE = (0, 140, 60), (215, 30, 30), (30, 90, 235)
Captioned = tuple[Sequence[float], str]  # a box xyxy in pixels of the image, and its caption
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LETTER_HEIGHT = 21.0  # height of the capitals of _FONT at scale 1, pixels


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    threshold: float | np.ndarray = 0.3,
) -> np.ndarray:
    """Return a copy of the image with the boxes of score ≥ threshold, the best on top, with captions `class score`.

    Args:
        image: the image.
        boxes: [K, 4].
        scores: [K], 0–1.
        labels: [K], 0…C-1; rows with label -1 are padding.
        class_names: [C].
        threshold: smallest score that is drawn, for all classes or [C].
    """
    limits = np.broadcast_to(threshold, len(class_names))
    boxes, scores, labels = np.asarray(boxes, float).reshape(-1, 4), np.asarray(scores, float), np.asarray(labels)
    keep = [i for i in np.argsort(scores, kind="stable") if labels[i] >= 0 and scores[i] >= limits[labels[i]]]
    captions = [f"{class_names[labels[i]]} {scores[i]:.2f}" for i in keep]
    return _draw(image, boxes[keep], _class_colors(labels[keep]), captions)


def draw_ground_truth(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    """Return a copy of the image with the annotated boxes and their classes; rows with label -1 are padding."""
    boxes, labels = np.asarray(boxes, float).reshape(-1, 4), np.asarray(labels)
    keep = np.flatnonzero(labels >= 0)
    return _draw(image, boxes[keep], _class_colors(labels[keep]), [class_names[label] for label in labels[keep]])


def draw_errors(
    image: np.ndarray, right: Sequence[Captioned], wrong: Sequence[Captioned], missed: Sequence[Captioned]
) -> np.ndarray:
    """Return a copy of the image with right detections in green, wrong ones in red and missed objects dashed in blue.

    Args:
        image: the image.
        right: (box xyxy, caption) of each, as `wrong` and `missed`; the last of a list is on top.
    """
    groups = [(missed, BLUE, True), (right, GREEN, False), (wrong, RED, False)]
    rows = [(box, color, caption, dashed) for group, color, dashed in groups for box, caption in group]
    boxes = np.asarray([row[0] for row in rows], float).reshape(-1, 4)
    return _draw(image, boxes, [row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows])


def class_color(label: int) -> tuple[int, int, int]:
    """Return the RGB color of a class, which differs clearly from those of the labels before and after it."""
    hue = (0.58 + label * 0.618034) % 1.0  # steps of the golden ratio are never close to each other
    lightness = (0.50, 0.38, 0.62)[label // 12 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def resize_for_drawing(image: np.ndarray, boxes: np.ndarray, short_side: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its boxes in a size for drawing: captions fit, and every file format allows it.

    A small image is enlarged by an integer factor to a short side of `short_side` pixels, if its long side does not
    exceed ENLARGED_LONG_SIDE; an image that exceeds LONG_SIDE or PIXELS is reduced.
    """
    height, width = image.shape[:2]
    enlargement = -(-short_side // max(1, min(height, width)))
    factor = max(1, min(enlargement, ENLARGED_LONG_SIDE // max(1, height, width)))
    if factor > 1:
        return image.repeat(factor, axis=0).repeat(factor, axis=1), np.asarray(boxes) * factor
    reduced = _reduce(image, _reduction(height, width))
    scale = np.asarray([reduced.shape[1] / max(1, width), reduced.shape[0] / max(1, height)] * 2)
    return reduced, np.asarray(boxes) * scale


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return two images in one row with a narrow white gap; the smaller one is padded with white."""
    return contact_sheet([left, right], columns=2)


def contact_sheet(images: Sequence[np.ndarray], columns: int = 4) -> np.ndarray:
    """Return images in rows of `columns`, with narrow white gaps; each column is as wide as its widest image.

    A sheet that would exceed LONG_SIDE or PIXELS has reduced images.

    Raises:
        ValueError: there are no images, or `columns` is below 1.
    """
    if not images or columns < 1:
        raise ValueError(f"A contact sheet needs images and columns; there are {len(images)} and {columns}.")
    factor = _reduction(*_sheet_size(*_grid(images, columns)))
    images = [_reduce(image, factor) for image in images]
    heights, widths, gap = _grid(images, columns)
    height, width = _sheet_size(heights, widths, gap)
    sheet = np.empty((height, width, 3), np.uint8)
    sheet[:] = BACKGROUND
    tops = np.cumsum([0, *heights]) + gap * np.arange(len(heights) + 1)
    lefts = np.cumsum([0, *widths]) + gap * np.arange(len(widths) + 1)
    for position, image in enumerate(images):
        y, x = tops[position // columns], lefts[position % columns]
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def save_image(path: str | os.PathLike[str], rgb: np.ndarray) -> None:
    """Write an image in the format of the suffix (.png, .jpg, …), and create the folder.

    Raises:
        ValueError: as `encode_image`.
    """
    path = Path(path)
    data = encode_image(path.name, rgb)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def encode_image(name: str, rgb: np.ndarray) -> bytes:
    """Return the content of an image file in the format of the suffix (.png, .jpg, …).

    Raises:
        ValueError: OpenCV does not know the suffix, or the format does not allow this size.
    """
    suffix = Path(name).suffix
    if not cv2.haveImageWriter(f"image{suffix}"):
        raise ValueError(f"{name}: images are written as .png, .jpg or .webp, not {suffix or 'without a suffix'!r}.")
    try:
        is_encoded, data = cv2.imencode(suffix, np.ascontiguousarray(rgb[..., ::-1]))
    except cv2.error:
        is_encoded = False
    if not is_encoded:
        raise ValueError(f"{name}: {rgb.shape[1]}×{rgb.shape[0]} pixels can't be written as {suffix}.")
    return data.tobytes()


def _grid(images: Sequence[np.ndarray], columns: int) -> tuple[list[int], list[int], int]:
    """Return the heights of the rows, the widths of the columns, and the gap between them."""
    heights = [max(image.shape[0] for image in images[i : i + columns]) for i in range(0, len(images), columns)]
    widths = [max(image.shape[1] for image in images[column::columns]) for column in range(min(columns, len(images)))]
    return heights, widths, max(2, round(0.01 * max(*heights, *widths)))


def _sheet_size(heights: Sequence[int], widths: Sequence[int], gap: int) -> tuple[int, int]:
    return sum(heights) + gap * (len(heights) - 1), sum(widths) + gap * (len(widths) - 1)


def _reduction(height: int, width: int) -> float:
    """Return the factor, at most 1, that reduces a size to LONG_SIDE and PIXELS."""
    return min(1.0, LONG_SIDE / max(1, height, width), math.sqrt(PIXELS / max(1, height * width)))


def _reduce(image: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1:
        return image
    height, width = (max(1, int(side * factor)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _class_colors(labels: np.ndarray) -> list[tuple[int, int, int]]:
    return [class_color(int(label)) for label in labels]


def _draw(
    image: np.ndarray,
    boxes: np.ndarray,
    colors: Sequence[tuple[int, int, int]],
    captions: Sequence[str],
    dashed: Sequence[bool] = (),
) -> np.ndarray:
    """Draw all boxes, then all captions, so that no line crosses a caption."""
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    thickness = max(1, round(min(height, width) / 300))
    shown = []
    for position, (box, color, caption) in enumerate(zip(boxes, colors, captions, strict=True)):
        outside = box[2] < 0 or box[3] < 0 or box[0] > width - 1 or box[1] > height - 1
        if np.isnan(box).any() or outside or (box[2:] < box[:2]).any():
            continue
        clipped = np.clip(box, 0, [width - 1, height - 1, width - 1, height - 1])
        x0, y0, x1, y1 = np.round(clipped).astype(int).tolist()
        if dashed and dashed[position]:
            draw_dashed_box(canvas, (x0, y0, x1, y1), color, thickness)
        else:
            cv2.rectangle(canvas, (x0, y0), (x1, y1), color, thickness)
        shown.append(((x0, y0), caption, color))
    for corner, caption, color in shown:
        draw_caption(canvas, corner, caption, color)
    return canvas


def draw_dashed_box(
    canvas: np.ndarray, box: tuple[int, int, int, int], color: tuple[int, int, int], thickness: int
) -> None:
    """Draw a box into an image, its sides as dashes and gaps of equal length."""
    x0, y0, x1, y1 = box
    dash = 4 * thickness + 2
    for x in range(x0, x1 + 1, 2 * dash):
        for y in (y0, y1):
            cv2.line(canvas, (x, y), (min(x + dash, x1), y), color, thickness)
    for y in range(y0, y1 + 1, 2 * dash):
        for x in (x0, x1):
            cv2.line(canvas, (x, y), (x, min(y + dash, y1)), color, thickness)


def draw_caption(canvas: np.ndarray, corner: tuple[int, int], text: str, color: tuple[int, int, int]) -> None:
    """Write text on a background in the class's color above a corner, or below or moved left if there is no space."""
    height, width = canvas.shape[:2]
    letters = max(9.0, min(height, width) / 40)  # pixels; smaller letters are not legible
    scale = letters / _LETTER_HEIGHT
    stroke = max(1, round(letters / 10))
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, stroke)
    pad = max(2, round(letters / 5))
    background = (text_width + 2 * pad, text_height + baseline + pad)
    x = max(0, min(corner[0], width - background[0]))
    y = corner[1] - background[1] if corner[1] >= background[1] else min(corner[1], max(0, height - background[1]))
    cv2.rectangle(canvas, (x, y), (x + background[0], y + background[1]), color, cv2.FILLED)
    is_bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    text_color = (0, 0, 0) if is_bright else (255, 255, 255)
    cv2.putText(canvas, text, (x + pad, y + text_height + pad // 2 + 1), _FONT, scale, text_color, stroke, cv2.LINE_AA)
