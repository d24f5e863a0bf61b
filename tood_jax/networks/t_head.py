"""T-head, the task-aligned head (paper section 3.1), shared by all pyramid levels.

Axes: B images · H, W a level's height and width in cells · F = channels of the tower · L = interactive convolutions.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.geometry.coding import BoxCoding
from tood_jax.geometry.pyramid import STRIDES
from tood_jax.networks.alignment import PRIOR_LOGIT, Alignment, HeadMaps, normal, predictor
from tood_jax.networks.convolution import conv, convolve
from tood_jax.networks.deformable import DeformableConv
from tood_jax.networks.layers import Dtype, Norm, relu
from tood_jax.networks.packed_head import packed_maps
from tood_jax.networks.reductions import reduce_features

DEFORMABLE_GROUPS = 4  # of the tower's deformable convolutions, as published


class TaskDecomposition(nn.Module):
    """Layer attention over the tower's layers, then a 1×1 reduction, a norm and ReLU (equations 1–3).

    Calling it is what follows the reduction, which `reductions` does for all that read the features.
    """

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
        self.norm = Norm("group", self.norm_groups, self.dtype)

    def __call__(self, reduced: Float[Array, "b h w f"]) -> Float[Array, "b h w f"]:
        return relu(self.norm(reduced))

    def reduced(self, features: Float[Array, "b h w lf"], pooled: Float[Array, "b 1 1 lf"]) -> Array:
        """[B, H, W, L·F], weighed by attention, to [B, H, W, F]."""
        by_layer = features.reshape(*features.shape[:3], self.layers, self.channels)
        attended = (by_layer * self.attend(pooled)[..., None]).reshape(features.shape)
        return convolve(attended, self.reduction.astype(self.dtype))

    def attend(self, pooled: Float[Array, "b p 1 lf"]) -> Float[Array, "b p 1 l"]:
        """The weight of each layer, 0–1, for each image and each of some levels (equations 2 and 3)."""
        return nn.sigmoid(self.attention[1](relu(self.attention[0](pooled))))

    def kernels(self, pooled: Float[Array, "b p 1 lf"]) -> Float[Array, "b p lf f"]:
        """The reduction's kernel for each image and each of some levels, its layers weighed by attention."""
        w = self.attend(pooled)[:, :, 0]
        kernel = self.reduction.astype(self.dtype).reshape(self.layers, self.channels, self.channels)
        return weighed(w, kernel).reshape(*w.shape[:2], -1, self.channels)


@jax.custom_vjp
def weighed(weights: Float[Array, "b p l"], kernels: Float[Array, "l i o"]) -> Float[Array, "b p l i o"]:
    """Each layer's kernel times its weight in each image and level.

    The kernels' gradient, a sum over images of large arrays, is a product on CPUs, where XLA takes thirty times as long
    for the sum.
    """
    return weights[..., None, None] * kernels


def _weighed_backward(given, cotangent):
    weights, kernels = given
    by_product = partial(jnp.einsum, "bpl,bplio->lio")
    to_kernels = lax.platform_dependent(weights, cotangent, cpu=by_product, default=_sum_over_images)
    return (cotangent * kernels).sum(axis=(-2, -1)), to_kernels


def _sum_over_images(weights, cotangent):
    return (weights[..., None, None] * cotangent).sum(axis=(0, 1))


weighed.defvjp(lambda weights, kernels: (weighed(weights, kernels), (weights, kernels)), _weighed_backward)


class THead(nn.Module):
    """Attributes are explained in `config.HeadConfig`; `num_classes` is C."""

    num_classes: int
    coding: BoxCoding = BoxCoding()
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
        def tower_conv(i):
            options = {"dtype": self.dtype, "kernel_init": normal(0.01), "name": f"inter_{i}"}
            if i < self.deformable_convs:
                return DeformableConv(self.channels, deformable_groups=DEFORMABLE_GROUPS, **options)
            return conv(self.channels, 3, **options)

        self.tower = [tower_conv(i) for i in range(self.num_convs)]
        self.tower_norms = [
            Norm("group", self.norm_groups, self.dtype, name=f"inter_{i}_norm") for i in range(self.num_convs)
        ]
        self.cls_decomposition = TaskDecomposition(self.num_convs, self.channels, self.norm_groups, self.dtype)
        self.reg_decomposition = TaskDecomposition(self.num_convs, self.channels, self.norm_groups, self.dtype)
        self.cls_logits = predictor(self.num_classes, "cls_logits", self.dtype, bias=PRIOR_LOGIT)
        self.reg_sides = predictor(self.coding.raw_size, "reg_sides", self.dtype)
        if self.quality:
            self.quality_logits = predictor(1, "quality_logits", self.dtype)
        self.align = Alignment(self.channels // 4, self.alignment, self.dtype)
        if self.level_scales:
            self.scales = self.param("scales", nn.initializers.ones_init(), (len(STRIDES),))

    def __call__(self, levels: tuple[Array, ...]) -> tuple[HeadMaps, ...]:
        """(P3, …, P7) to the head's maps a level, float32; packed, to all levels' cells in a row."""
        if self.packed and not self.is_initializing():
            return (packed_maps(self, levels),)
        level = nn.remat(THead.level, static_argnums=(2,)) if self.remat else THead.level
        return tuple(level(self, x, i) for i, x in enumerate(levels))

    def interactive_features(self, x: Float[Array, "b h w f"]) -> Float[Array, "b h w lf"]:
        """Of all layers of the tower, side by side."""
        features = []
        for convolution, norm in zip(self.tower, self.tower_norms, strict=True):
            x = relu(norm(convolution(x)))
            features.append(x)
        return jnp.concatenate(features, axis=-1)

    def level(self, x: Float[Array, "b h w f"], index: int) -> HeadMaps:
        cls, reg, hidden = reduce_features(self, self.interactive_features(x))
        logits = self.cls_logits(self.cls_decomposition(cls)).astype(jnp.float32)
        reg_features = self.reg_decomposition(reg)
        raw = self.reg_sides(reg_features).astype(jnp.float32)
        scale = self.scales[index] if self.level_scales else 1.0
        scores, boxes = self.align(logits, self.coding.decode(raw, scale), hidden)
        quality = self.quality_logits(reg_features).astype(jnp.float32) if self.quality else None
        return HeadMaps(scores, boxes, raw * scale, quality)
