"""The deformable convolution as a layer (DCNv2: Zhu et al. 2019).

Axes as in `ops/deform_conv/deform_conv2d.py`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tood_jax.models.layers import Dtype, conv
from tood_jax.ops.deform_conv.deform_conv2d import deform_conv2d
from tood_jax.ops.deform_conv.sampling_points import SIZE, TAPS
from tood_jax.precision import at_least_float32


class DeformableConv(nn.Module):
    """`deform_conv2d` with a convolution that predicts offsets and mask; it starts as half a plain convolution.

    Of the 27 channels per deformable group of `conv_offset`, the first two thirds are offsets, (dy, dx) tap by tap and
    group after group, the last third logits of the mask (as published: mmcv's packed DCNv2).

    Attributes:
        channels: O.
        stride, groups: of the convolution.
        deformable_groups: G.
    """

    channels: int
    stride: int = 1
    groups: int = 1
    deformable_groups: int = 1
    dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b hh ww c"]) -> Float[Array, "b h w o"]:
        zeros, groups = nn.initializers.zeros_init(), self.deformable_groups
        predicted = conv(
            groups * 3 * TAPS,
            SIZE,
            name="conv_offset",
            dtype=self.dtype,
            stride=self.stride,
            bias=True,
            kernel_init=zeros,
        )(x)
        offsets, logits = jnp.split(at_least_float32(predicted), [groups * 2 * TAPS], axis=-1)
        kernel = self.param("kernel", self.kernel_init, (SIZE, SIZE, x.shape[-1] // self.groups, self.channels))
        return deform_conv2d(
            x.astype(self.dtype),
            offsets.reshape(*offsets.shape[:3], groups, TAPS, 2),
            nn.sigmoid(logits).reshape(*logits.shape[:3], groups, TAPS),
            kernel.astype(self.dtype),
            stride=self.stride,
            groups=self.groups,
        )
