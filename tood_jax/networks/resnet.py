"""ResNet-18/34/50/101 and ResNeXt, torchvision layout (the stride sits in the 3×3 convolution).

He et al. 2016; Xie et al. 2017. Maps are NHWC; C2…C5 have strides 4, 8, 16 and 32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tood_jax.networks.layers import Dtype, Norm, conv

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def out_channels(depth: int, width: int) -> tuple[int, int, int, int]:
    """Channels of C2…C5."""
    expansion = 1 if depth < 50 else 4
    return tuple(width * expansion * 2**i for i in range(4))


class Block(nn.Module):
    """A residual block: two 3×3 convolutions (basic) or 1×1, 3×3, 1×1 (bottleneck).

    Attributes:
        planes: width of the stage before expansion.
        inner: channels of the bottleneck's 3×3 convolution.
    """

    bottleneck: bool
    planes: int
    inner: int
    stride: int
    groups: int
    norm: str
    norm_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x, train: bool):
        def normed(y, name, zero_scale=False):
            layer = Norm(self.norm, self.norm_groups, self.dtype, zero_scale, name=name)
            return layer(y, train)

        channels = self.planes * (4 if self.bottleneck else 1)
        if self.bottleneck:
            y = conv(self.inner, 1, name="conv1", dtype=self.dtype)(x)
            y = nn.relu(normed(y, "norm1"))
            y = conv(self.inner, 3, name="conv2", dtype=self.dtype, stride=self.stride, groups=self.groups)(y)
            y = nn.relu(normed(y, "norm2"))
            y = normed(conv(channels, 1, name="conv3", dtype=self.dtype)(y), "norm3", zero_scale=True)
        else:
            y = conv(channels, 3, name="conv1", dtype=self.dtype, stride=self.stride)(x)
            y = nn.relu(normed(y, "norm1"))
            y = normed(conv(channels, 3, name="conv2", dtype=self.dtype)(y), "norm2", zero_scale=True)
        if self.stride != 1 or x.shape[-1] != channels:
            x = conv(channels, 1, name="downsample_conv", dtype=self.dtype, stride=self.stride)(x)
            x = normed(x, "downsample_norm")
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The backbone. Attributes are explained in `config.BackboneConfig`."""

    depth: int = 50
    groups: int = 1
    width_per_group: int = 64
    width: int = 64
    norm: str = "frozen_batch"
    norm_groups: int = 32
    frozen_stages: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"], train: bool = False) -> tuple[Array, Array, Array, Array]:
        """Normalised images to (C2, C3, C4, C5); no gradient flows into frozen stages."""
        bottleneck = self.depth >= 50

        def freeze(y, stage):
            return jax.lax.stop_gradient(y) if stage <= self.frozen_stages else y

        training = train and self.frozen_stages < 0
        x = conv(self.width, 7, name="conv1", dtype=self.dtype, stride=2)(x.astype(self.dtype))
        x = nn.relu(Norm(self.norm, self.norm_groups, self.dtype, name="norm1")(x, training))
        x = freeze(nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)]), 0)
        maps = []
        for stage, blocks in enumerate(BLOCKS[self.depth], start=1):
            planes = self.width * 2 ** (stage - 1)
            inner = planes * self.groups * self.width_per_group // 64
            for i in range(blocks):
                x = Block(
                    bottleneck,
                    planes,
                    inner,
                    stride=2 if i == 0 and stage > 1 else 1,
                    groups=self.groups,
                    norm=self.norm,
                    norm_groups=self.norm_groups,
                    dtype=self.dtype,
                    name=f"layer{stage}_{i}",
                )(x, train and stage > self.frozen_stages)
            x = freeze(x, stage)
            maps.append(x)
        c2, c3, c4, c5 = maps
        return c2, c3, c4, c5
