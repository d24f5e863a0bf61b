"""What the raw numbers of a cell say of its box: distances to its four sides, or deltas from an anchor.

Axes: H, W a level's cells · A predictions (anchors) a cell · R raw numbers a prediction · N = all predictions in a row.
Everything is in strides (pixels divided by the level's stride): the point of cell (row i, column j) is (j, i) plus the
point offset, and anchors are centred on (j, i). Decoding is differentiable and float32.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tood_jax.geometry.boxes import deltas_to_xyxy, distances_to_xyxy, not_negative, xyxy_to_deltas, xyxy_to_distances

# FoveaBox keeps its targets within e^±2.77 of the unit.
MAX_LOG_DISTANCE = float(np.log(16))


def bin_distances(bins: int) -> np.ndarray:
    """[bins + 1]: the distance in strides that each bin stands for."""
    return np.arange(bins + 1, dtype=np.float32)


@dataclass(frozen=True)
class BoxCoding:
    """How a head speaks of boxes; the fields are explained in `config.HeadConfig`."""

    kind: Literal["exp_distances", "relu_distances", "binned_distances", "anchor_deltas"] = "exp_distances"
    unit: float = 1.0
    bins: int = 16
    delta_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    point_offset: float = 0.0
    anchor_scale: float = 8.0
    anchor_octaves: int = 1
    anchor_ratios: tuple[float, ...] = (1.0,)

    @property
    def per_cell(self) -> int:
        """A, predictions a cell makes."""
        return self.anchor_octaves * len(self.anchor_ratios)

    @property
    def raw_size(self) -> int:
        """R, raw numbers a prediction."""
        return 4 * (self.bins + 1) if self.kind == "binned_distances" else 4

    def cell_anchors(self) -> np.ndarray:
        """[A, 4] float32 xyxy: the anchors around the corner of cell (0, 0), ratio by ratio, small to large."""
        sides = self.anchor_scale * 2.0 ** (np.arange(self.anchor_octaves) / self.anchor_octaves)
        heights = np.sqrt(self.anchor_ratios)[:, None] * sides  # [ratios, octaves]
        widths = 1 / np.sqrt(self.anchor_ratios)[:, None] * sides
        half = np.stack([widths.ravel(), heights.ravel()], axis=1) / 2
        return np.concatenate([-half, half], axis=1).astype(np.float32)

    def decode(self, raw: Float[Array, "b h w ar"], scale: Array | float = 1.0) -> Float[Array, "b h w a4"]:
        """A level's raw numbers and its learnt scale to boxes, xyxy in strides.

        exp_distances: scale · unit · exp(raw). relu_distances: max(scale · raw, 0). binned_distances: the mean of
        softmax(scale · raw) over 0 … bins. anchor_deltas: scale · raw, times `delta_stds`.
        """
        batch, height, width, _ = raw.shape
        raw = raw.reshape(batch, height, width, self.per_cell, self.raw_size)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        corner = np.stack([x, y], axis=-1)[:, :, None]  # [H, W, 1, 2] (x, y)
        if self.kind == "anchor_deltas":
            anchors = jnp.asarray(np.tile(corner, 2) + self.cell_anchors())  # [H, W, A, 4]
            boxes = deltas_to_xyxy(anchors, raw * scale, self.delta_stds)
        else:
            boxes = distances_to_xyxy(jnp.asarray(corner + np.float32(self.point_offset)), self._distances(raw, scale))
        return boxes.reshape(batch, height, width, self.per_cell * 4)

    def _distances(self, raw: Float[Array, "*n r"], scale: Array | float) -> Float[Array, "*n 4"]:
        if self.kind == "exp_distances":
            return jnp.exp(raw) * (scale * self.unit)
        if self.kind == "relu_distances":
            return not_negative(raw * scale)
        share = jax.nn.softmax((raw * scale).reshape(*raw.shape[:-1], 4, self.bins + 1), axis=-1)
        return share @ jnp.asarray(bin_distances(self.bins), raw.dtype)

    def encode(
        self, boxes: Float[Array, "*b 4"], points: Float[Array, "*#b 2"], anchors: Float[Array, "*#b 4"]
    ) -> Float[Array, "*b 4"]:
        """The raw numbers (at scale 1) that decode to these boxes; of binned distances, the distances.

        Args:
            boxes, points, anchors: of the same predictions, in strides; points carry their offset.
        """
        if self.kind == "anchor_deltas":
            return xyxy_to_deltas(anchors, boxes, self.delta_stds)
        distances = xyxy_to_distances(points, boxes)
        if self.kind == "exp_distances":
            return jnp.log(jnp.clip(distances / self.unit, np.exp(-MAX_LOG_DISTANCE), np.exp(MAX_LOG_DISTANCE)))
        if self.kind == "binned_distances":
            return jnp.clip(distances, 0, self.bins - 0.1)
        return distances
