"""Assignment by the highest overlap with an anchor (RetinaNet: Lin et al. 2017, section 4; Ren et al. 2015).

Axes: N anchors · M padded objects · G objects per chunk. Boxes are xyxy in canvas pixels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tood_jax.assigners.base import fold_in_chunks, full_assignment
from tood_jax.geometry.boxes import pairwise_iou
from tood_jax.ops.materialize import compute_once
from tood_jax.types import Assignment


def assign_max_iou(
    anchors: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    gt_boxes: Float[Array, "m 4"],
    gt_mask: Bool[Array, " m"],
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    min_positive_iou: float = 0.0,
    chunk: int = 64,
) -> Assignment:
    """Assign one image's anchors by geometry alone.

    An anchor takes the object it overlaps most (the first of equals) from `positive_iou` on, is background below
    `negative_iou`, and in between counts for nothing. Then each object takes the anchors that overlap it most, all of
    them if several tie and whatever they had before; of two objects that take the same anchor so, the later one keeps
    it. (The published code lets an object that no anchor overlaps take every anchor with IoU 0; here it takes none.)

    Args:
        anchors: pixels.
        valid: False for anchors of locations outside the image's padded area.
        gt_boxes: padded objects, pixels.
        gt_mask: True for objects, False for padding.
        positive_iou: 0–1, the least IoU of a positive.
        negative_iou: 0–1; anchors of lower IoU are background.
        min_positive_iou: 0–1, the least IoU at which an object takes its best anchors.
        chunk: objects processed at a time; memory grows with chunk · N.

    Returns:
        Assignment over [N] with −2 where an anchor counts for nothing; metric and soft_label are 1 on positives, iou
        is the anchor's.
    """
    anchors, valid, gt_boxes, gt_mask = (jnp.asarray(x) for x in (anchors, valid, gt_boxes, gt_mask))
    num_anchors = anchors.shape[0]

    def fold(state, index, gt_boxes, gt_mask):
        best, owner, best_anchor_of = state
        iou = jnp.where(valid & gt_mask[:, None], pairwise_iou(gt_boxes, anchors), -1.0)
        iou = compute_once(iou)  # [G, N]: compared with its own maximum below, which must have the same rounding
        highest, first = iou.max(axis=0), index[iou.argmax(axis=0)]  # [N]
        owner = jnp.where(highest > best, first, owner)
        best = jnp.maximum(best, highest)
        own_best = iou.max(axis=1, keepdims=True)  # [G, 1]
        is_best = (iou == own_best) & (own_best > 0) & (own_best >= min_positive_iou)
        best_anchor_of = jnp.maximum(best_anchor_of, jnp.where(is_best, index[:, None], -1).max(axis=0))
        return best, owner, best_anchor_of

    no_object = jnp.full(num_anchors, -1, jnp.int32)
    objects = jnp.arange(gt_boxes.shape[0], dtype=jnp.int32), gt_boxes, gt_mask
    best, owner, best_anchor_of = fold_in_chunks(
        fold, (jnp.full(num_anchors, -1.0), no_object, no_object), objects, chunk
    )
    gt_index = jnp.where(best >= positive_iou, owner, jnp.where(best < negative_iou, -1, -2))
    return full_assignment(jnp.where(best_anchor_of >= 0, best_anchor_of, gt_index), anchors, gt_boxes)


def assign_max_iou_batch(anchors, valid, gt_boxes, gt_mask, **options) -> Assignment:
    """Apply `assign_max_iou` to a batch: every argument except `anchors` has B in front."""
    return jax.vmap(lambda *image: assign_max_iou(*image, **options), in_axes=(None, 0, 0, 0))(
        anchors, valid, gt_boxes, gt_mask
    )
