"""ResNet-18/34/50/101 and ResNeXt, torchvision layout (the stride sits in the 3×3 convolution).

He et al. 2016; Xie et al. 2017. Maps are NHWC; C2…C5 have strides 4, 8, 16 and 32.
"""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.models.deformable import DeformableConv
from tood_jax.models.layers import Dtype, Norm, conv, conv_and_norm, stack_trees
from tood_jax.ops.image_area import WHOLE, Mask, clear_outside
from tood_jax.ops.max_pool import max_pool
from tood_jax.ops.relu import relu

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def out_channels(depth: int, width: int) -> tuple[int, int, int, int]:
    """Return the channels of C2…C5."""
    expansion = 1 if depth < 50 else 4
    return tuple(width * expansion * 2**i for i in range(4))


def stage_of(name: str) -> int:
    """Return the stage of a parameter of the backbone by its first name: 0 for the stem, else 1–4.

    Raises:
        ValueError: for a name of no known stage.
    """
    if name in ("conv1", "norm1"):
        return 0
    match = re.fullmatch(r"layer([1-4])_\d+", name)
    if match is None:
        raise ValueError(
            f"The backbone has a parameter {name}, and models.resnet.stage_of does not know its stage: name it "
            "layerN_… or add it there, so that backbone.frozen_stages applies to it."
        )
    return int(match.group(1))


class Block(nn.Module):
    """A residual block: two 3×3 convolutions (basic) or 1×1, 3×3, 1×1 (bottleneck).

    Attributes:
        planes: width of the stage before expansion.
        inner: channels of the bottleneck's 3×3 convolution.
        deformable: whether the 3×3 convolution of the bottleneck is deformable (DCNv2).
    """

    bottleneck: bool
    planes: int
    inner: int
    stride: int
    groups: int
    norm: str
    norm_groups: int
    deformable: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x, train: bool, before: Mask, after: Mask):
        """Return the map after the block; `before` and `after` are the images' areas in its input and its output."""

        def normed(layer, x, name, zero_scale=False, inside=after):
            norm = Norm(self.norm, self.norm_groups, self.dtype, zero_scale, name=name)
            return conv_and_norm(layer, norm, x, train, inside)

        channels = self.planes * (4 if self.bottleneck else 1)
        if self.bottleneck:
            conv1 = conv(self.inner, 1, name="conv1", dtype=self.dtype)
            y = relu(normed(conv1, x, "norm1", inside=before), before)
            spatial = {"name": "conv2", "dtype": self.dtype, "stride": self.stride, "groups": self.groups}
            conv2 = DeformableConv(self.inner, **spatial) if self.deformable else conv(self.inner, 3, **spatial)
            y = relu(normed(conv2, y, "norm2"))
            y = normed(conv(channels, 1, name="conv3", dtype=self.dtype), y, "norm3", zero_scale=True)
        else:
            conv1 = conv(channels, 3, name="conv1", dtype=self.dtype, stride=self.stride)
            y = relu(normed(conv1, x, "norm1"), after)
            y = normed(conv(channels, 3, name="conv2", dtype=self.dtype), y, "norm2", zero_scale=True)
        if self.stride != 1 or x.shape[-1] != channels:
            downsample = conv(channels, 1, name="downsample_conv", dtype=self.dtype, stride=self.stride)
            x = normed(downsample, x, "downsample_norm")
        return relu(x + y, None if self.bottleneck else after)


class ResNet(nn.Module):
    """The backbone. Attributes are explained in `config.BackboneConfig`."""

    depth: int = 50
    groups: int = 1
    width_per_group: int = 64
    width: int = 64
    norm: str = "frozen_batch"
    norm_groups: int = 32
    frozen_stages: int = 1
    deformable_stages: tuple[int, ...] = ()
    scan: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, areas: tuple[Mask, ...] = WHOLE
    ) -> tuple[Array, Array, Array, Array]:
        """Return (C2, C3, C4, C5) of normalised images; no gradient flows into frozen stages.

        Args:
            x: zero outside of the images.
            train: whether batch statistics are taken.
            areas: the images' areas at strides 1, 2, 4, …; outside of them the maps mean nothing.
        """

        def freeze(y, stage):
            return jax.lax.stop_gradient(y) if stage <= self.frozen_stages else y

        training = train and self.frozen_stages < 0
        stem = conv(self.width, 7, name="conv1", dtype=self.dtype, stride=2)
        norm = Norm(self.norm, self.norm_groups, self.dtype, name="norm1")
        x = relu(conv_and_norm(stem, norm, x.astype(self.dtype), training, areas[1]), areas[1])
        x = freeze(max_pool(x), 0)
        if self.depth < 50:  # a bottleneck begins with a 1×1 convolution, which does not read the padding
            x = clear_outside(x, areas[2])
        maps = []
        for stage, blocks in enumerate(BLOCKS[self.depth], start=1):
            x = self._stage(x, stage, blocks, train and stage > self.frozen_stages, areas)
            x = freeze(x, stage)
            maps.append(x)
        c2, c3, c4, c5 = maps
        return c2, c3, c4, c5

    def _stage(self, x: Array, stage: int, blocks: int, train: bool, areas: tuple[Mask, ...]) -> Array:
        before, after = areas[2 if stage == 1 else stage], areas[stage + 1]
        planes = self.width * 2 ** (stage - 1)
        remat = self.remat and stage > self.frozen_stages
        block_type = nn.remat(Block, static_argnums=(2,)) if remat else Block

        def block(index: int, block_type: Callable = block_type, **options: Any) -> Block:
            return block_type(
                self.depth >= 50,
                planes,
                planes * self.groups * self.width_per_group // 64,
                stride=2 if index == 0 and stage > 1 else 1,
                groups=self.groups,
                norm=self.norm,
                norm_groups=self.norm_groups,
                deformable=stage in self.deformable_stages,
                dtype=self.dtype,
                name=f"layer{stage}_{index}",
                **options,
            )

        # A scanned function cannot update batch statistics.
        first = 1 if stage > 1 or self.depth >= 50 else 0  # the first block that equals those after it
        scan = self.scan and blocks - first > 1 and not self.is_initializing() and not (train and self.norm == "batch")
        for index in range(first if scan else blocks):
            x = block(index)(x, train, before if index == 0 else after, after)
        if not scan:
            return x
        equal = block(first, Block, parent=None)

        def run(x, variables):
            return equal.apply(variables, x, train, after, after), None

        of_block = [
            {kind: self.variables[kind][f"layer{stage}_{index}"] for kind in self.variables}
            for index in range(first, blocks)
        ]
        return lax.scan(jax.checkpoint(run) if remat else run, x, stack_trees(of_block))[0]
