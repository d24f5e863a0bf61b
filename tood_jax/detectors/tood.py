"""TOOD, the whole story: network, targets, losses and detections (Feng et al., ICCV 2021).

Axes: B images · N cells of all levels · M padded objects · C classes. Boxes are xyxy in canvas pixels unless the name
says strides. Sums run over the whole (global) batch: on a mesh a sum over a sharded array is already global.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, UInt8

from tood_jax.assigners.atss import assign_atss_batch
from tood_jax.assigners.task_aligned import assign_task_aligned_batch
from tood_jax.config import DetectConfig, LearningConfig
from tood_jax.geometry.boxes import centerness
from tood_jax.geometry.pyramid import Pyramid, cells_in_image, pyramid
from tood_jax.losses.classification import focal_loss, quality_focal_loss
from tood_jax.losses.regression import giou_loss
from tood_jax.postprocess import detect
from tood_jax.types import Assignment, Batch, Detections, Predictions


class Losses(NamedTuple):
    """Weighted loss parts a level (P3 first); their sum is the loss."""

    cls: Float[Array, "5"]
    box: Float[Array, "5"]

    @property
    def total(self) -> Float[Array, ""]:
        return self.cls.sum() + self.box.sum()


class Tood(nn.Module):
    """Backbone, neck and head as one network."""

    backbone: nn.Module
    neck: nn.Module
    head: nn.Module

    def __call__(self, images: Float[Array, "b h w 3"], train: bool = False) -> Predictions:
        """Normalised images to the predictions of every cell."""
        c2_to_c5 = self.backbone(images, train)
        scores, boxes = zip(*self.head(self.neck(c2_to_c5[1:])), strict=True)

        def in_a_row(maps):
            return jnp.concatenate([m.reshape(m.shape[0], -1, m.shape[-1]) for m in maps], axis=1)

        return Predictions(in_a_row(scores), in_a_row(boxes))


def normalize_images(
    images: UInt8[Array, "b h w 3"], sizes: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "b h w 3"]:
    """(RGB − mean) / std inside each image's own area, zero outside (the padding is zero after normalisation)."""
    x = (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
    rows = lax.broadcasted_iota(jnp.int32, (*images.shape[:3], 1), 1) < sizes[:, 0, None, None, None]
    columns = lax.broadcasted_iota(jnp.int32, (*images.shape[:3], 1), 2) < sizes[:, 1, None, None, None]
    return jnp.where(rows & columns, x, 0)


def canvas_pyramid(batch: Batch) -> Pyramid:
    """The cells of the batch's canvas."""
    return pyramid(*batch.images.shape[1:3])


def assign(
    pred: Predictions,
    batch: Batch,
    cells: Pyramid,
    valid: Bool[Array, "b n"],
    aligned: Any,
    *,
    learning: LearningConfig,
    anchor_scale: float,
) -> Assignment:
    """Task-aligned assignment where `aligned` is true, ATSS (the warm-up) where it is false; constants to autodiff."""

    def task_aligned():
        return assign_task_aligned_batch(
            pred.scores, pred.boxes * cells.strides[:, None], jnp.asarray(cells.points), valid,
            batch.gt_boxes, batch.gt_labels, batch.gt_mask,
            topk=learning.topk, alpha=learning.alpha, beta=learning.beta,
        )  # fmt: skip

    def atss():
        return assign_atss_batch(
            jnp.asarray(cells.anchors(anchor_scale)), valid, batch.gt_boxes, batch.gt_mask,
            level_slices=cells.level_slices, topk=learning.atss_topk,
        )  # fmt: skip

    return lax.stop_gradient(lax.cond(aligned, task_aligned, atss))


def tood_losses(
    pred: Predictions, batch: Batch, aligned: Any, *, learning: LearningConfig, anchor_scale: float = 8.0
) -> Losses:
    """Losses of a batch (paper section 3.2.2; equations 8 and 9).

    Classification: quality focal loss towards t̂ (warm-up: focal loss), divided by Σ t̂ (warm-up: the number of
    positives). Boxes: GIoU in strides weighted by t̂ (warm-up: by centerness), divided by the summed weights. Both
    sums are taken over the global batch and are at least 1.

    Args:
        pred: of the batch's canvas.
        aligned: bool, may be traced: False in the ATSS warm-up, True in the task-aligned phase.
        learning: `config.LearningConfig`.
        anchor_scale: side of an anchor in strides.
    """
    cells = canvas_pyramid(batch)
    strides = jnp.asarray(cells.strides)
    valid = cells_in_image(cells, batch.sizes)  # [B, N]
    assignment = assign(pred, batch, cells, valid, aligned, learning=learning, anchor_scale=anchor_scale)
    positive = assignment.gt_index >= 0  # [B, N]
    gt_index = jnp.maximum(assignment.gt_index, 0)
    gt_boxes = jnp.take_along_axis(batch.gt_boxes, gt_index[..., None], axis=1)  # [B, N, 4]
    gt_labels = jnp.take_along_axis(batch.gt_labels, gt_index, axis=1)  # [B, N]

    is_class = positive[..., None] & (jnp.arange(pred.scores.shape[-1]) == gt_labels[..., None])  # [B, N, C]
    soft_label = jnp.where(is_class, assignment.soft_label[..., None], 0)
    cls = lax.cond(aligned, quality_focal_loss, focal_loss, pred.scores, soft_label)
    cls = jnp.where(valid[..., None], cls, 0).sum(axis=(0, 2))  # [N]

    anchor_centerness = centerness(jnp.asarray(cells.points), gt_boxes)
    weight = jnp.where(positive, jnp.where(aligned, assignment.soft_label, anchor_centerness), 0)  # [B, N]
    # Background cells get a harmless pair of boxes, so that no gradient of theirs can be anything but zero.
    target = jnp.where(positive[..., None], gt_boxes / strides[:, None], jnp.asarray([0.0, 0.0, 1.0, 1.0]))
    source = jnp.where(positive[..., None], pred.boxes, jnp.asarray([0.0, 0.0, 1.0, 1.0]))
    box = (giou_loss(source, target) * weight).sum(axis=0)  # [N]

    cls = cls / jnp.maximum(assignment.soft_label.sum(), 1)
    box = learning.box_loss_weight * box / jnp.maximum(weight.sum(), 1)
    return Losses(*(jnp.stack([x[level].sum() for level in cells.level_slices]) for x in (cls, box)))


def tood_detections(pred: Predictions, batch: Batch, options: DetectConfig) -> Detections:
    """Predictions of a batch to its detections in pixels of the original images."""
    cells = canvas_pyramid(batch)
    return detect(
        pred.scores,
        pred.boxes * cells.strides[:, None],
        cells_in_image(cells, batch.sizes),
        batch.sizes,
        batch.scales,
        level_slices=cells.level_slices,
        score_threshold=options.score_threshold,
        candidates_per_level=options.candidates_per_level,
        nms_iou=options.nms_iou,
        max_detections=options.max_detections,
        clip_boxes=options.clip_boxes,
    )
