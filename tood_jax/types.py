"""The named tuples that packages exchange, and the glossary of axes, names and units.

Axes:   B images of the batch · H, W height and width, of the canvas in pixels or of a map in locations
        M padded objects per image · C classes · K padded detections
        N locations (times the anchors per location) of all pyramid levels, P3 first, row by row
Names:  canvas      the padded image of fixed size that the network reads
        location    one element of a feature map
        anchor      a box at a location
        stride      pixels between two locations of a level
        level       one map of the pyramid, P3 to P7
        candidate   a location that an object may learn
        positive    a location that an object learns
        target      what is learnt at a location
        gt_…        ground truth
        pred…       predictions of the network
        …_logits    unbounded numbers before sigmoid or decoding
        TAL phase   training steps in which task alignment learning assigns
        warm-up     steps before the TAL phase, in which ATSS assigns (of the learning rate: its first steps)
        primary     the process of a run that logs, evaluates and writes
Units:  boxes are (x0, y0, x1, y1) in canvas pixels unless a name says `strides` (pixels divided by the level's stride)
        or `original` (pixels of the image file) · scores are 0–1 · logits are unbounded
This module is imported by data workers, so it never imports JAX: arrays are numpy on the host, jax.Array on the device.
"""

from typing import Any, NamedTuple

Array = Any  # numpy.ndarray on the host, jax.Array on the device
Tree = Any  # nested dicts and tuples of arrays, such as parameters


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
    """Output of the head for every location, all levels in one row."""

    scores: Array  # [B, N, C] float32, 0–1: class scores, aligned √(P·M) where the head aligns
    boxes: Array  # [B, N, 4] float32 xyxy in strides
    box_logits: Array = None  # [B, N, R] float32, decode to the boxes before alignment, at scale 1
    quality: Array | None = None  # [B, N] float32 logits of centerness or IoU, where the head has such a branch
    offsets: Array | None = None  # [B, N, 8] float32 (dy, dx) in locations at which sides are sampled, where it aligns


class Assignment(NamedTuple):
    """Which object each location learns, for one image (or a batch, with B in front)."""

    gt_index: Array  # [N] int32, position of the object in gt_boxes; -1 = background, -2 = ignored
    metric: Array  # [N] float32, alignment metric t = s^α·u^β with that object (ATSS: 1); 0 on background
    iou: Array  # [N] float32, 0–1, IoU with that object (predicted box, or anchor for ATSS); 0 on background
    soft_label: Array  # [N] float32, 0–1, t̂: t scaled so that the largest per object equals its largest IoU (ATSS: 1)
    rescued: Array = None  # [M] bool, task_aligned only: ATSS chose the object's locations in this step


class Detections(NamedTuple):
    """The best K detections per image, best first; rows past the last real one have score 0 and label -1."""

    boxes: Array  # [B, K, 4] float32 xyxy, pixels of the original image
    scores: Array  # [B, K] float32, 0–1
    labels: Array  # [B, K] int32, 0…C-1, or -1
    non_finite: Array | None = None  # [B] int32, candidates dropped because their box or score was NaN or infinite
