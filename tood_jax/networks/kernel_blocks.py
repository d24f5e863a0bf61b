"""A grouped kernel as fewer and wider blocks, with zeros in them, for matrix units that want wide products."""

import jax.numpy as jnp
from jaxtyping import Array, Float

LANES = 128  # numbers that a TPU works at in a row; fewer channels take as long and as much memory as so many


def block_count(depth: int, groups: int, width: int) -> int:
    """How many blocks `groups` groups of `depth` input channels make: each `width` channels or less, or one group."""
    return min(
        count for count in range(1, groups + 1) if groups % count == 0 and groups // count <= max(width // depth, 1)
    )


def in_blocks(kernel: Float[Array, "t i o"], groups: int, count: int) -> Float[Array, "t k in_ out"]:
    """A kernel of `groups` groups as `count` blocks, which divides them, with zeros between the groups of one block."""
    taps, depth, channels = kernel.shape
    many = groups // count
    split = kernel.reshape(taps, depth, count, many, channels // groups)
    split = jnp.moveaxis(split, 1, 3)[..., None, :]  # [T, K, group, input, 1, output]
    own = jnp.eye(many, dtype=bool)[:, None, :, None]  # no product, which a TPU would round
    return jnp.where(own, split, 0).reshape(taps, count, many * depth, -1)


def widened(kernel: Float[Array, "kh kw ig o"], groups: int, width: int) -> tuple[Float[Array, "kh kw i_block o"], int]:
    """A grouped convolution's kernel in blocks of `width` input channels or less, and their count, the new groups."""
    rows, columns, depth, _ = kernel.shape
    count = block_count(depth, groups, width)
    if count == groups:
        return kernel, groups
    blocks = jnp.moveaxis(in_blocks(kernel.reshape(rows * columns, depth, -1), groups, count), 1, 2)
    return blocks.reshape(rows, columns, blocks.shape[1], -1), count
