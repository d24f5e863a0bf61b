"""A second assignment for objects that task alignment learning has lost.

The targets of task alignment learning follow the predictions: t̂ is never larger than the IoU of an object's best
prediction. Once the boxes of an object are bad, its targets and box weights are near 0, so nothing teaches the network
to predict better boxes, and the object stays lost. Such objects get the locations of ATSS, which needs no prediction.

Axes: N locations · M padded objects.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.geometry.boxes import centerness
from tood_jax.types import Assignment


def add_rescued(
    task_aligned: Assignment, atss: Assignment, points: Float[Array, "n 2"], gt_boxes: Float[Array, "m 4"]
) -> Assignment:
    """Add the ATSS locations of lost objects to one image's task-aligned assignment.

    Locations of other objects stay as they are, so ATSS gets what they leave.

    Args:
        task_aligned: by `assign_task_aligned`; its `rescued` are the lost objects, which have no location there.
        atss: by `assign_atss` of the lost objects alone (`gt_mask` = `task_aligned.rescued`).
        points: the locations, pixels.
        gt_boxes: padded objects, xyxy in pixels.

    Returns:
        Assignment over [N]. `soft_label` of an added location is its centerness; `rescued` are the lost objects that
        got at least one location.
    """
    if len(gt_boxes) == 0:
        return task_aligned
    added = (atss.gt_index >= 0) & (task_aligned.gt_index < 0)  # [N]
    boxes = gt_boxes[jnp.maximum(atss.gt_index, 0)]  # [N, 4]
    substitute = atss._replace(soft_label=lax.stop_gradient(centerness(points, boxes)))
    gt_index, metric, iou, soft_label = (
        jnp.where(added, new, old) for new, old in zip(substitute[:4], task_aligned[:4], strict=True)
    )
    rescued = jnp.zeros(len(gt_boxes), bool).at[gt_index].max(added, mode="drop")
    return Assignment(gt_index, metric, iou, soft_label, rescued)
