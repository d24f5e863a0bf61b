"""Why was an object missed: every object followed through the stages of detection, on the device.

    predictions → threshold → top-k of each level → NMS → the best K → matching with objects

All stages have fixed sizes, so an object can be followed through them. Its good predictions are those whose box has an
IoU with it of at least `MATCH_IOU`. An object is found if a detection of its class matches it (COCO's matching). Of a
missed one, the cause is where the good prediction that came furthest ended. Boxes are those before score voting.

Axes: N locations · C classes · S candidates, of all levels · K detections · M padded objects.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tood_jax.config import Config
from tood_jax.evaluation.alignment import confidences, original_boxes
from tood_jax.evaluation.matching import match_detections
from tood_jax.geometry.boxes import aligned_iou, pairwise_iou
from tood_jax.geometry.locations import locations_in_image
from tood_jax.models.detector import canvas_pyramid, detection_inputs
from tood_jax.postprocess import Candidates, image_candidates, nms
from tood_jax.types import Batch, Predictions

MATCH_IOU = 0.5
CAUSES = (  # by number; those of 1–7 in the order of the stages
    "found",
    "poor box",  # no prediction has a good box
    "wrong class",  # good boxes exceed the threshold only with the score of another class
    "below threshold",
    "not in top-k",  # of its level
    "suppressed by NMS",
    "beyond max_detections",
    "matched to another",  # it is a detection, but matches another object
)
FOUND, POOR_BOX, WRONG_CLASS, BELOW_THRESHOLD, NOT_IN_TOP_K, SUPPRESSED, BEYOND_MAX, OTHER_OBJECT = range(len(CAUSES))


class Diagnosis(NamedTuple):
    """What happened to each object of a batch. Boxes are in pixels of the original image."""

    cause: Int[Array, "b m"]  # position in CAUSES; -1 for padding
    location: Int[Array, "b m"]  # of the prediction that the cause is about; of a poor box, the one of largest IoU
    iou: Float[Array, "b m"]  # of its box with the object
    score: Float[Array, "b m"]  # its final score for the object's class, 0–1
    box: Float[Array, "b m 4"]
    other_label: Int[Array, "b m"]  # wrong class: the class of the best score; else -1
    other_box: Float[Array, "b m 4"]  # suppressed: the box that suppressed it; other object: that object; else zeros
    other_score: Float[Array, "b m"]  # of the other class or of the other box; else 0


def diagnose(pred: Predictions, batch: Batch, config: Config) -> Diagnosis:
    """Return what happened to each object of a batch, by the options of `config.detect`."""
    found = batch_candidates(pred, batch, config)
    pyramid = canvas_pyramid(batch, config.head.anchors_per_location)
    boxes, options = pred.boxes * pyramid.strides[:, None], config.detect
    if options.clip_boxes:
        limit = jnp.tile(batch.sizes[:, None, ::-1], 2).astype(boxes.dtype) - options.clip_margin
        boxes = jnp.clip(boxes, 0, limit)
    return jax.vmap(
        lambda *image: diagnose_image(
            *image,
            score_threshold=options.score_threshold,
            nms_iou=options.nms_iou,
            max_detections=options.max_detections,
        )
    )(
        selection_scores(pred, config),
        confidences(pred, config),
        boxes / jnp.tile(batch.scales[:, None, ::-1], 2),
        locations_in_image(pyramid, batch.sizes),
        found,
        original_boxes(batch),
        batch.gt_labels,
        batch.gt_mask,
    )


def selection_scores(pred: Predictions, config: Config) -> Float[Array, "b n c"]:
    """Return the scores that threshold and top-k compare; with a quality branch as product, those without it."""
    return confidences(pred, config) if config.detect.quality_fusion == "geometric_mean" else pred.scores


def batch_candidates(pred: Predictions, batch: Batch, config: Config) -> Candidates:
    """Return what NMS receives of each image of a batch, by the options of `config.detect`."""
    pyramid = canvas_pyramid(batch, config.head.anchors_per_location)
    options = config.detect
    return jax.vmap(
        lambda *image: image_candidates(
            *image,
            level_slices=pyramid.level_slices,
            score_threshold=options.score_threshold,
            per_level=options.candidates_per_level,
            clip_boxes=options.clip_boxes,
            clip_margin=options.clip_margin,
            geometric_mean=options.quality_fusion == "geometric_mean",
        )
    )(*detection_inputs(pred, batch, pyramid))


def diagnose_image(
    selection: Float[Array, "n c"],
    scores: Float[Array, "n c"],
    boxes: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    found: Candidates,
    gt_boxes: Float[Array, "m 4"],
    gt_labels: Int[Array, " m"],
    gt_mask: Bool[Array, " m"],
    *,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
) -> Diagnosis:
    """Follow the objects of one image; boxes are in one unit.

    Args:
        selection: scores that threshold and top-k compare, 0–1.
        scores: final scores, 0–1.
        found: what NMS receives.
    """
    selection, scores = jnp.nan_to_num(selection, nan=0), jnp.nan_to_num(scores, nan=0)
    keep, kept_boxes, kept_labels, rank, suppressor, stage = follow_candidates(found, nms_iou, max_detections)
    matches = match_detections(kept_boxes, kept_labels, gt_boxes, gt_labels, gt_mask, MATCH_IOU)
    is_candidate = found.scores > 0

    def one(m, gt_box, label, is_object) -> Diagnosis:
        iou = jnp.where(valid, jnp.nan_to_num(aligned_iou(boxes, gt_box), nan=-1), -1)
        is_good = iou >= MATCH_IOU
        own = selection[:, label]
        passes = is_good & (own > score_threshold)
        other = is_good & (selection.max(axis=1) > score_threshold)
        here = stage * (is_good[found.locations] & (found.labels == label) & is_candidate)
        furthest = here.max(initial=0)
        cause = jnp.select(
            [furthest > 0, passes.any(), other.any(), is_good.any()],
            [furthest, NOT_IN_TOP_K, WRONG_CLASS, BELOW_THRESHOLD],
            POOR_BOX,
        )
        match = matches.gt_index == m
        cause = jnp.where(match.any(), FOUND, cause)
        candidate = jnp.where(match.any(), keep[match.argmax()], jnp.where(here == furthest, found.scores, -1).argmax())
        of_candidates = (cause == FOUND) | (furthest > 0)
        by_location = jnp.select(
            [cause == NOT_IN_TOP_K, cause == WRONG_CLASS, cause == BELOW_THRESHOLD],
            [jnp.where(passes, own, -1), jnp.where(other, selection.max(axis=1), -1), jnp.where(is_good, own, -1)],
            iou,
        ).argmax()
        location = jnp.where(of_candidates, found.locations[candidate], by_location)
        box = jnp.where(of_candidates, found.boxes[candidate], boxes[location])
        by = jnp.where(cause == SUPPRESSED, suppressor[candidate], 0)
        owner = matches.gt_index[jnp.minimum(rank[candidate], len(keep) - 1)]
        other_box = jnp.select(
            [cause == SUPPRESSED, (cause == OTHER_OBJECT) & (owner >= 0)],
            [kept_boxes[by], gt_boxes[owner]],
            jnp.zeros(4),
        )
        wrong = cause == WRONG_CLASS
        return Diagnosis(
            jnp.where(is_object, cause, -1),
            location,
            aligned_iou(box, gt_box),
            scores[location, label],
            box,
            jnp.where(wrong, selection[location].argmax(), -1),
            other_box,
            jnp.select([wrong, cause == SUPPRESSED], [scores[location].max(), found.scores[keep[by]]], 0.0),
        )

    return jax.lax.map(lambda gt: one(*gt), (jnp.arange(len(gt_boxes)), gt_boxes, gt_labels, gt_mask), batch_size=16)


class Followed(NamedTuple):
    """How far the candidates of an image came."""

    keep: Int[Array, " k"]  # candidates that are detections, best first; -1 for padding
    boxes: Float[Array, "k 4"]  # of the detections
    labels: Int[Array, " k"]  # of the detections; -1 for padding
    rank: Int[Array, " s"]  # of a candidate among the detections; K where it is none
    suppressor: Int[Array, " s"]  # rank of the first detection that suppresses a candidate; K where there is none
    stage: Int[Array, " s"]  # SUPPRESSED, BEYOND_MAX or, of a detection, OTHER_OBJECT; -1 for padding


def follow_candidates(found: Candidates, nms_iou: float, max_detections: int) -> Followed:
    """Follow the candidates of one image through NMS and the choice of the best K."""
    keep = nms(found.boxes, found.scores, found.labels, iou_threshold=nms_iou, max_detections=max_detections)
    is_kept = keep >= 0
    boxes, labels = found.boxes[keep], jnp.where(is_kept, found.labels[keep], -1)
    overlaps = pairwise_iou(boxes, found.boxes) > nms_iou  # [K, S]
    overlaps &= (labels[:, None] == found.labels) & is_kept[:, None]
    rank = jnp.full(len(found.scores) + 1, max_detections).at[jnp.where(is_kept, keep, -1)].set(jnp.arange(len(keep)))
    rank = rank[:-1]  # the last one stands for the padding of `keep`
    suppressor = jnp.where(overlaps.any(axis=0), overlaps.argmax(axis=0), max_detections)
    stage = jnp.where(suppressor < max_detections, SUPPRESSED, BEYOND_MAX)
    stage = jnp.where(rank < max_detections, OTHER_OBJECT, stage)
    return Followed(keep, boxes, labels, rank, suppressor, jnp.where(found.scores > 0, stage, -1))


class Setting(NamedTuple):
    """Options of detection that `count_found` changes; arrays of one length."""

    score_threshold: Float[Array, " t"]
    nms_iou: Float[Array, " t"]
    candidates_per_level: Int[Array, " t"]


def count_found(
    pred: Predictions, batch: Batch, settings: Setting, loosest: Config, at_once: int = 32
) -> tuple[Int[Array, "b t"], Int[Array, "b t"]]:
    """Return how many objects are found and how many boxes are detected in each image, for each of T settings.

    The candidates are computed once, by `loosest`; a setting keeps those that exceed its threshold and are among the
    best of their level.

    Args:
        settings: none may be looser than `loosest.detect`.
        loosest: config with the smallest threshold and the most candidates per level.
        at_once: settings per step of the loop; bounds memory.
    """
    found = batch_candidates(pred, batch, loosest)
    pyramid = canvas_pyramid(batch, loosest.head.anchors_per_location)
    classes = pred.scores.shape[-1]
    limit = loosest.detect.candidates_per_level
    counts = [min(limit, (part.stop - part.start) * classes) for part in pyramid.level_slices]
    rank = jnp.concatenate([jnp.arange(count) for count in counts])  # in the level; `select_candidates` sorts them
    compared = selection_scores(pred, loosest)

    of_image = partial(
        found_at_settings, rank=rank, settings=settings, max_detections=loosest.detect.max_detections, at_once=at_once
    )
    return jax.vmap(of_image)(compared, found, original_boxes(batch), batch.gt_labels, batch.gt_mask)


def found_at_settings(
    selection: Float[Array, "n c"],
    found: Candidates,
    gt_boxes: Float[Array, "m 4"],
    gt_labels: Int[Array, " m"],
    gt_mask: Bool[Array, " m"],
    *,
    rank: Int[Array, " s"],
    settings: Setting,
    max_detections: int,
    at_once: int,
) -> tuple[Int[Array, " t"], Int[Array, " t"]]:
    """Return the numbers of found objects and of detections of one image, for each setting.

    Args:
        selection: scores that threshold and top-k compare, 0–1.
        found: candidates of the loosest setting.
        rank: of each candidate in its level, from 0.
        settings: the T settings.
    """
    compared = selection[found.locations, found.labels]

    def at(setting: Any):
        chosen = (compared > setting.score_threshold) & (rank < setting.candidates_per_level)
        keep = nms(
            found.boxes,
            jnp.where(chosen, found.scores, 0),
            found.labels,
            iou_threshold=setting.nms_iou,
            max_detections=max_detections,
        )
        labels = jnp.where(keep >= 0, found.labels[keep], -1)
        matches = match_detections(found.boxes[keep], labels, gt_boxes, gt_labels, gt_mask, MATCH_IOU)
        return (matches.gt_index >= 0).sum(dtype=jnp.int32), (keep >= 0).sum(dtype=jnp.int32)

    return jax.lax.map(at, settings, batch_size=at_once)
