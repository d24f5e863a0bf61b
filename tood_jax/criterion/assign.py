"""Which locations learn which object: the assigner of a config on the predictions of a batch.

A new assigner is one file in `assigners/` and one entry in ASSIGNERS.

Axes: B images · N predictions of all levels · M padded objects. Boxes are xyxy in canvas pixels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from tood_jax.assigners.atss import assign_atss_batch
from tood_jax.assigners.center_sampling import assign_center_sampling_batch
from tood_jax.assigners.fovea import assign_fovea_batch
from tood_jax.assigners.max_iou import assign_max_iou_batch
from tood_jax.assigners.min_positives import Objects, add_best_locations, without_positives
from tood_jax.assigners.ota import assign_ota_batch
from tood_jax.assigners.paa import assign_paa_batch
from tood_jax.assigners.rescue import add_rescued
from tood_jax.assigners.simota import assign_simota_batch
from tood_jax.assigners.task_aligned import assign_task_aligned_batch
from tood_jax.config import AssignerConfig, Config, LossConfig
from tood_jax.distributed.mesh import map_per_device
from tood_jax.geometry.box_coder import BoxCoder
from tood_jax.geometry.locations import Pyramid, locations_in_image
from tood_jax.losses.classification import focal_loss
from tood_jax.losses.regression import giou_loss
from tood_jax.models.detector import canvas_pyramid, make_box_coder
from tood_jax.types import Assignment, Batch, Predictions


class Locations(NamedTuple):
    """What is known of the N predictions of a batch before any network ran."""

    pyramid: Pyramid
    box_coder: BoxCoder
    points: Float[Array, "n 2"]  # (x, y) pixels, with the box coder's offset
    anchors: Float[Array, "n 4"]  # xyxy pixels
    strides: Float[Array, "n 1"]  # pixels
    valid: Bool[Array, "b n"]  # False in the padding of an image


def batch_locations(batch: Batch, config: Config) -> Locations:
    """Return the locations of a batch's canvas."""
    box_coder = make_box_coder(config.head)
    pyramid = canvas_pyramid(batch, box_coder.per_location)
    return Locations(
        pyramid,
        box_coder,
        jnp.asarray(pyramid.points_at(box_coder.point_offset)),
        jnp.asarray(pyramid.anchors_of(box_coder.base_anchors())),
        jnp.asarray(pyramid.strides[:, None]),
        locations_in_image(pyramid, batch.sizes),
    )


def assign(pred: Predictions, batch: Batch, locations: Locations, in_tal_phase: Any, config: Config) -> Assignment:
    """Return the assignment of a batch by the assigner of the config, constant to autodiff.

    Args:
        in_tal_phase: bool, may be traced; for task_aligned only: False in the ATSS warm-up, True after it.
    """
    pred = lax.stop_gradient(pred)
    arguments = (pred, batch, locations, config)
    run = partial(ASSIGNERS[config.assigner.kind], *arguments)
    if config.assigner.kind == "task_aligned":
        return lax.stop_gradient(lax.cond(in_tal_phase, run, partial(_warm_up, *arguments)))
    return lax.stop_gradient(run())


def assign_on_devices(pred: Predictions, batch: Batch, in_tal_phase: Any, config: Config) -> Assignment:
    """Return the assignment of a batch, computed for each image where it lies; arguments are those of `assign`."""

    def assign_images(pred, batch, in_tal_phase):
        return assign(pred, batch, batch_locations(batch, config), in_tal_phase[0], config)

    phase = jnp.broadcast_to(jnp.asarray(in_tal_phase), len(batch.images))
    return map_per_device(assign_images)(lax.stop_gradient(pred), batch, phase)


def _task_aligned(pred: Predictions, batch: Batch, locations: Locations, config: Config) -> Assignment:
    options = config.assigner
    assignment = assign_task_aligned_batch(
        pred.scores, pred.boxes * locations.strides, locations.points, locations.valid,
        batch.gt_boxes, batch.gt_labels, batch.gt_mask,
        topk=options.topk, alpha=options.alpha, beta=options.beta, min_iou=options.rescue_iou,
    )  # fmt: skip
    if options.rescue_iou > 0:
        assignment = _with_rescued(assignment, pred, batch, locations, config)
    if options.min_positives > 0:
        assignment = _with_best_locations(assignment, pred, batch, locations, options)
    return assignment


def _with_rescued(
    assignment: Assignment, pred: Predictions, batch: Batch, locations: Locations, config: Config
) -> Assignment:
    def with_rescued():
        atss = _atss(pred, batch._replace(gt_mask=assignment.rescued), locations, config)
        return jax.vmap(add_rescued, in_axes=(0, 0, None, 0))(assignment, atss, locations.points, batch.gt_boxes)

    return lax.cond(assignment.rescued.any(), with_rescued, lambda: assignment)


