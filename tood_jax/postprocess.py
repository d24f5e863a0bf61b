"""From predictions to detections, on the device and of fixed size (no host round trip).

Axes: B images · N locations · C classes · S candidates · K detections. Boxes are xyxy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.geometry.boxes import aligned_coverage, aligned_iou, pairwise_iou
from tood_jax.types import Detections


def select_candidates(
    scores: Float[Array, "n c"],
    valid: Bool[Array, " n"],
    *,
    level_slices: tuple[slice, ...],
    score_threshold: float,
    per_level: int,
) -> tuple[Int[Array, " s"], Float[Array, " s"], Int[Array, " s"]]:
    """The best `per_level` (location, class) pairs of each level that exceed the threshold, for one image.

    Returns:
        locations (indices in N), scores (0 where fewer exceed it) and labels of the S candidates, best first per level.
    """
    classes = scores.shape[1]
    scores = jnp.where((scores > score_threshold) & valid[:, None], scores, 0)
    parts = []
    for level in level_slices:
        flat = scores[level].reshape(-1)
        best, pair = lax.top_k(flat, min(per_level, flat.shape[0]))
        parts.append((level.start + pair // classes, best, (pair % classes).astype(jnp.int32)))
    locations, scores, labels = (jnp.concatenate(part) for part in zip(*parts, strict=True))
    return locations, scores, labels


def nms(
    boxes: Float[Array, "s 4"],
    scores: Float[Array, " s"],
    labels: Int[Array, " s"],
    *,
    iou_threshold: float | Float[Array, ""],
    max_detections: int,
) -> Int[Array, " k"]:
    """Class-wise greedy non-maximum suppression of one image.

    K rounds take the best box left and suppress its class's boxes of larger IoU. That is exactly the head of greedy
    NMS, without a sort or an S×S matrix.

    Args:
        scores: 0 marks a candidate that doesn't exist.
        iou_threshold: boxes of one class with an IoU above it are suppressed.
        max_detections: K.

    Returns:
        Positions of the kept boxes, best first; -1 after the last.
    """

    boxes, labels = jnp.asarray(boxes), jnp.asarray(labels)  # indexed by traced positions below

    def round_(left, _):
        best = jnp.argmax(left)
        alive = left[best] > 0
        suppressed = (aligned_iou(boxes[best], boxes) > iou_threshold) & (labels == labels[best])
        left = jnp.where(suppressed, 0.0, left).at[best].set(0.0)
        return left, jnp.where(alive, best, -1).astype(jnp.int32)

    return lax.scan(round_, jnp.asarray(scores), length=max_detections)[1]


VOTE_SPREAD = 0.025  # of the weights by IoU (PAA, section 3.3)
VOTE_IOU = 0.01  # candidates that overlap less have no vote


def vote(
    boxes: Float[Array, "k 4"],
    labels: Int[Array, " k"],
    all_boxes: Float[Array, "s 4"],
    all_scores: Float[Array, " s"],
    all_labels: Int[Array, " s"],
) -> Float[Array, "k 4"]:
    """Score voting (PAA: Kim and Lee 2020, section 3.3): each box becomes the mean of its class's candidates around it.

    A candidate weighs its score · exp(−(1 − IoU)² / 0.025). Candidates of score 0 don't exist.
    """
    iou = pairwise_iou(boxes, all_boxes)  # [K, S]
    votes = (labels[:, None] == all_labels) & (iou > VOTE_IOU)
    weight = jnp.where(votes, jnp.exp(-((1 - iou) ** 2) / VOTE_SPREAD) * all_scores, 0)
    total = weight.sum(axis=1, keepdims=True)
    return jnp.where(total > 0, weight @ all_boxes / jnp.maximum(total, 1e-12), boxes)


class Candidates(NamedTuple):
    """What NMS receives of one image."""

    boxes: Float[Array, "s 4"]  # pixels of the original image
    scores: Float[Array, " s"]  # final scores, 0–1; 0 marks a candidate that doesn't exist
    labels: Int[Array, " s"]
    locations: Int[Array, " s"]  # indices in N
    dropped: Int[Array, ""]  # pairs of location and class that were left out because they are not finite


def image_candidates(
    scores: Float[Array, "n c"],
    boxes: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    size: Int[Array, "2"],
    scale: Float[Array, "2"],
    quality: Float[Array, " n"] | None,
    *,
    level_slices: tuple[slice, ...],
    score_threshold: float,
    per_level: int,
    clip_boxes: bool,
    clip_margin: float,
    geometric_mean: bool,
) -> Candidates:
    """Return what NMS receives of one image: the stages of `detect` up to NMS, with its arguments."""
    per_pixel = jnp.tile(scale[::-1], 2)
    if quality is not None:
        quality = jnp.where(jnp.isfinite(quality), quality, 0)
        if geometric_mean:
            scores = jnp.sqrt(scores * quality[:, None])
    is_box = jnp.isfinite(boxes / per_pixel).all(axis=-1)  # before a clip hides it
    is_score = jnp.isfinite(scores)
    dropped = valid[:, None] & (~is_score | ((scores > score_threshold) & ~is_box[:, None]))
    boxes, scores = jnp.where(is_box[:, None], boxes, 0), jnp.where(is_box[:, None] & is_score, scores, 0)
    if clip_boxes:
        boxes = jnp.clip(boxes, 0, jnp.tile(size[::-1], 2).astype(boxes.dtype) - clip_margin)
    locations, scores, labels = select_candidates(
        scores,
        valid,
        level_slices=level_slices,
        score_threshold=score_threshold,
        per_level=per_level,
    )
    if quality is not None and not geometric_mean:
        scores = scores * quality[locations]
    boxes = boxes[locations] / per_pixel
    scores = jnp.where((boxes[:, 2:] > boxes[:, :2]).all(axis=-1), scores, 0)  # boxes without area go
    return Candidates(boxes, scores, labels, locations, dropped.sum(dtype=jnp.int32))


def detect(
    scores: Float[Array, "b n c"],
    boxes: Float[Array, "b n 4"],
    valid: Bool[Array, "b n"],
    sizes: Int[Array, "b 2"],
    scales: Float[Array, "b 2"],
    quality: Float[Array, "b n"] | None = None,
    *,
    level_slices: tuple[slice, ...],
    score_threshold: float = 0.05,
    candidates_per_level: int = 1000,
    nms_iou: float = 0.6,
    max_detections: int = 100,
    clip_boxes: bool = False,
    clip_margin: float = 0.0,
    geometric_mean: bool = False,
    score_voting: bool = False,
) -> Detections:
    """Threshold, top-k a level, rescaling, boxes without area dropped, class-wise NMS, best K.

    Pairs of location and class whose box or score is not finite are dropped before all that, and counted.
    `config.DetectConfig` explains the options.

    Args:
        scores: 0–1.
        boxes: canvas pixels.
        valid: False for locations outside the image's padded area.
        sizes: (height, width) of the image in the canvas, pixels.
        scales: (y, x), canvas pixels per original pixel.
        quality: 0–1, centerness or IoU; multiplies the scores of the candidates (after threshold and top-k).
        geometric_mean: the square root of that product instead, before threshold and top-k.
        score_voting: `vote` on the boxes that NMS kept.

    Returns:
        Detections in pixels of the original image.
    """

    def one(*image):
        boxes, scores, labels, _, dropped = image_candidates(
            *image,
            level_slices=level_slices,
            score_threshold=score_threshold,
            per_level=candidates_per_level,
            clip_boxes=clip_boxes,
            clip_margin=clip_margin,
            geometric_mean=geometric_mean,
        )
        keep = nms(boxes, scores, labels, iou_threshold=nms_iou, max_detections=max_detections)
        real, kept = keep >= 0, boxes[keep]
        if score_voting:
            kept = vote(kept, labels[keep], boxes, scores, labels)
        return Detections(
            jnp.where(real[:, None], kept, 0),
            jnp.where(real, scores[keep], 0),
            jnp.where(real, labels[keep], -1),
            dropped,
        )

    return jax.vmap(one)(scores, boxes, valid, sizes, scales, quality)


COVERED = 0.5  # share of the area of a cut detection from which on a whole one replaces it
COVERING_SCORE = 0.5  # of the cut detection's score, which the whole one must have


def merge_views(
    boxes: Float[Array, "s 4"],
    scores: Float[Array, " s"],
    labels: Int[Array, " s"],
    is_cut: Bool[Array, " s"],
    *,
    iou_threshold: float,
    max_detections: int,
) -> Int[Array, " k"]:
    """Merge the detections of all views of one image: `nms` over them, after those that a tile cut are replaced.

    A tile shows a part of an object at its border, which has a small IoU with the object. Such a detection is dropped
    if at least half of its area lies in a whole detection of its class with at least half of its score.

    Args:
        boxes: pixels of the image.
        scores: 0 marks a detection that doesn't exist.
        is_cut: the box ends at a border of its tile that is none of the image.
        iou_threshold: as for `nms`.
        max_detections: K.

    Returns:
        Positions of the kept detections, best first; -1 after the last.
    """

    def is_replaced(box, score, label):
        covers = ~is_cut & (labels == label) & (scores >= COVERING_SCORE * score) & (scores > 0)
        return (covers & (aligned_coverage(box, boxes) >= COVERED)).any()

    replaced = is_cut & lax.map(lambda one: is_replaced(*one), (boxes, scores, labels), batch_size=256)
    scores = jnp.where(replaced, 0, scores)
    return nms(boxes, scores, labels, iou_threshold=iou_threshold, max_detections=max_detections)
