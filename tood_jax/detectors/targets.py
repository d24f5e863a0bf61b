"""Which cells learn which object: the assigner of a config on a batch's predictions.

Axes: B images · N predictions of all levels · M padded objects. Boxes are xyxy in canvas pixels.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from tood_jax.assigners.atss import assign_atss_batch
from tood_jax.assigners.center_sampling import assign_center_sampling_batch
from tood_jax.assigners.fovea import assign_fovea_batch
from tood_jax.assigners.max_iou import assign_max_iou_batch
from tood_jax.assigners.ota import assign_ota_batch
from tood_jax.assigners.paa import assign_paa_batch
from tood_jax.assigners.simota import assign_simota_batch
from tood_jax.assigners.task_aligned import assign_task_aligned_batch
from tood_jax.config import Config, LossConfig
from tood_jax.detectors.detector import box_coding, canvas_pyramid
from tood_jax.geometry.coding import BoxCoding
from tood_jax.geometry.pyramid import Pyramid, cells_in_image
from tood_jax.losses.classification import focal_loss
from tood_jax.losses.regression import giou_loss
from tood_jax.types import Assignment, Batch, Predictions


class Priors(NamedTuple):
    """What is known of the N predictions before any network ran."""

    cells: Pyramid
    coding: BoxCoding
    points: Array  # [N, 2] (x, y) pixels, with the coding's offset
    anchors: Array  # [N, 4] xyxy pixels
    strides: Array  # [N, 1] pixels
    valid: Bool[Array, "b n"]  # False in the padding of an image


def batch_priors(batch: Batch, config: Config) -> Priors:
    """The priors of a batch's canvas."""
    coding = box_coding(config.head)
    cells = canvas_pyramid(batch, coding.per_cell)
    return Priors(
        cells,
        coding,
        jnp.asarray(cells.centers(coding.point_offset)),
        jnp.asarray(cells.place(coding.cell_anchors())),
        jnp.asarray(cells.strides[:, None]),
        cells_in_image(cells, batch.sizes),
    )


def assign(pred: Predictions, batch: Batch, priors: Priors, aligned: Any, config: Config) -> Assignment:
    """The config's assignment of a batch, constants to autodiff.

    Args:
        aligned: bool, may be traced; for task_aligned only: False in the ATSS warm-up, True after it.
    """
    learning, objects = config.learning, (batch.gt_boxes, batch.gt_labels, batch.gt_mask)
    pred = lax.stop_gradient(pred)

    def task_aligned():
        return assign_task_aligned_batch(
            pred.scores, pred.boxes * priors.strides, priors.points, priors.valid, *objects,
            topk=learning.topk, alpha=learning.alpha, beta=learning.beta,
        )  # fmt: skip

    def atss():
        return assign_atss_batch(
            priors.anchors, priors.valid, batch.gt_boxes, batch.gt_mask,
            level_slices=priors.cells.level_slices, topk=learning.atss_topk,
        )  # fmt: skip

    def max_iou():
        return assign_max_iou_batch(
            priors.anchors, priors.valid, batch.gt_boxes, batch.gt_mask,
            positive_iou=learning.positive_iou, negative_iou=learning.negative_iou,
        )  # fmt: skip

    def center_sampling():
        return assign_center_sampling_batch(
            priors.points, priors.strides[:, 0], priors.valid, batch.gt_boxes, batch.gt_mask,
            level_slices=priors.cells.level_slices, radius=learning.center_radius,
        )  # fmt: skip

    def fovea():
        return assign_fovea_batch(priors.valid, batch.gt_boxes, batch.gt_mask, level_shapes=priors.cells.shapes)

    def paa():
        initial = max_iou()
        return assign_paa_batch(
            initial, _costs(pred, batch, priors, initial, config.loss), priors.valid, batch.gt_mask,
            level_slices=priors.cells.level_slices, topk=learning.atss_topk,
        )  # fmt: skip

    def transport(assign_batch):
        return assign_batch(
            pred.scores, pred.boxes * priors.strides, priors.points, priors.strides[:, 0], priors.valid, *objects,
            center_radius=learning.center_radius,
        )  # fmt: skip

    chosen = {
        "task_aligned": lambda: lax.cond(aligned, task_aligned, atss),
        "atss": atss,
        "max_iou": max_iou,
        "center_sampling": center_sampling,
        "fovea": fovea,
        "paa": paa,
        "simota": lambda: transport(assign_simota_batch),
        "ota": lambda: transport(assign_ota_batch),
    }[learning.assigner]
    return lax.stop_gradient(chosen())


def _costs(pred: Predictions, batch: Batch, priors: Priors, initial: Assignment, loss: LossConfig) -> Array:
    """[B, N]: what each prediction costs with the object it has at first, classification plus box (PAA, equation 5)."""
    gt_index = jnp.maximum(initial.gt_index, 0)
    gt_boxes = jnp.take_along_axis(batch.gt_boxes, gt_index[..., None], axis=1) / priors.strides
    gt_labels = jnp.take_along_axis(batch.gt_labels, gt_index, axis=1)
    target = (jnp.arange(pred.scores.shape[-1]) == gt_labels[..., None]).astype(jnp.float32)
    cls = focal_loss(pred.scores, target, loss.focal_alpha, loss.focal_gamma).sum(axis=-1)
    return cls + loss.box_loss_weight * giou_loss(pred.boxes, gt_boxes)
