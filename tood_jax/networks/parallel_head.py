"""The parallel head of TOOD's rivals: one tower for the classes and one for the boxes, shared by all levels.

Lin et al. 2017 (RetinaNet); with a quality branch of the box tower Tian et al. 2019 (FCOS), Zhang et al. 2020 (ATSS).
Axes as in `alignment.py`; F = channels of the towers.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tood_jax.geometry.coding import BoxCoding
from tood_jax.geometry.pyramid import STRIDES
from tood_jax.networks.alignment import PRIOR_LOGIT, Alignment, HeadMaps, normal, predictor
from tood_jax.networks.convolution import conv
from tood_jax.networks.layers import Dtype, Norm, relu


class Tower(nn.Module):
    """`num_convs` 3×3 convolutions, each normalised (GroupNorm, or not at all) and rectified."""

    channels: int
    num_convs: int
    norm: str
    norm_groups: int
    bias: bool
    dtype: Dtype

    def setup(self):
        self.convs = [
            conv(self.channels, 3, name=f"conv_{i}", dtype=self.dtype, bias=self.bias, kernel_init=normal(0.01))
            for i in range(self.num_convs)
        ]
        self.norms = [
            Norm("group", self.norm_groups, self.dtype, name=f"conv_{i}_norm")
            for i in range(self.num_convs if self.norm == "group" else 0)
        ]

    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b h w f"]:
        for i, convolution in enumerate(self.convs):
            x = convolution(x)
            x = relu(self.norms[i](x) if self.norms else x)
        return x


class ParallelHead(nn.Module):
    """Attributes are explained in `config.HeadConfig`; `num_classes` is C.

    With `alignment` the last features of both towers, side by side, stand in for T-head's interactive features.
    """

    num_classes: int
    coding: BoxCoding = BoxCoding()
    channels: int = 256
    num_convs: int = 4
    norm: str = "group"
    norm_groups: int = 32
    tower_bias: bool = False
    alignment: bool = False
    quality: bool = False
    level_scales: bool = True
    remat: bool = False
    dtype: Dtype = jnp.float32

    def setup(self):
        def tower():
            return Tower(self.channels, self.num_convs, self.norm, self.norm_groups, self.tower_bias, self.dtype)

        count = self.coding.per_cell
        self.cls_tower, self.reg_tower = tower(), tower()
        self.cls_logits = predictor(count * self.num_classes, "cls_logits", self.dtype, bias=PRIOR_LOGIT)
        self.reg_sides = predictor(count * self.coding.raw_size, "reg_sides", self.dtype)
        if self.quality:
            self.quality_logits = predictor(count, "quality_logits", self.dtype)
        self.align = Alignment(self.channels // 4, self.alignment, self.dtype)
        if self.level_scales:
            self.scales = self.param("scales", nn.initializers.ones_init(), (len(STRIDES),))

    def __call__(self, levels: tuple[Array, ...]) -> tuple[HeadMaps, ...]:
        """(P3, …, P7) to the head's maps a level, float32."""
        level = nn.remat(ParallelHead.level, static_argnums=(2,)) if self.remat else ParallelHead.level
        return tuple(level(self, x, i) for i, x in enumerate(levels))

    def level(self, x: Float[Array, "b h w _"], index: int) -> HeadMaps:
        cls_features, reg_features = self.cls_tower(x), self.reg_tower(x)
        logits = self.cls_logits(cls_features).astype(jnp.float32)
        raw = self.reg_sides(reg_features).astype(jnp.float32)
        scale = self.scales[index] if self.level_scales else 1.0
        features = jnp.concatenate([cls_features, reg_features], axis=-1)
        scores, boxes = self.align(logits, self.coding.decode(raw, scale), self.align.hidden(features))
        quality = self.quality_logits(reg_features).astype(jnp.float32) if self.quality else None
        return HeadMaps(scores, boxes, raw * scale, quality)
