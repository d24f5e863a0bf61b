"""The loss of a batch: classification, boxes, and where a head has them its quality branch and its distributions.

`warm_up_loss` is TOOD's loss while ATSS assigns, `composed_loss` TOOD's loss after that (paper section 3.2.2) and the
loss of all other detectors; `config.loss` composes it. A new classification or box loss is one function and one entry
in CLS_LOSSES or BOX_LOSSES.

Axes: B images · N predictions of all levels · M padded objects · C classes. Boxes are xyxy in canvas pixels unless the
name says strides. Sums run over the whole (global) batch: on a mesh, a sum over a sharded array is global. Where a step
has several parts (`train.accumulate_steps`), the losses of each are divided by the sums over all (`Divisors`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from tood_jax.config import Config, LossConfig
from tood_jax.criterion.assign import Locations, assign_on_devices, batch_locations
from tood_jax.criterion.targets import SAFE_BOX, Targets, make_targets
from tood_jax.losses.classification import focal_loss, quality_focal_loss
from tood_jax.losses.regression import distribution_focal_loss, giou_loss, smooth_l1_loss
from tood_jax.types import Assignment, Batch, Predictions


class Losses(NamedTuple):
    """Weighted parts of the loss per level (P3 first). A part that a config lacks is zero."""

    cls: Float[Array, "5"]
    box: Float[Array, "5"]
    quality: Float[Array, "5"]
    distribution: Float[Array, "5"]

    @property
    def total(self) -> Float[Array, ""]:
        """The loss: the sum of these four parts."""
        return jnp.stack([self.cls, self.box, self.quality, self.distribution]).sum()


def loss_parts(config: Config) -> tuple[str, ...]:
    """Return the fields of `Losses` that a config has."""
    quality = ("quality",) if config.head.quality != "none" else ()
    distribution = ("distribution",) if config.head.box_coding == "binned_distances" else ()
    return ("cls", "box", *quality, *distribution)


class Divisors(NamedTuple):
    """Sums over the images of a batch that the parts of its loss are divided by, constants to autodiff.

    The parts of an accumulated step add theirs (`tood_jax/training/train_step.py`); each is at least 1 after that.
    """

    cls: Float[Array, ""]  # of `config.loss.normalizer`
    box: Float[Array, ""]  # Σ of the box weights, also of the distributions
    quality: Float[Array, ""]  # positives

    def at_least_one(self) -> "Divisors":
        """Return what the losses are divided by; it applies to the sums of the whole step."""
        return Divisors(*(jnp.maximum(x, 1) for x in self))


class TargetSummary(NamedTuple):
    """Sums over the objects and positives of a batch, float32, constants to autodiff."""

    objects: Float[Array, ""]
    positives: Float[Array, "5"]  # per level, P3 first
    target_sum: Float[Array, ""]  # of the classification targets of the positives (TOOD: Σ t̂)
    iou_sum: Float[Array, ""]  # of the IoU of the positives: of the predicted box with the object
    rescued: Float[Array, ""]  # objects whose locations ATSS chose in the task-aligned phase
    divisors: Divisors  # before the minimum of 1


class LossTerms(NamedTuple):
    """Classification and box loss of each prediction before the division, and what the other parts need."""

    cls: Float[Array, "b n"]
    box: Float[Array, "b n"]  # weighted
    box_weight: Float[Array, "b n"]  # 0 where there is no object
    divisors: Divisors  # before the minimum of 1
    target_sum: Float[Array, ""]  # Σ of the classification targets


def detection_losses(pred: Predictions, batch: Batch, in_tal_phase: Any, config: Config) -> Losses:
    """Return the losses alone of `losses_and_targets`."""
    return losses_and_targets(pred, batch, in_tal_phase, config)[0]


class LossMaps(NamedTuple):
    """Weighted and divided losses of each prediction; their sums over the batch are `Losses`."""

    cls: Float[Array, "b n"]  # over the classes; of negatives, too
    box: Float[Array, "b n"]
    quality: Float[Array, "b n"]
    distribution: Float[Array, "b n"]


def losses_and_targets(
    pred: Predictions, batch: Batch, in_tal_phase: Any, config: Config, divisors: Divisors | None = None
) -> tuple[Losses, TargetSummary]:
    """Return the losses of a batch and a summary of the targets behind them.

    Args:
        pred: of the batch's canvas.
        in_tal_phase: bool, may be traced; for the task_aligned assigner only: False in the ATSS warm-up, True after it.
        divisors: sums over the step that this batch is a part of; None if the batch is the whole step.
    """
    maps, assignment, targets, terms = loss_maps(pred, batch, in_tal_phase, config, divisors)
    pyramid = batch_locations(batch, config).pyramid

    def by_level(x):  # five sums: what devices exchange are five numbers, not N
        return jnp.stack([x[:, level].sum() for level in pyramid.level_slices])

    summary = _summarize(batch, targets, terms, assignment, by_level)
    return Losses(*(by_level(x) for x in maps)), lax.stop_gradient(summary)


def loss_maps(
    pred: Predictions, batch: Batch, in_tal_phase: Any, config: Config, divisors: Divisors | None = None
) -> tuple[LossMaps, Assignment, Targets, LossTerms]:
    """Return the losses of each prediction, and the assignment and targets behind them.

    Arguments are those of `losses_and_targets`.
    """
    locations = batch_locations(batch, config)
    assignment = assign_on_devices(pred, batch, in_tal_phase, config)
    targets = make_targets(pred, batch, locations, assignment)
    if config.assigner.kind == "task_aligned":
        composed, warm_up = (
            partial(loss, locations=locations, config=config) for loss in (composed_loss, warm_up_loss)
        )
        terms = lax.cond(in_tal_phase, composed, warm_up, pred, targets)
    else:
        terms = composed_loss(pred, targets, locations, config)
    divisor = (terms.divisors if divisors is None else divisors).at_least_one()

    quality = distribution = jnp.zeros_like(terms.cls)
    if pred.quality is not None:
        quality_target = getattr(targets, config.head.quality)
        quality = jnp.where(targets.positive, optax.sigmoid_binary_cross_entropy(pred.quality, quality_target), 0)
        quality = quality * config.loss.quality_loss_weight / divisor.quality
    if config.head.box_coding == "binned_distances":
        distribution = _distribution_losses(pred, targets, locations) * terms.box_weight
        distribution = distribution * config.loss.distribution_loss_weight / divisor.box
    maps = LossMaps(terms.cls / divisor.cls, terms.box / divisor.box, quality, distribution)
    return maps, assignment, targets, terms


def warm_up_loss(pred: Predictions, targets: Targets, locations: Locations, config: Config) -> LossTerms:
    """Return TOOD's loss while ATSS assigns (published code); of `config.loss` it reads box_loss_weight alone.

    Focal loss towards 1, divided by the number of positives; GIoU weighted by centerness, divided by its sum.
    """
    target = targets.positive.astype(targets.iou.dtype)
    weight = jnp.where(targets.positive, targets.centerness, 0)
    cls = _sum_over_classes(focal_loss(pred.scores, targets.one_hot(target, pred.scores.shape[-1])), targets)
    box = _giou_losses(pred, targets, locations, targets.positive) * weight * config.loss.box_loss_weight
    divisors = Divisors(cls=target.sum(), box=weight.sum(), quality=_count_positives(targets, config.loss))
    return LossTerms(cls, box, weight, divisors, target.sum())


def composed_loss(pred: Predictions, targets: Targets, locations: Locations, config: Config) -> LossTerms:
    """Return the loss that `config.loss` composes.

    As published for TOOD (equations 11 and 12): quality focal loss towards t̂, divided by Σ t̂; GIoU in strides weighted
    by t̂, divided by Σ t̂.
    """
    loss, num_classes = config.loss, pred.scores.shape[-1]
    one = jnp.ones_like(targets.iou)
    values = {"alignment": targets.soft_label, "one": one, "centerness": targets.centerness, "iou": targets.iou}
    target = jnp.where(targets.positive, values[loss.cls_target], 0)
    values["score"] = lax.stop_gradient(pred.scores).max(axis=-1)
    weight = jnp.where(targets.positive, values[loss.box_weight], 0)

    count = _count_positives(targets, loss)
    by_normalizer = {"targets": target.sum(), "positives_and_images": count + len(targets.positive)}
    divisors = Divisors(
        cls=by_normalizer.get(loss.normalizer, count),
        box=count if loss.box_weight == "one" else weight.sum(),
        quality=count,
    )

    cls = CLS_LOSSES[loss.cls](pred.scores, targets.one_hot(target, num_classes), loss)
    cls = _sum_over_classes(cls, targets)
    box = BOX_LOSSES[loss.box](pred, targets, locations) * weight * loss.box_loss_weight
    return LossTerms(cls, box, weight, divisors, target.sum())


def _sum_over_classes(cls: Float[Array, "b n c"], targets: Targets) -> Float[Array, "b n"]:
    return jnp.where(targets.counted[..., None], cls, 0).sum(axis=2)


def _count_positives(targets: Targets, loss: LossConfig) -> Float[Array, ""]:
    """Return the number of positives of the batch, with "positives_per_image" at least 1 of each image."""
    per_image = targets.positive.sum(axis=1)  # [B]
    if loss.normalizer == "positives_per_image":
        per_image = jnp.maximum(per_image, 1)
    return per_image.sum().astype(targets.iou.dtype)


def _giou_losses(
    pred: Predictions, targets: Targets, locations: Locations, learning: Bool[Array, "b n"]
) -> Float[Array, "b n"]:
    """Return the GIoU loss of the predictions in `learning`, 0 of all others."""
    learning, safe = learning[..., None], jnp.asarray(SAFE_BOX)
    gt_boxes = jnp.where(learning, targets.gt_boxes / locations.strides, safe)
    return giou_loss(jnp.where(learning, pred.boxes, safe), gt_boxes)


def _giou_or_rescue(pred: Predictions, targets: Targets, locations: Locations) -> Float[Array, "b n"]:
    """Return the GIoU loss, or for positives of rescued objects smooth L1 of box logits and offsets.

    GIoU has almost no gradient for boxes that are far too large or too small or whose sides are sampled outside the
    map, and those of rescued objects are. They learn the logits of their box and offsets of 0, averaged over the four
    and the eight.
    """
    rescued = targets.rescued
    is_bounded = locations.box_coder.kind == "binned_distances"
    if rescued is None or pred.box_logits is None or is_bounded:
        return _giou_losses(pred, targets, locations, targets.positive)
    of_rescued = smooth_l1_loss(_logit_differences(pred, targets, locations, rescued)).mean(axis=-1)
    if pred.offsets is not None:
        of_rescued += smooth_l1_loss(jnp.where(rescued[..., None], pred.offsets, 0)).mean(axis=-1)
    return _giou_losses(pred, targets, locations, targets.positive & ~rescued) + of_rescued


def _logit_differences(
    pred: Predictions, targets: Targets, locations: Locations, learning: Bool[Array, "b n"]
) -> Float[Array, "b n 4"]:
    """Return the box logits less their targets, 0 outside `learning`."""
    points, anchors = locations.points / locations.strides, locations.anchors / locations.strides
    gt_boxes = jnp.where(learning[..., None], targets.gt_boxes / locations.strides, jnp.asarray(SAFE_BOX))
    goal = locations.box_coder.encode(gt_boxes, points, anchors)
    return jnp.where(learning[..., None], pred.box_logits - goal, 0)


def _distribution_losses(pred: Predictions, targets: Targets, locations: Locations) -> Float[Array, "b n"]:
    """Return the distribution focal loss, averaged over the four sides."""
    strides = locations.strides
    distances = locations.box_coder.encode(
        targets.gt_boxes / strides, locations.points / strides, locations.anchors / strides
    )
    logits = pred.box_logits.reshape(*pred.box_logits.shape[:-1], 4, locations.box_coder.bins + 1)
    return distribution_focal_loss(logits, distances).mean(axis=-1)


CLS_LOSSES: dict[str, Callable[[Array, Array, LossConfig], Array]] = {
    "quality_focal": lambda scores, target, loss: quality_focal_loss(scores, target, loss.focal_gamma),
    "focal": lambda scores, target, loss: focal_loss(scores, target, loss.focal_alpha, loss.focal_gamma),
}
"""(scores [B, N, C], target [B, N, C], config.loss) to the loss of each element."""

BOX_LOSSES: dict[str, Callable[[Predictions, Targets, Locations], Array]] = {
    "giou": _giou_or_rescue,
    "l1": lambda pred, targets, locations: jnp.abs(_logit_differences(pred, targets, locations, targets.positive)).sum(
        axis=-1
    ),
    "smooth_l1": lambda pred, targets, locations: smooth_l1_loss(
        _logit_differences(pred, targets, locations, targets.positive)
    ).sum(axis=-1),
}
"""(predictions, targets, locations) to the loss [B, N] of each prediction, 0 where there is no object."""


def _summarize(
    batch: Batch,
    targets: Targets,
    terms: LossTerms,
    assignment: Assignment,
    by_level: Callable[[Array], Array],
) -> TargetSummary:
    rescued = jnp.zeros(()) if assignment.rescued is None else assignment.rescued.sum()
    return TargetSummary(
        objects=batch.gt_mask.sum().astype(jnp.float32),
        positives=by_level(targets.positive).astype(jnp.float32),
        target_sum=terms.target_sum,
        iou_sum=jnp.where(targets.positive, targets.iou, 0).sum(),
        rescued=rescued.astype(jnp.float32),
        divisors=terms.divisors,
    )
