"""What a batch costs: classification, boxes, and where a head has them its quality branch and its distributions.

Axes: B images · N predictions of all levels · M padded objects · C classes. Boxes are xyxy in canvas pixels unless the
name says strides. Sums run over the whole (global) batch: on a mesh a sum over a sharded array is already global.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from tood_jax.config import Config, LossConfig
from tood_jax.detectors.targets import Priors, assign, batch_priors
from tood_jax.geometry.boxes import aligned_iou, centerness
from tood_jax.losses.classification import focal_loss, quality_focal_loss
from tood_jax.losses.regression import distribution_focal_loss, giou_loss, smooth_l1_loss
from tood_jax.mesh import image_by_image
from tood_jax.types import Assignment, Batch, Predictions


class Losses(NamedTuple):
    """Weighted loss parts a level (P3 first); their sum is the loss. A part that a config lacks stays zero."""

    cls: Float[Array, "5"]
    box: Float[Array, "5"]
    quality: Float[Array, "5"]
    distribution: Float[Array, "5"]

    @property
    def total(self) -> Float[Array, ""]:
        return jnp.stack(self).sum()


def loss_parts(config: Config) -> tuple[str, ...]:
    """The fields of `Losses` that a config has."""
    quality = ("quality",) if config.head.quality != "none" else ()
    distribution = ("distribution",) if config.head.box_coding == "binned_distances" else ()
    return ("cls", "box", *quality, *distribution)


class Targets(NamedTuple):
    """What the positive predictions learn; on all others the values mean nothing."""

    positive: Bool[Array, "b n"]
    gt_boxes: Float[Array, "b n 4"]  # pixels
    gt_labels: Float[Array, "b n"]
    soft_label: Float[Array, "b n"]  # t̂, or 1
    centerness: Float[Array, "b n"]
    iou: Float[Array, "b n"]  # of the predicted box


def detection_losses(pred: Predictions, batch: Batch, aligned: Any, config: Config) -> Losses:
    """Losses of a batch, composed as `config.loss` says.

    For TOOD (paper section 3.2.2; equations 8 and 9): classification is the quality focal loss towards t̂ (warm-up:
    focal loss), divided by Σ t̂ (warm-up: the number of positives); boxes cost GIoU in strides weighted by t̂ (warm-up:
    by centerness), divided by the summed weights. Every divisor is taken over the global batch and is at least 1.

    Args:
        pred: of the batch's canvas.
        aligned: bool, may be traced; for the task_aligned assigner only: False in the ATSS warm-up, True after it.
    """
    priors = batch_priors(batch, config)

    def assign_images(pred, batch, aligned):
        return assign(pred, batch, batch_priors(batch, config), aligned[0], config)

    switch = jnp.broadcast_to(jnp.asarray(aligned), len(batch.images))
    assignment = image_by_image(assign_images)(lax.stop_gradient(pred), batch, switch)
    targets = _targets(pred, batch, priors, assignment)
    loss, warms_up = config.loss, config.learning.assigner == "task_aligned"

    def during_warmup(warm, main):
        return jnp.where(aligned, main, warm) if warms_up else main

    one = jnp.ones_like(targets.iou)
    weights = {"alignment": targets.soft_label, "one": one, "centerness": targets.centerness, "iou": targets.iou}
    cls_target = during_warmup(one, weights[loss.cls_target])
    weights["score"] = lax.stop_gradient(pred.scores).max(axis=-1)
    weight = during_warmup(targets.centerness, weights[loss.box_weight])
    cls_target, weight = (jnp.where(targets.positive, x, 0) for x in (cls_target, weight))

    num_positive = targets.positive.sum(axis=1)  # [B]
    count = jnp.maximum(num_positive.sum(), 1)
    if loss.normalizer == "positives_per_image":
        count = jnp.maximum(num_positive, 1).sum()
    cls_count = {
        "targets": jnp.maximum(cls_target.sum(), 1),
        "positives_and_images": num_positive.sum() + len(num_positive),
    }.get(loss.normalizer, count)
    box_count = count if loss.box_weight == "one" else jnp.maximum(weight.sum(), 1)

    counted = priors.valid & (assignment.gt_index != IGNORED)  # [B, N]
    cls = _classification(pred, targets, cls_target, aligned, loss, warms_up)
    cls = jnp.where(counted[..., None], cls, 0).sum(axis=2) / cls_count  # [B, N]
    box = _boxes(pred, targets, priors, loss) * weight * loss.box_loss_weight / box_count
    quality = distribution = jnp.zeros_like(cls)
    if pred.quality is not None:
        foretold = getattr(targets, config.head.quality)
        quality = jnp.where(targets.positive, optax.sigmoid_binary_cross_entropy(pred.quality, foretold), 0)
        quality = quality * loss.quality_loss_weight / count
    if config.head.box_coding == "binned_distances":
        distribution = _distributions(pred, targets, priors) * weight * loss.distribution_loss_weight / box_count
    slices = priors.cells.level_slices  # five sums: what devices exchange are five numbers, not N
    return Losses(*(jnp.stack([x[:, level].sum() for level in slices]) for x in (cls, box, quality, distribution)))


IGNORED = -2  # gt_index of a prediction that counts for nothing
_SOMEWHERE = (0.0, 0.0, 1.0, 1.0)  # a harmless box for predictions without an object: none of their gradients but zero


def _targets(pred: Predictions, batch: Batch, priors: Priors, assignment: Assignment) -> Targets:
    gt_index = jnp.maximum(assignment.gt_index, 0)
    gt_boxes = jnp.take_along_axis(batch.gt_boxes, gt_index[..., None], axis=1)  # [B, N, 4]
    return Targets(
        positive=assignment.gt_index >= 0,
        gt_boxes=gt_boxes,
        gt_labels=jnp.take_along_axis(batch.gt_labels, gt_index, axis=1),
        soft_label=assignment.soft_label,
        centerness=centerness(priors.points, gt_boxes),
        iou=aligned_iou(lax.stop_gradient(pred.boxes), gt_boxes / priors.strides),
    )


def _classification(
    pred: Predictions, targets: Targets, value: Float[Array, "b n"], aligned: Any, loss: LossConfig, warms_up: bool
) -> Float[Array, "b n c"]:
    """The classification loss, element by element, towards `value` at the object's class."""
    is_class = jnp.arange(pred.scores.shape[-1]) == targets.gt_labels[..., None]  # [B, N, C]
    target = jnp.where(targets.positive[..., None] & is_class, value[..., None], 0)

    def main(scores, target):
        if loss.cls == "quality_focal":
            return quality_focal_loss(scores, target, loss.focal_gamma)
        return focal_loss(scores, target, loss.focal_alpha, loss.focal_gamma)

    if not warms_up:
        return main(pred.scores, target)
    return lax.cond(aligned, main, focal_loss, pred.scores, target)


