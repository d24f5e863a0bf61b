"""A grouped kernel as fewer and wider blocks, with zeros in them, for matrix units that need wide products."""

import jax.numpy as jnp
from jaxtyping import Array, Float

LANES = 128  # numbers that a TPU processes together; fewer channels take as much time and memory as 128


def block_count(depth: int, groups: int, width: int) -> int:
    """Return the number of blocks of `groups` groups, `depth` inputs each: at most `width` channels, or one group."""
    return min(
        count for count in range(1, groups + 1) if groups % count == 0 and groups // count <= max(width // depth, 1)
    )


def in_blocks(kernel: Float[Array, "t i o"], groups: int, count: int) -> Float[Array, "t k in_ out"]:
    """Return a kernel of `groups` groups as `count` blocks, zero between groups of a block; count divides groups."""
    taps, depth, channels = kernel.shape
    many = groups // count
    split = kernel.reshape(taps, depth, count, many, channels // groups)
    split = jnp.moveaxis(split, 1, 3)[..., None, :]  # [T, K, group, input, 1, output]
    own = jnp.eye(many, dtype=bool)[:, None, :, None]  # a selection: a TPU would round a product
    return jnp.where(own, split, 0).reshape(taps, count, many * depth, -1)


def block_diagonal(
    kernel: Float[Array, "kh kw ig o"], groups: int, width: int
) -> tuple[Float[Array, "kh kw i_block o"], int]:
    """Return a grouped kernel in blocks of at most `width` input channels, and the new number of groups."""
    rows, columns, depth, _ = kernel.shape
    count = block_count(depth, groups, width)
    if count == groups:
        return kernel, groups
    blocks = jnp.moveaxis(in_blocks(kernel.reshape(rows * columns, depth, -1), groups, count), 1, 2)
    return blocks.reshape(rows, columns, blocks.shape[1], -1), count