def _with_best_locations(
    assignment: Assignment, pred: Predictions, batch: Batch, locations: Locations, options: AssignerConfig
) -> Assignment:
    add = partial(add_best_locations, topk=options.topk, alpha=options.alpha, beta=options.beta)

    def with_best_locations():
        objects = Objects(batch.gt_boxes, batch.gt_labels, batch.gt_mask)
        boxes = pred.boxes * locations.strides
        return jax.vmap(add, in_axes=(0, 0, 0, None, None, 0, 0))(
            assignment, pred.scores, boxes, locations.points, locations.strides[:, 0], locations.valid, objects
        )

    is_needed = jax.vmap(without_positives)(assignment.gt_index, batch.gt_mask).any()
    return lax.cond(is_needed, with_best_locations, lambda: assignment)


def _warm_up(pred: Predictions, batch: Batch, locations: Locations, config: Config) -> Assignment:
    """Return the assignment of TOOD's warm-up, by ATSS."""
    assignment = _atss(pred, batch, locations, config)
    return assignment._replace(rescued=jnp.zeros_like(batch.gt_mask) if config.assigner.rescue_iou > 0 else None)


def _atss(pred: Predictions, batch: Batch, locations: Locations, config: Config) -> Assignment:
    return assign_atss_batch(
        locations.anchors, locations.valid, batch.gt_boxes, batch.gt_mask,
        level_slices=locations.pyramid.level_slices, topk=config.assigner.atss_topk,
    )  # fmt: skip


def _max_iou(pred: Predictions, batch: Batch, locations: Locations, config: Config) -> Assignment:
    options = config.assigner
    return assign_max_iou_batch(
        locations.anchors, locations.valid, batch.gt_boxes, batch.gt_mask,
        positive_iou=options.positive_iou, negative_iou=options.negative_iou,
    )  # fmt: skip


def _center_sampling(pred: Predictions, batch: Batch, locations: Locations, config: Config) -> Assignment:
    return assign_center_sampling_batch(
        locations.points, locations.strides[:, 0], locations.valid, batch.gt_boxes, batch.gt_mask,
        level_slices=locations.pyramid.level_slices, radius=config.assigner.center_radius,
    )  # fmt: skip


def _fovea(pred: Predictions, batch: Batch, locations: Locations, config: Config) -> Assignment:
    return assign_fovea_batch(
        locations.valid, batch.gt_boxes, batch.gt_mask, level_shapes=locations.pyramid.shapes
    )  # fmt: skip


def _paa(pred: Predictions, batch: Batch, locations: Locations, config: Config) -> Assignment:
    initial = _max_iou(pred, batch, locations, config)
    return assign_paa_batch(
        initial, _paa_costs(pred, batch, locations, initial, config.loss), locations.valid, batch.gt_mask,
        level_slices=locations.pyramid.level_slices, topk=config.assigner.atss_topk,
    )  # fmt: skip


def _paa_costs(
    pred: Predictions, batch: Batch, locations: Locations, initial: Assignment, loss: LossConfig
) -> Float[Array, "b n"]:
    """Return the loss of each prediction with its initial object, classification plus box (PAA, equation 5)."""
    gt_index = jnp.maximum(initial.gt_index, 0)
    gt_boxes = jnp.take_along_axis(batch.gt_boxes, gt_index[..., None], axis=1) / locations.strides
    gt_labels = jnp.take_along_axis(batch.gt_labels, gt_index, axis=1)
    target = (jnp.arange(pred.scores.shape[-1]) == gt_labels[..., None]).astype(jnp.float32)
    cls = focal_loss(pred.scores, target, loss.focal_alpha, loss.focal_gamma).sum(axis=-1)
    return cls + loss.box_loss_weight * giou_loss(pred.boxes, gt_boxes)


def _transport(
    assign_batch: Callable[..., Assignment], pred: Predictions, batch: Batch, locations: Locations, config: Config
) -> Assignment:
    return assign_batch(
        pred.scores, pred.boxes * locations.strides, locations.points, locations.strides[:, 0], locations.valid,
        batch.gt_boxes, batch.gt_labels, batch.gt_mask, center_radius=config.assigner.center_radius,
    )  # fmt: skip


ASSIGNERS: dict[str, Callable[[Predictions, Batch, Locations, Config], Assignment]] = {
    "task_aligned": _task_aligned,
    "atss": _atss,
    "max_iou": _max_iou,
    "center_sampling": _center_sampling,
    "fovea": _fovea,
    "paa": _paa,
    "simota": partial(_transport, assign_simota_batch),
    "ota": partial(_transport, assign_ota_batch),
}
