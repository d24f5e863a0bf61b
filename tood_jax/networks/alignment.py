"""What all heads share: their maps, their predictors, and the explicit task alignment (paper section 3.1).

Axes: B images · H, W a level's cells · A predictions a cell · R raw numbers a prediction · C classes.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tood_jax.geometry.sampling import sample_sides_of_levels
from tood_jax.networks.convolution import conv
from tood_jax.networks.layers import Dtype, relu, sigmoid_geometric_mean

PRIOR_LOGIT = float(-np.log((1 - 0.01) / 0.01))  # logits start at a probability of 0.01


Hidden = tuple[Float[Array, "b h w k"], Float[Array, "b h w k"]]  # before ReLU: of the scores, of the offsets


class HeadMaps(NamedTuple):
    """What a head says of one level, float32."""

    scores: Float[Array, "b h w ac"]  # 0–1
    boxes: Float[Array, "b h w a4"]  # xyxy in strides
    raw: Float[Array, "b h w ar"]  # the numbers that the boxes were decoded from, times the level's scale
    quality: Float[Array, "b h w a"] | None  # logits


def normal(std: float) -> nn.initializers.Initializer:
    return nn.initializers.normal(std)


def predictor(channels: int, name: str, dtype: Dtype, *, size: int = 3, std: float = 0.01, bias: float = 0.0):
    """A convolution with a bias that ends a branch."""
    start = nn.initializers.constant(bias)
    return conv(channels, size, name=name, dtype=dtype, bias=True, kernel_init=normal(std), bias_init=start)


class Alignment(nn.Module):
    """Aligned scores √(σ(P)·σ(M)) and box sides sampled at learnt offsets (equations 4 and 5); or neither.

    M and the offsets come from the features through a 1×1 and a 3×3 convolution each.

    Attributes:
        channels: between the two convolutions.
        active: False leaves scores at σ(P) and boxes as they are, without any parameter.
    """

    channels: int
    active: bool
    dtype: Dtype

    def setup(self):
        if self.active:
            self.cls_alignment = [
                predictor(self.channels, "cls_alignment_0", self.dtype, size=1),
                predictor(1, "cls_alignment_1", self.dtype, bias=PRIOR_LOGIT),
            ]
            self.reg_alignment = [
                predictor(self.channels, "reg_alignment_0", self.dtype, size=1, std=0.001),
                predictor(8, "reg_alignment_1", self.dtype, std=0.001),
            ]

    def hidden(self, features: Float[Array, "b h w f"]) -> Hidden | None:
        """What the first convolutions say, before ReLU; None without alignment."""
        return (self.cls_alignment[0](features), self.reg_alignment[0](features)) if self.active else None

    def __call__(
        self, logits: Float[Array, "b h w c"], boxes: Float[Array, "b h w n"], hidden: Hidden | None
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w n"]]:
        """(scores 0–1, boxes) of float32 logits and boxes xyxy in strides."""
        if hidden is None:
            return nn.sigmoid(logits), boxes
        alignment, offsets = self.predict(*hidden)
        return align_maps(logits, alignment, boxes, offsets)

    def predict(
        self, cls_hidden: Float[Array, "b h w k"], reg_hidden: Float[Array, "b h w k"]
    ) -> tuple[Float[Array, "b h w 1"], Float[Array, "b h w 8"]]:
        """M, a logit, and the offsets (dy, dx) a side in cells, float32, of the first convolutions' outputs."""
        alignment = self.cls_alignment[1](relu(cls_hidden)).astype(jnp.float32)
        return alignment, self.reg_alignment[1](relu(reg_hidden)).astype(jnp.float32)


def align_maps(
    logits: Float[Array, "b h w c"],
    alignment: Float[Array, "b h w 1"],
    boxes: Float[Array, "b h w 4"],
    offsets: Float[Array, "b h w 8"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w 4"]]:
    """(aligned scores 0–1, aligned boxes) of one level (equations 4 and 5)."""
    rows, row_offsets = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (boxes, offsets))
    aligned = align_boxes(rows, row_offsets, ((boxes.shape[1], boxes.shape[2]),))
    return sigmoid_geometric_mean(logits, alignment), aligned.reshape(boxes.shape)


def align_boxes(
    boxes: Float[Array, "b n 4"], offsets: Float[Array, "b n 8"], shapes: tuple[tuple[int, int], ...]
) -> Float[Array, "b n 4"]:
    """The boxes of some levels in a row, each side sampled at its offset; `shapes` as in `sample_sides_of_levels`."""
    sampled = sample_sides_of_levels(boxes, offsets.reshape(*offsets.shape[:2], 4, 2), shapes)
    # A box that sampling turned inside out has no meaningful GIoU: the box before sampling stands in.
    inside_out = (sampled[..., :2] > sampled[..., 2:]).any(axis=-1, keepdims=True)
    return jnp.where(inside_out, boxes, sampled)
