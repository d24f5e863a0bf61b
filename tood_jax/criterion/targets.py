"""What the predictions of a batch are to learn, by an assignment.

Axes: B images · N predictions of all levels · C classes. Boxes are xyxy in canvas pixels unless the name says strides.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.assigners.base import IGNORED
from tood_jax.criterion.assign import Locations
from tood_jax.geometry.boxes import aligned_iou, centerness
from tood_jax.types import Assignment, Batch, Predictions

SAFE_BOX = (0.0, 0.0, 1.0, 1.0)  # replaces the box of predictions without an object: all their gradients are zero


class Targets(NamedTuple):
    """What the positive predictions learn; the values of all others mean nothing."""

    positive: Bool[Array, "b n"]
    counted: Bool[Array, "b n"]  # False where a prediction is in the padding or ignored by the assigner
    gt_boxes: Float[Array, "b n 4"]  # pixels
    gt_labels: Int[Array, "b n"]
    soft_label: Float[Array, "b n"]  # t̂, or 1
    centerness: Float[Array, "b n"]
    iou: Float[Array, "b n"]  # of the predicted box with the object
    rescued: Bool[Array, "b n"] | None  # its object is assigned by ATSS in the task-aligned phase; None if none ever is

    def one_hot(self, values: Float[Array, "b n"], num_classes: int) -> Float[Array, "b n c"]:
        """Return `values` of the positives at the class of their object, 0 elsewhere."""
        is_class = jnp.arange(num_classes) == self.gt_labels[..., None]
        return jnp.where(self.positive[..., None] & is_class, values[..., None], 0)


def make_targets(pred: Predictions, batch: Batch, locations: Locations, assignment: Assignment) -> Targets:
    """Return the targets of an assignment, constants to autodiff."""
    gt_index = jnp.maximum(assignment.gt_index, 0)
    gt_boxes = jnp.take_along_axis(batch.gt_boxes, gt_index[..., None], axis=1)  # [B, N, 4]
    return Targets(
        positive=assignment.gt_index >= 0,
        counted=locations.valid & (assignment.gt_index != IGNORED),
        gt_boxes=gt_boxes,
        gt_labels=jnp.take_along_axis(batch.gt_labels, gt_index, axis=1),
        soft_label=assignment.soft_label,
        centerness=centerness(locations.points, gt_boxes),
        iou=aligned_iou(lax.stop_gradient(pred.boxes), gt_boxes / locations.strides),
        rescued=None if assignment.rescued is None else _of_rescued_objects(assignment),
    )


def _of_rescued_objects(assignment: Assignment) -> Bool[Array, "b n"]:
    """Return which positives belong to a rescued object."""
    if assignment.rescued.shape[1] == 0:
        return jnp.zeros(assignment.gt_index.shape, bool)
    is_rescued = jnp.take_along_axis(assignment.rescued, jnp.maximum(assignment.gt_index, 0), axis=1)
    return is_rescued & (assignment.gt_index >= 0)
