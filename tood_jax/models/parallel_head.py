"""The parallel head of the paper's rivals: one tower for the classes and one for the boxes, shared by all levels.

Lin et al. 2017 (RetinaNet); with a quality branch of the box tower Tian et al. 2019 (FCOS), Zhang et al. 2020 (ATSS).
Axes: B images · h, w locations of a level · F channels of the towers.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tood_jax.geometry.box_coder import BoxCoder
from tood_jax.geometry.locations import STRIDES
from tood_jax.models.layers import PRIOR_LOGIT, Dtype, HeadMaps, Norm, conv, normal, predictor
from tood_jax.models.t_head import TaskAlignment
from tood_jax.ops.image_area import WHOLE, Mask
from tood_jax.ops.relu import relu
from tood_jax.ops.t_head.level_maps import LevelMaps, rows
from tood_jax.precision import at_least_float32


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

    def __call__(self, x: Float[Array, "b h w _"], inside: Mask) -> Float[Array, "b h w f"]:
        for i, convolution in enumerate(self.convs):
            x = convolution(x)
            x = relu(self.norms[i](x, inside=inside) if self.norms else x, inside)
        return x


class ParallelHead(nn.Module):
    """Attributes are explained in `config.HeadConfig`; `num_classes` is C.

    With `alignment`, the last features of both towers, side by side, replace the interactive features of T-head.
    """

    num_classes: int
    box_coder: BoxCoder = BoxCoder()
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

        count = self.box_coder.per_location
        self.cls_tower, self.reg_tower = tower(), tower()
        self.cls_pred = predictor(count * self.num_classes, "cls_logits", self.dtype, bias=PRIOR_LOGIT)
        self.reg_pred = predictor(count * self.box_coder.num_logits, "reg_sides", self.dtype)
        if self.quality:
            self.quality_pred = predictor(count, "quality_logits", self.dtype)
        self.align = TaskAlignment(self.channels // 4, self.alignment, self.dtype)
        if self.level_scales:
            self.scales = self.param("scales", nn.initializers.ones_init(), (len(STRIDES),))

    def __call__(self, levels: tuple[Array, ...], areas: tuple[Mask, ...] = WHOLE[3:]) -> tuple[HeadMaps, ...]:
        """Return the predictions of each of (P3, …, P7), which are zero outside of the images' areas."""
        scales = self.scales if self.level_scales else [1.0] * len(levels)
        predict = nn.remat(ParallelHead.predict) if self.remat else ParallelHead.predict
        return tuple(predict(self, x, areas[i], scales[i]) for i, x in enumerate(levels))

    def predict(self, x: Float[Array, "b h w _"], inside: Mask, scale: Array | float) -> HeadMaps:
        """Return the predictions of one level, whose learnt scale is `scale`."""
        cls, reg = self.cls_tower(x, inside), self.reg_tower(x, inside)
        logits = at_least_float32(self.cls_pred(cls))
        box_logits = at_least_float32(self.reg_pred(reg))
        features = LevelMaps.join([jnp.concatenate([cls, reg], axis=-1)], [inside])
        boxes = self.box_coder.decode(box_logits, scale)
        scores, boxes, offsets = self.align(rows([logits]), rows([boxes]), self.align.hidden(features))
        quality = rows([at_least_float32(self.quality_pred(reg))]) if self.quality else None
        return HeadMaps(scores, boxes, rows([self.box_coder.at_scale_one(box_logits, scale)]), quality, offsets)
