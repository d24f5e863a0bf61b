"""T-head, the task-aligned head (paper section 3.1), shared by all pyramid levels.

    interactive features   N convolutions; the outputs of all of them are the features of both tasks
    task decomposition     layer attention weights the N layers, and a 1×1 convolution reduces them (equations 2–4)
    task alignment         scores √(P·M), and box sides sampled at learnt offsets (equations 5 and 6)

The head runs on `LevelMaps`, which hold one level, or all levels in one array; both give the same numbers.

Axes: B images · n locations of some levels in a row · P levels · L = N interactive layers · F channels · C classes.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tood_jax.geometry.box_coder import BoxCoder
from tood_jax.geometry.locations import STRIDES, Shapes
from tood_jax.models.deformable import DeformableConv
from tood_jax.models.layers import (
    PRIOR_LOGIT,
    Dtype,
    GroupNormReLU,
    HeadMaps,
    apply_in_sequence,
    conv,
    normal,
    pointwise,
    predictor,
)
from tood_jax.ops.bilinear.sample_sides import sample_sides_of_levels
from tood_jax.ops.geometric_mean import sigmoid_geometric_mean
from tood_jax.ops.image_area import WHOLE, Mask
from tood_jax.ops.relu import relu
from tood_jax.ops.t_head.level_maps import LevelMaps, rows, unpack
from tood_jax.ops.t_head.reduction import Attended, Pointwise, concatenate_layers, pool_levels, reduce_features
from tood_jax.precision import at_least_float32

DEFORMABLE_GROUPS = 4  # of the deformable interactive convolutions, as published


class TaskDecomposition(nn.Module):
    """Layer attention over the interactive layers, then a 1×1 reduction, GroupNorm and ReLU (equations 2–4)."""

    layers: int
    channels: int
    norm_groups: int
    dtype: Dtype

    def setup(self):
        attention = {"dtype": self.dtype, "bias": True, "kernel_init": normal(0.001)}
        self.attention = [
            conv(self.channels // 8, 1, name="attention_0", **attention),
            conv(self.layers, 1, name="attention_1", **attention),
        ]
        self.reduction = self.param("reduction", normal(0.01), (1, 1, self.layers * self.channels, self.channels))
        self.norm = GroupNormReLU(self.norm_groups, self.dtype)

    def attended(self, pooled: Float[Array, "b p 1 lf"]) -> Attended:
        """Return the reduction with the weight of each layer, 0–1, for each image and level (equations 2 and 3)."""
        weights = nn.sigmoid(self.attention[1](relu(self.attention[0](pooled))))
        return Attended(weights, self.reduction.astype(self.dtype))

    def __call__(self, reduced: LevelMaps) -> LevelMaps:
        """Return the features of the task from the reduced interactive features."""
        return self.norm(reduced)


class TaskAlignment(nn.Module):
    """Aligned scores √(σ(P)·σ(M)) and box sides sampled at learnt offsets (equations 5 and 6); or neither.

    M and the offsets come from the interactive features through a 1×1 and a 3×3 convolution each.

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
            self.reg_alignment = [  # the offset branch
                predictor(self.channels, "reg_alignment_0", self.dtype, size=1, std=0.001),
                predictor(8, "reg_alignment_1", self.dtype, std=0.001),
            ]

    def hidden(self, features: LevelMaps) -> list[LevelMaps]:
        """Return the output of the 1×1 convolutions of both branches, before ReLU, for a head with its own features.

        Empty without alignment. T-head computes the same from `pointwise`, in one product with its decompositions.
        """
        if not self.active:
            return []
        return [features.convolve(branch[0]) for branch in (self.cls_alignment, self.reg_alignment)]

    def pointwise(self, features: Float[Array, "b h w i"]) -> list[Pointwise]:
        """Return the 1×1 convolutions themselves, for a head that computes them together with others."""
        if not self.active:
            return []
        return [pointwise(branch[0], features) for branch in (self.cls_alignment, self.reg_alignment)]

    def __call__(
        self, logits: Float[Array, "b n c"], boxes: Float[Array, "b n k"], hidden: Sequence[LevelMaps]
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b n k"], Float[Array, "b n 8"] | None]:
        """Return (scores 0–1, boxes, offsets (dy, dx) per side in locations, None without alignment), float32.

        Args:
            logits, boxes: float32; boxes are xyxy in strides.
            hidden: output of the 1×1 convolutions of both branches, before ReLU; empty without alignment.
        """
        if not self.active:
            return nn.sigmoid(logits), boxes, None
        branches = self.cls_alignment[1], self.reg_alignment[1]
        alignment, offsets = (
            at_least_float32(maps.map(relu, keeps_zero=True).convolve(last).rows())
            for maps, last in zip(hidden, branches, strict=True)
        )
        inside, layout = hidden[0].inside, hidden[0].layout
        if inside is not None:
            boxes = jnp.where(rows(unpack(inside, layout)), boxes, 0)
        return sigmoid_geometric_mean(logits, alignment), align_boxes(boxes, offsets, layout.shapes), offsets


def align_boxes(boxes: Float[Array, "b n 4"], offsets: Float[Array, "b n 8"], shapes: Shapes) -> Float[Array, "b n 4"]:
    """Return boxes with each side sampled at its offset (equation 6).

    A box that sampling turned inside out has no meaningful GIoU: the box before sampling replaces it.

    Args:
        shapes: (height, width) of the levels whose locations are the n.
    """
    sampled = sample_sides_of_levels(boxes, offsets.reshape(*offsets.shape[:2], 4, 2), shapes)
    inside_out = (sampled[..., :2] > sampled[..., 2:]).any(axis=-1, keepdims=True)
    return jnp.where(inside_out, boxes, sampled)


class THead(nn.Module):
    """Attributes are explained in `config.HeadConfig`; `num_classes` is C.

    `packed` runs the head once on all levels in one array; `scan` then loops over the equal layers; `remat` keeps only
    the inputs of the layers (or of the levels) for the backward pass.
    """

    num_classes: int
    box_coder: BoxCoder = BoxCoder()
    channels: int = 256
    num_convs: int = 6
    norm_groups: int = 32
    deformable_convs: int = 0
    alignment: bool = True
    quality: bool = False
    level_scales: bool = True
    packed: bool = False
    scan: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    def setup(self):
        def interactive_conv(i):
            options = {"dtype": self.dtype, "kernel_init": normal(0.01), "name": f"inter_{i}"}
            if i < self.deformable_convs:
                return DeformableConv(self.channels, deformable_groups=DEFORMABLE_GROUPS, **options)
            return conv(self.channels, 3, **options)

        self.convs = [interactive_conv(i) for i in range(self.num_convs)]
        self.norms = [
            GroupNormReLU(self.norm_groups, self.dtype, name=f"inter_{i}_norm") for i in range(self.num_convs)
        ]
        self.cls_decomposition = TaskDecomposition(self.num_convs, self.channels, self.norm_groups, self.dtype)
        self.reg_decomposition = TaskDecomposition(self.num_convs, self.channels, self.norm_groups, self.dtype)
        self.cls_pred = predictor(self.num_classes, "cls_logits", self.dtype, bias=PRIOR_LOGIT)
        self.reg_pred = predictor(self.box_coder.num_logits, "reg_sides", self.dtype)
        if self.quality:
            self.quality_pred = predictor(1, "quality_logits", self.dtype)
        self.align = TaskAlignment(self.channels // 4, self.alignment, self.dtype)
        if self.level_scales:
            self.scales = self.param("scales", nn.initializers.ones_init(), (len(STRIDES),))

    def __call__(self, levels: tuple[Array, ...], areas: tuple[Mask, ...] = WHOLE[3:]) -> tuple[HeadMaps, ...]:
        """Return the predictions of (P3, …, P7): one `HeadMaps` per level, or one of all levels where packed.

        The levels are zero outside of the images' areas.
        """
        scales = self.scales if self.level_scales else [1.0] * len(levels)
        if self.packed:
            return (self.predict(LevelMaps.join(levels, areas), tuple(scales[i] for i in range(len(levels)))),)
        predict = nn.remat(THead.predict) if self.remat else THead.predict
        return tuple(predict(self, LevelMaps.join([x], [areas[i]]), (scales[i],)) for i, x in enumerate(levels))

    def predict(self, x: LevelMaps, scales: tuple[Array | float, ...]) -> HeadMaps:
        """Return the predictions of one level or of all; `scales` has the learnt scale of each."""
        features = concatenate_layers(self.interactive_layers(x))
        pooled = pool_levels(features, x.areas())
        decompositions = self.cls_decomposition, self.reg_decomposition
        cls, reg, *hidden = reduce_features(
            features, [task.attended(pooled) for task in decompositions], self.align.pointwise(features[0]), x.inside
        )
        cls, reg = self.cls_decomposition(cls), self.reg_decomposition(reg)

        logits = at_least_float32(cls.convolve(self.cls_pred).rows())
        box_logits = [at_least_float32(level) for level in reg.convolve(self.reg_pred).levels()]
        boxes = rows([self.box_coder.decode(x, scale) for x, scale in zip(box_logits, scales, strict=True)])
        scores, boxes, offsets = self.align(logits, boxes, hidden)
        quality = at_least_float32(reg.convolve(self.quality_pred).rows()) if self.quality else None
        box_logits = [self.box_coder.at_scale_one(x, scale) for x, scale in zip(box_logits, scales, strict=True)]
        return HeadMaps(scores, boxes, rows(box_logits), quality, offsets)

    def interactive_layers(self, x: LevelMaps) -> list[LevelMaps]:
        """Return the output of each of the N interactive convolutions."""
        layers = list(zip(self.convs, self.norms, strict=True))
        return apply_in_sequence(
            lambda layer, x: layer[1](x.convolve(layer[0])),
            layers,
            x,
            scan_from=self.deformable_convs if self.packed and self.scan else len(layers),
            remat=self.packed and self.remat,
        )