def _boxes(pred: Predictions, targets: Targets, priors: Priors, loss: LossConfig) -> Float[Array, "b n"]:
    """The box loss, prediction by prediction, zero where there is no object."""
    somewhere, positive = jnp.asarray(_SOMEWHERE), targets.positive[..., None]
    gt_boxes = jnp.where(positive, targets.gt_boxes / priors.strides, somewhere)
    if loss.box == "giou":
        return giou_loss(jnp.where(positive, pred.boxes, somewhere), gt_boxes)
    goal = priors.coding.encode(gt_boxes, priors.points / priors.strides, priors.anchors / priors.strides)
    difference = jnp.where(positive, pred.raw - goal, 0)
    return (jnp.abs(difference) if loss.box == "l1" else smooth_l1_loss(difference)).sum(axis=-1)


def _distributions(pred: Predictions, targets: Targets, priors: Priors) -> Float[Array, "b n"]:
    """The distribution focal loss, averaged over the four sides."""
    strides = priors.strides
    distances = priors.coding.encode(targets.gt_boxes / strides, priors.points / strides, priors.anchors / strides)
    logits = pred.raw.reshape(*pred.raw.shape[:-1], 4, priors.coding.bins + 1)
    return distribution_focal_loss(logits, distances).mean(axis=-1)
