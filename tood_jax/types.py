"""The named tuples that travel between the floors, and the legend of axes and names used everywhere.

Axes:   B images in the batch · H, W canvas height and width in pixels · M padded objects an image
        N cells (times the anchors a cell) of all pyramid levels of one image, P3 first, row by row
        C classes · K padded detections
Names:  gt_…   ground truth · pred_… what the network says
Units:  boxes are (x0, y0, x1, y1) in canvas pixels unless a name says `strides` (pixels divided by the level's stride)
        or `original` (pixels of the image file) · scores are 0–1 · logits are unbounded
This module is imported by data workers, so it never imports JAX: arrays are numpy on the host, jax.Array on the device.
"""

from typing import Any, NamedTuple

Array = Any  # numpy.ndarray on the host, jax.Array on the device


class Batch(NamedTuple):
    """Images of one bucket and their padded objects."""

    images: Array  # [B, H, W, 3] uint8 RGB; zero outside the image's own area
    sizes: Array  # [B, 2] int32, (height, width) of the image's own area in the canvas, pixels
    scales: Array  # [B, 2] float32, (y, x): canvas pixels per pixel of the original image
    gt_boxes: Array  # [B, M, 4] float32 xyxy, canvas pixels; zeros where padded
    gt_labels: Array  # [B, M] int32, 0…C-1; 0 where padded
    gt_mask: Array  # [B, M] bool, True for a real object
    image_indices: Array  # [B] int32, position of the image in its data set; -1 for a row that only fills the batch


class Predictions(NamedTuple):
    """What the head says of every cell, all levels in one row of cells."""

    scores: Array  # [B, N, C] float32, 0–1: class scores, aligned √(P·M) where the head aligns
    boxes: Array  # [B, N, 4] float32 xyxy in strides
    raw: Array = None  # [B, N, R] float32, the numbers that the boxes were decoded from, times the level's scale
    quality: Array | None = None  # [B, N] float32 logits of centerness or IoU, where the head has such a branch


class Assignment(NamedTuple):
    """Which object each cell learns, for one image (or a batch, with B in front)."""

    gt_index: Array  # [N] int32, position of the object in gt_boxes; -1 = background, -2 = counts for nothing
    metric: Array  # [N] float32, alignment metric t = s^α·u^β with that object (ATSS: 1); 0 on background
    iou: Array  # [N] float32, 0–1, IoU with that object (predicted box, or anchor for ATSS); 0 on background
    soft_label: Array  # [N] float32, 0–1, t̂: t scaled so that each object's largest equals its largest IoU (ATSS: 1)


class Detections(NamedTuple):
    """The best K detections an image, best first; rows past the last real one have score 0 and label -1."""

    boxes: Array  # [B, K, 4] float32 xyxy, pixels of the original image
    scores: Array  # [B, K] float32, 0–1
    labels: Array  # [B, K] int32, 0…C-1, or -1
