"""The detector, from pixels to predictions, and from predictions to detections.

Axes: B images · N predictions of all levels · C classes. Boxes are xyxy in canvas pixels unless the name says strides.
The loss of the predictions is in `criterion/`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from tood_jax.config import Config, HeadConfig
from tood_jax.geometry.box_coder import BoxCoder
from tood_jax.geometry.locations import Pyramid, locations_in_image, make_pyramid
from tood_jax.ops.image_area import WHOLE, image_areas
from tood_jax.postprocess import detect
from tood_jax.types import Batch, Detections, Predictions


class Detector(nn.Module):
    """Backbone, neck and head as one network."""

    backbone: nn.Module
    neck: nn.Module
    head: nn.Module
    masked: bool = True  # whether the padding is kept out of predictions (model.padding)

    def __call__(
        self, images: Float[Array, "b h w 3"], train: bool = False, sizes: Int[Array, "b 2"] | None = None
    ) -> Predictions:
        """Return the predictions of normalised images, for every location.

        Args:
            images: zero outside of the images' own areas.
            train: whether norms take batch statistics.
            sizes: (height, width) of each image in the canvas, pixels: predictions inside do not depend on the rest of
                the canvas, and outside they mean nothing. None, or a detector that is not `masked`: the padding counts
                as a part of the image.
        """
        areas = WHOLE if sizes is None or not self.masked else image_areas(sizes, *images.shape[1:3])
        c2_to_c5 = self.backbone(images, train, areas)
        levels = self.neck(c2_to_c5[1:], areas[3:])
        scores, boxes, box_logits, quality, offsets = zip(*self.head(levels, areas[3:]), strict=True)
        per_location = boxes[0].shape[-1] // 4

        def in_a_row(maps):
            maps = [m.reshape(m.shape[0], -1, m.shape[-1] // per_location) for m in maps]
            return jnp.concatenate(maps, axis=1)

        return Predictions(
            in_a_row(scores),
            in_a_row(boxes),
            in_a_row(box_logits),
            None if quality[0] is None else in_a_row(quality)[..., 0],
            None if offsets[0] is None else in_a_row(offsets),
        )


def normalize_images(
    images: UInt8[Array, "b h w 3"], sizes: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "b h w 3"]:
    """Return (RGB − mean) / std inside each image's own area, and 0 outside."""
    x = (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
    rows = lax.broadcasted_iota(jnp.int32, (*images.shape[:3], 1), 1) < sizes[:, 0, None, None, None]
    columns = lax.broadcasted_iota(jnp.int32, (*images.shape[:3], 1), 2) < sizes[:, 1, None, None, None]
    return jnp.where(rows & columns, x, 0)


def make_box_coder(head: HeadConfig) -> BoxCoder:
    """Return the box coder of a config's head."""
    return BoxCoder(
        kind=head.box_coding,
        unit=head.distance_unit,
        bins=head.distance_bins,
        delta_stds=head.delta_stds,
        point_offset=head.point_offset,
        anchor_scale=head.anchor_scale,
        anchor_octaves=head.anchor_octaves,
        anchor_ratios=head.anchor_ratios,
    )


def canvas_pyramid(batch: Batch, per_location: int = 1) -> Pyramid:
    """Return the locations of the batch's canvas, each `per_location` times in a row."""
    height, width = batch.images.shape[1:3]
    return make_pyramid(height, width, per_location)


def detection_inputs(pred: Predictions, batch: Batch, pyramid: Pyramid) -> tuple[Any, ...]:
    """Return the arrays that `detect` takes: scores, boxes in pixels, valid locations, sizes, scales and quality."""
    return (
        pred.scores,
        pred.boxes * pyramid.strides[:, None],
        locations_in_image(pyramid, batch.sizes),
        batch.sizes,
        batch.scales,
        None if pred.quality is None else nn.sigmoid(pred.quality),
    )


def detections(pred: Predictions, batch: Batch, config: Config) -> Detections:
    """Return the detections of a batch, in pixels of the original images."""
    pyramid = canvas_pyramid(batch, config.head.anchors_per_location)
    options = config.detect
    return detect(
        *detection_inputs(pred, batch, pyramid),
        level_slices=pyramid.level_slices,
        score_threshold=options.score_threshold,
        candidates_per_level=options.candidates_per_level,
        nms_iou=options.nms_iou,
        max_detections=options.max_detections,
        clip_boxes=options.clip_boxes,
        clip_margin=options.clip_margin,
        geometric_mean=options.quality_fusion == "geometric_mean",
        score_voting=options.score_voting,
    )
