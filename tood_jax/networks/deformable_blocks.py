"""A grouped kernel as fewer and wider blocks, for matrix units that want wide products."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def block_count(depth: int, groups: int, width: int) -> int:
    """How many blocks `groups` groups of `depth` input channels make: each `width` channels or less, or one group."""
    return groups // math.gcd(groups, max(width // depth, 1))


def in_blocks(kernel: Float[Array, "t i o"], groups: int, count: int) -> Float[Array, "t k in_ out"]:
    """A kernel of `groups` groups as `count` blocks, which divides them, with zeros between the groups of one block."""
    taps, depth, channels = kernel.shape
    many = groups // count
    split = kernel.reshape(taps, depth, count, many, channels // groups)
    diagonal = jnp.eye(many, dtype=kernel.dtype)
    blocks = jnp.einsum("tikmo,mn->tkmino", split, diagonal)
    return blocks.reshape(taps, count, many * depth, -1)
