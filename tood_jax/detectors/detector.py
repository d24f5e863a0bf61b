"""The network of every detector here, from pixels to predictions, and from predictions to detections.

Axes: B images · N predictions of all levels · C classes. Boxes are xyxy in canvas pixels unless the name says strides.
What is learnt, and where, stands in `targets.py` and `losses.py`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

from tood_jax.config import Config, HeadConfig
from tood_jax.geometry.coding import BoxCoding
from tood_jax.geometry.pyramid import Pyramid, cells_in_image, pyramid
from tood_jax.postprocess import detect
from tood_jax.types import Batch, Detections, Predictions


class Detector(nn.Module):
    """Backbone, neck and head as one network."""

    backbone: nn.Module
    neck: nn.Module
    head: nn.Module

    def __call__(self, images: Float[Array, "b h w 3"], train: bool = False) -> Predictions:
        """Normalised images to the predictions of every cell."""
        c2_to_c5 = self.backbone(images, train)
        scores, boxes, raw, quality = zip(*self.head(self.neck(c2_to_c5[1:])), strict=True)
        per_cell = boxes[0].shape[-1] // 4

        def in_a_row(maps):
            maps = [m.reshape(m.shape[0], -1, m.shape[-1] // per_cell) for m in maps]
            return jnp.concatenate(maps, axis=1)

        return Predictions(
            in_a_row(scores), in_a_row(boxes), in_a_row(raw), None if quality[0] is None else in_a_row(quality)[..., 0]
        )


def normalize_images(
    images: UInt8[Array, "b h w 3"], sizes: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "b h w 3"]:
    """(RGB − mean) / std inside each image's own area, zero outside (the padding is zero after normalisation)."""
    x = (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
    rows = lax.broadcasted_iota(jnp.int32, (*images.shape[:3], 1), 1) < sizes[:, 0, None, None, None]
    columns = lax.broadcasted_iota(jnp.int32, (*images.shape[:3], 1), 2) < sizes[:, 1, None, None, None]
    return jnp.where(rows & columns, x, 0)


def box_coding(head: HeadConfig) -> BoxCoding:
    """How the head of a config speaks of boxes."""
    return BoxCoding(
        kind=head.box_coding,
        unit=head.distance_unit,
        bins=head.distance_bins,
        delta_stds=head.delta_stds,
        point_offset=head.point_offset,
        anchor_scale=head.anchor_scale,
        anchor_octaves=head.anchor_octaves,
        anchor_ratios=head.anchor_ratios,
    )


def canvas_pyramid(batch: Batch, per_cell: int = 1) -> Pyramid:
    """The cells of the batch's canvas, each `per_cell` times."""
    height, width = batch.images.shape[1:3]
    return pyramid(height, width, per_cell)


def detections(pred: Predictions, batch: Batch, config: Config) -> Detections:
    """Predictions of a batch to its detections in pixels of the original images."""
    cells = canvas_pyramid(batch, config.head.anchors_per_cell)
    options = config.detect
    return detect(
        pred.scores,
        pred.boxes * cells.strides[:, None],
        cells_in_image(cells, batch.sizes),
        batch.sizes,
        batch.scales,
        None if pred.quality is None else nn.sigmoid(pred.quality),
        level_slices=cells.level_slices,
        score_threshold=options.score_threshold,
        candidates_per_level=options.candidates_per_level,
        nms_iou=options.nms_iou,
        max_detections=options.max_detections,
        clip_boxes=options.clip_boxes,
        clip_margin=options.clip_margin,
        geometric_mean=options.quality_fusion == "geometric_mean",
        score_voting=options.score_voting,
    )
