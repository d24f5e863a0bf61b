"""T-head, the task-aligned head (paper section 3.1), shared by all pyramid levels.

Axes: B images · H, W a level's height and width in cells · F = channels of the tower · L = interactive convolutions.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tood_jax.geometry.boxes import deltas_to_xyxy, distances_to_xyxy
from tood_jax.geometry.pyramid import STRIDES
from tood_jax.geometry.sampling import sample_sides
from tood_jax.networks.layers import Dtype, Norm, conv, sigmoid_geometric_mean

PRIOR_LOGIT = float(-np.log((1 - 0.01) / 0.01))  # logits start at a probability of 0.01


def _normal(std: float) -> nn.initializers.Initializer:
    return nn.initializers.normal(std)


class TaskDecomposition(nn.Module):
    """Layer attention over the tower's layers, then a 1×1 reduction (equations 1–3).

    The attention weights are folded into the reduction's kernel, so that the weighted features never exist.
    """

    channels: int
    norm_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, features: Float[Array, "b h w lf"], pooled: Float[Array, "b 1 1 lf"]) -> Array:
        """[B, H, W, L·F] and its average over cells to [B, H, W, F]."""
        layers = features.shape[-1] // self.channels
        down = features.shape[-1] // (8 * layers)
        w = conv(down, 1, name="attention_0", dtype=self.dtype, bias=True, kernel_init=_normal(0.001))(pooled)
        w = conv(layers, 1, name="attention_1", dtype=self.dtype, bias=True, kernel_init=_normal(0.001))(nn.relu(w))
        w = nn.sigmoid(w)[:, 0, 0]  # [B, L]
        kernel = self.param("reduction", _normal(0.01), (1, 1, features.shape[-1], self.channels))
        kernel = kernel.astype(self.dtype).reshape(1, layers, self.channels, self.channels)
        kernel = (w[:, :, None, None] * kernel).reshape(w.shape[0], features.shape[-1], self.channels)
        y = jnp.einsum("bhwi,bio->bhwo", features, kernel)
        return nn.relu(Norm("group", self.norm_groups, self.dtype, name="norm")(y))


class THead(nn.Module):
    """Attributes are explained in `config.HeadConfig`; `num_classes` is C."""

    num_classes: int
    channels: int = 256
    num_convs: int = 6
    norm_groups: int = 32
    anchor_type: str = "anchor_free"
    anchor_scale: float = 8.0
    dtype: Dtype = jnp.float32

    def setup(self):
        def to(channels, size, name, std=0.01, bias=0.0):
            return conv(
                channels,
                size,
                name=name,
                dtype=self.dtype,
                bias=True,
                kernel_init=_normal(std),
                bias_init=nn.initializers.constant(bias),
            )

        self.tower = [
            conv(self.channels, 3, name=f"inter_{i}", dtype=self.dtype, kernel_init=_normal(0.01))
            for i in range(self.num_convs)
        ]
        self.tower_norms = [
            Norm("group", self.norm_groups, self.dtype, name=f"inter_{i}_norm") for i in range(self.num_convs)
        ]
        self.cls_decomposition = TaskDecomposition(self.channels, self.norm_groups, self.dtype)
        self.reg_decomposition = TaskDecomposition(self.channels, self.norm_groups, self.dtype)
        self.cls_logits = to(self.num_classes, 3, "cls_logits", bias=PRIOR_LOGIT)
        self.reg_sides = to(4, 3, "reg_sides")
        self.cls_alignment = [
            to(self.channels // 4, 1, "cls_alignment_0"),
            to(1, 3, "cls_alignment_1", bias=PRIOR_LOGIT),
        ]
        self.reg_alignment = [
            to(self.channels // 4, 1, "reg_alignment_0", std=0.001),
            to(8, 3, "reg_alignment_1", std=0.001),
        ]
        self.scales = self.param("scales", nn.initializers.ones_init(), (len(STRIDES),))

    def __call__(self, levels: tuple[Array, ...]) -> tuple[tuple[Array, Array], ...]:
        """(P3, …, P7) to a pair a level: scores [B, H, W, C] 0–1 and boxes [B, H, W, 4] xyxy in strides, float32."""
        return tuple(self.level(x, i) for i, x in enumerate(levels))

    def level(self, x: Float[Array, "b h w f"], index: int) -> tuple[Array, Array]:
        features = []
        for convolution, norm in zip(self.tower, self.tower_norms, strict=True):
            x = nn.relu(norm(convolution(x)))
            features.append(x)
        stacked = jnp.concatenate(features, axis=-1)  # [B, H, W, L·F]
        pooled = stacked.mean(axis=(1, 2), keepdims=True)

        logits = self.cls_logits(self.cls_decomposition(stacked, pooled))
        alignment = self.cls_alignment[1](nn.relu(self.cls_alignment[0](stacked)))  # [B, H, W, 1]
        scores = sigmoid_geometric_mean(logits.astype(jnp.float32), alignment.astype(jnp.float32))

        sides = self.reg_sides(self.reg_decomposition(stacked, pooled)).astype(jnp.float32)
        boxes = self.decode(sides, self.scales[index])
        offsets = self.reg_alignment[1](nn.relu(self.reg_alignment[0](stacked))).astype(jnp.float32)
        sampled = sample_sides(boxes, offsets.reshape(*offsets.shape[:3], 4, 2))
        # A box that sampling turned inside out has no meaningful GIoU: the box before sampling stands in.
        inside_out = (sampled[..., :2] > sampled[..., 2:]).any(axis=-1, keepdims=True)
        return scores, jnp.where(inside_out, boxes, sampled)

    def decode(self, sides: Float[Array, "b h w 4"], scale: Array) -> Float[Array, "b h w 4"]:
        """Raw side predictions to xyxy boxes in strides."""
        height, width = sides.shape[1:3]
        y, x = np.mgrid[:height, :width].astype(np.float32)
        points = jnp.asarray(np.stack([x, y], axis=-1))  # [H, W, 2] (x, y) in strides
        if self.anchor_type == "anchor_free":
            return distances_to_xyxy(points, jnp.exp(sides) * scale)
        half = self.anchor_scale / 2
        return deltas_to_xyxy(jnp.concatenate([points - half, points + half], axis=-1), sides * scale)
