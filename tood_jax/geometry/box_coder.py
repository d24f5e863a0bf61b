"""Boxes from the logits that a head predicts, and back: distances to the four sides, or deltas from an anchor.

Axes: H, W locations of a level · A predictions (anchors) per location · R logits per prediction · N all predictions in
a row. Everything is in strides (pixels divided by the level's stride): the point of location (row i, column j) is (j,
i) plus the point offset, and anchors are centred on (j, i). Decoding is differentiable and float32.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tood_jax.geometry.boxes import deltas_to_xyxy, distances_to_xyxy, not_negative, xyxy_to_deltas, xyxy_to_distances

# FoveaBox keeps its targets within e^±2.77 of the unit.
MAX_LOG_DISTANCE = float(np.log(16))
MIN_SCALE = 1e-6  # the smallest learnt scale of which the logarithm is taken


def bin_distances(bins: int) -> np.ndarray:
    """Return [bins + 1], the distance in strides of each bin."""
    return np.arange(bins + 1, dtype=np.float32)


@dataclass(frozen=True)
class BoxCoder:
    """The parameterisation of boxes; the fields are explained in `config.HeadConfig`."""

    kind: Literal["exp_distances", "relu_distances", "binned_distances", "anchor_deltas"] = "exp_distances"
    unit: float = 1.0
    bins: int = 16
    delta_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    point_offset: float = 0.0
    anchor_scale: float = 8.0
    anchor_octaves: int = 1
    anchor_ratios: tuple[float, ...] = (1.0,)

    @property
    def per_location(self) -> int:
        """A, predictions per location."""
        return self.anchor_octaves * len(self.anchor_ratios)

    @property
    def num_logits(self) -> int:
        """R, logits per prediction."""
        return 4 * (self.bins + 1) if self.kind == "binned_distances" else 4

    def base_anchors(self) -> np.ndarray:
        """Return [A, 4] float32 xyxy, the anchors of location (0, 0), ratio by ratio, small to large."""
        sides = self.anchor_scale * 2.0 ** (np.arange(self.anchor_octaves) / self.anchor_octaves)
        heights = np.sqrt(self.anchor_ratios)[:, None] * sides  # [ratios, octaves]
        widths = 1 / np.sqrt(self.anchor_ratios)[:, None] * sides
        half = np.stack([widths.ravel(), heights.ravel()], axis=1) / 2
        return np.concatenate([-half, half], axis=1).astype(np.float32)

    def decode(self, logits: Float[Array, "b h w ar"], scale: Array | float = 1.0) -> Float[Array, "b h w a4"]:
        """Return the boxes of a level, xyxy in strides, from its logits and its learnt scale.

        exp_distances: scale · unit · exp(logits). relu_distances: max(scale · logits, 0). binned_distances: the mean of
        softmax(scale · logits) over 0 … bins. anchor_deltas: scale · logits, times `delta_stds`.
        """
        batch, height, width, _ = logits.shape
        logits = logits.reshape(batch, height, width, self.per_location, self.num_logits)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        corner = np.stack([x, y], axis=-1)[:, :, None]  # [H, W, 1, 2] (x, y)
        if self.kind == "anchor_deltas":
            anchors = jnp.asarray(np.tile(corner, 2) + self.base_anchors())  # [H, W, A, 4]
            boxes = deltas_to_xyxy(anchors, logits * scale, self.delta_stds)
        else:
            boxes = distances_to_xyxy(
                jnp.asarray(corner + np.float32(self.point_offset)), self._distances(logits, scale)
            )
        return boxes.reshape(batch, height, width, self.per_location * 4)

    def at_scale_one(self, logits: Float[Array, "*n r"], scale: Array | float = 1.0) -> Float[Array, "*n r"]:
        """Return the logits that decode to the same boxes at scale 1, the form that `encode` returns.

        For exp_distances the scale is a constant to autodiff: losses on these logits would change it far too fast.
        """
        if self.kind == "exp_distances":
            return logits + lax.stop_gradient(jnp.log(jnp.maximum(scale, MIN_SCALE)))
        return logits * scale

    def _distances(self, logits: Float[Array, "*n r"], scale: Array | float) -> Float[Array, "*n 4"]:
        if self.kind == "exp_distances":
            return jnp.exp(logits) * (scale * self.unit)
        if self.kind == "relu_distances":
            return not_negative(logits * scale)
        share = jax.nn.softmax((logits * scale).reshape(*logits.shape[:-1], 4, self.bins + 1), axis=-1)
        return share @ jnp.asarray(bin_distances(self.bins), logits.dtype)

    def encode(
        self, boxes: Float[Array, "*b 4"], points: Float[Array, "*#b 2"], anchors: Float[Array, "*#b 4"]
    ) -> Float[Array, "*b 4"]:
        """Return the logits (at scale 1) that decode to these boxes; of binned distances, the distances.

        Args:
            boxes: one for each prediction, in strides.
            points: of the same predictions, in strides, with their offset.
            anchors: of the same predictions, in strides.
        """
        if self.kind == "anchor_deltas":
            return xyxy_to_deltas(anchors, boxes, self.delta_stds)
        distances = xyxy_to_distances(points, boxes)
        if self.kind == "exp_distances":
            return jnp.log(jnp.clip(distances / self.unit, np.exp(-MAX_LOG_DISTANCE), np.exp(MAX_LOG_DISTANCE)))
        if self.kind == "binned_distances":
            return jnp.clip(distances, 0, self.bins - 0.1)
        return distances
