"""Draw what training sees: images of a batch, their objects, and the positives of each object.

Axes: B images · N locations, times the anchors per location · M padded objects. Boxes are xyxy in canvas pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from tood_jax.geometry.locations import Pyramid
from tood_jax.types import Assignment, Batch
from tood_jax.visualization.draw import class_color, contact_sheet, draw_caption, draw_dashed_box, resize_for_drawing

_WITHOUT_POSITIVE = (255, 0, 0)


class ObjectTargets(NamedTuple):
    """What one object teaches."""

    row: int  # of the batch
    position: int  # of the object in its image
    label: int
    box: np.ndarray  # [4]
    positives: tuple[int, ...]  # per level, P3 first
    largest_target: float  # t̂, 0–1; 0 without positives
    mean_iou: float  # of its positives, 0–1; 0 without

    def describe_levels(self) -> str:
        """Return the positives by level, "P3:4 P4:2", or "no positive"."""
        return " ".join(f"P{i + 3}:{count}" for i, count in enumerate(self.positives) if count) or "no positive"


def list_targets(batch: Batch, assignment: Assignment, pyramid: Pyramid) -> list[ObjectTargets]:
    """Return the targets of each object of a batch, image by image.

    Args:
        assignment: of the batch, on the host.
        pyramid: locations of the batch's canvas.
    """
    found = []
    for row, m in np.argwhere(batch.gt_mask).tolist():
        own = assignment.gt_index[row] == m
        found.append(
            ObjectTargets(
                row,
                m,
                int(batch.gt_labels[row, m]),
                batch.gt_boxes[row, m],
                tuple(int(own[level].sum()) for level in pyramid.level_slices),
                float(assignment.soft_label[row][own].max(initial=0)),
                float(assignment.iou[row][own].mean()) if own.any() else 0.0,
            )
        )
    return found


def draw_targets(
    batch: Batch, assignment: Assignment, pyramid: Pyramid, class_names: Sequence[str], columns: int = 2
) -> np.ndarray:
    """Return the images of a batch side by side, uint8 RGB, with the objects and their positives.

    Each object has a colour. A positive is a dot at its location, larger on higher levels, and brighter for a larger
    t̂; the caption has the class, the positives by level and the largest t̂. Objects without a positive are dashed and
    red. Rows that only fill the batch are left out.
    """
    targets = list_targets(batch, assignment, pyramid)
    levels = np.concatenate([np.full(part.stop - part.start, i) for i, part in enumerate(pyramid.level_slices)])
    drawings = []
    for row in np.flatnonzero(np.asarray(batch.image_indices) >= 0).tolist():
        height, width = batch.sizes[row].tolist()
        original = batch.images[row, :height, :width]
        own = [target for target in targets if target.row == row]
        image, boxes = resize_for_drawing(original, np.reshape([target.box for target in own], (-1, 4)))
        canvas = np.ascontiguousarray(image).copy()
        scale = canvas.shape[1] / width
        for target, box in zip(own, boxes, strict=True):
            _draw_box(canvas, box, target)
        for target in own:
            for n in np.flatnonzero(assignment.gt_index[row] == target.position).tolist():
                _draw_positive(
                    canvas, pyramid.points[n] * scale, int(levels[n]), float(assignment.soft_label[row, n]), target
                )
        for target, box in zip(own, boxes, strict=True):
            text = f"{class_names[target.label]} {target.describe_levels()}"
            text += f" max {target.largest_target:.2f}" if any(target.positives) else ""
            corner = int(np.clip(box[0], 0, canvas.shape[1] - 1)), int(np.clip(box[1], 0, canvas.shape[0] - 1))
            draw_caption(canvas, corner, text, _color(target))
        drawings.append(canvas)
    return contact_sheet(drawings, columns)


def _color(target: ObjectTargets) -> tuple[int, int, int]:
    return class_color(target.position) if any(target.positives) else _WITHOUT_POSITIVE


def _thickness(canvas: np.ndarray) -> int:
    return max(1, round(min(canvas.shape[:2]) / 300))


def _draw_box(canvas: np.ndarray, box: np.ndarray, target: ObjectTargets) -> None:
    x0, y0, x1, y1 = np.round(box).astype(int).tolist()
    thickness = _thickness(canvas)
    if any(target.positives):
        cv2.rectangle(canvas, (x0, y0), (x1, y1), _color(target), thickness)
    else:
        draw_dashed_box(canvas, (x0, y0, x1, y1), _WITHOUT_POSITIVE, 2 * thickness)


def _draw_positive(canvas: np.ndarray, point: np.ndarray, level: int, soft_label: float, target: ObjectTargets) -> None:
    """Draw a dot whose colour goes from dark to the object's with t̂."""
    x, y = np.round(point).astype(int).tolist()
    radius = round((2.5 + 1.2 * level) * max(1.0, min(canvas.shape[:2]) / 300))
    color = tuple(round(channel * (0.15 + 0.85 * min(1.0, soft_label))) for channel in _color(target))
    cv2.circle(canvas, (x, y), radius, color, cv2.FILLED, cv2.LINE_AA)
    cv2.circle(canvas, (x, y), radius, (255, 255, 255), 1, cv2.LINE_AA)
