"""Boxes drawn on images, and images put side by side.

Images are uint8 RGB [h, w, 3], never changed in place. Boxes are [K, 4] xyxy in pixels of the image drawn on; what lies
outside is clipped away. Line and letter sizes follow the image, so that a picture reads the same at any size.
"""

import colorsys
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

BACKGROUND = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LETTER_HEIGHT = 21.0  # of _FONT's capitals at scale 1, pixels


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    threshold: float = 0.3,
) -> np.ndarray:
    """A copy of the image with every box of score ≥ threshold, the best on top, named `class score`.

    Args:
        scores: [K], 0–1.
        labels: [K], 0…C-1; rows with label -1 are padding.
    """
    boxes, scores, labels = np.asarray(boxes, float).reshape(-1, 4), np.asarray(scores, float), np.asarray(labels)
    keep = [i for i in np.argsort(scores, kind="stable") if labels[i] >= 0 and scores[i] >= threshold]
    captions = [f"{class_names[labels[i]]} {scores[i]:.2f}" for i in keep]
    return _draw(image, boxes[keep], labels[keep], captions)


def draw_ground_truth(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    """A copy of the image with every annotated box and the name of its class; rows with label -1 are padding."""
    boxes, labels = np.asarray(boxes, float).reshape(-1, 4), np.asarray(labels)
    keep = np.flatnonzero(labels >= 0)
    return _draw(image, boxes[keep], labels[keep], [class_names[label] for label in labels[keep]])


def class_color(label: int) -> tuple[int, int, int]:
    """RGB of a class: always the same, and far from those of its neighbours."""
    hue = (0.58 + label * 0.618034) % 1.0  # steps of the golden ratio never come close to each other
    lightness = (0.50, 0.38, 0.62)[label // 12 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarge(image: np.ndarray, boxes: np.ndarray, short_side: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """A small image and its boxes brought up to `short_side` pixels by a whole factor, so that captions fit."""
    factor = -(-short_side // max(1, min(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1), np.asarray(boxes) * factor


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two images in one row, with a narrow white gap; the lower one is filled up with white."""
    return contact_sheet([left, right], columns=2)


def contact_sheet(images: Sequence[np.ndarray], columns: int = 4) -> np.ndarray:
    """Images in rows of `columns`, from the upper left, with narrow white gaps; each column as wide as its widest.

    Raises ValueError if there are no images or `columns` is below 1.
    """
    if not images or columns < 1:
        raise ValueError(f"A contact sheet needs images and columns; there are {len(images)} and {columns}.")
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    widths = [max(image.shape[1] for image in images[column::columns]) for column in range(min(columns, len(images)))]
    gap = max(2, round(0.01 * max(*heights, *widths)))
    sheet = np.empty((sum(heights) + gap * (len(heights) - 1), sum(widths) + gap * (len(widths) - 1), 3), np.uint8)
    sheet[:] = BACKGROUND
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for image, width in zip(row, widths, strict=False):
            sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
            x += width + gap
        y += height + gap
    return sheet


def save_image(path: str | os.PathLike[str], rgb: np.ndarray) -> None:
    """Write an image; the suffix of the path (.png, .jpg, …) says how, and the folder is made.

    Raises ValueError for a suffix OpenCV doesn't know.
    """
    path = Path(path)
    if not cv2.haveImageWriter(f"image{path.suffix}"):
        raise ValueError(
            f"{path}: images are written as .png, .jpg or .webp, not {path.suffix or 'without a suffix'!r}."
        )
    _, data = cv2.imencode(path.suffix, np.ascontiguousarray(rgb[..., ::-1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def _draw(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """All boxes first, then all captions, so that no line crosses a word."""
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    thickness = max(1, round(min(height, width) / 300))
    shown = []
    for box, label, caption in zip(boxes, labels, captions, strict=True):
        outside = box[2] < 0 or box[3] < 0 or box[0] > width - 1 or box[1] > height - 1
        if np.isnan(box).any() or outside or (box[2:] < box[:2]).any():
            continue
        clipped = np.clip(box, 0, [width - 1, height - 1, width - 1, height - 1])
        x0, y0, x1, y1 = np.round(clipped).astype(int).tolist()
        color = class_color(int(label))
        cv2.rectangle(canvas, (x0, y0), (x1, y1), color, thickness)
        shown.append(((x0, y0), caption, color))
    for corner, caption, color in shown:
        _caption(canvas, corner, caption, color)
    return canvas


def _caption(canvas: np.ndarray, corner: tuple[int, int], text: str, color: tuple[int, int, int]) -> None:
    """Write text on a plate of the class's colour above a corner; below it, or moved left, where there is no room."""
    height, width = canvas.shape[:2]
    letters = max(9.0, min(height, width) / 40)  # pixels; below nine nothing is legible
    scale = letters / _LETTER_HEIGHT
    stroke = max(1, round(letters / 10))
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, stroke)
    pad = max(2, round(letters / 5))
    plate = (text_width + 2 * pad, text_height + baseline + pad)
    x = max(0, min(corner[0], width - plate[0]))
    y = corner[1] - plate[1] if corner[1] >= plate[1] else min(corner[1], max(0, height - plate[1]))
    cv2.rectangle(canvas, (x, y), (x + plate[0], y + plate[1]), color, cv2.FILLED)
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(canvas, text, (x + pad, y + text_height + pad // 2 + 1), _FONT, scale, ink, stroke, cv2.LINE_AA)
