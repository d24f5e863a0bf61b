"""Keep XLA from computing a map again in every operation that reads it."""

from typing import TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from tood_jax.ops.dispatch import by_platform

Values = TypeVar("Values")


def materialize(x: Array) -> Array:
    """Return x; compiled for CPUs, it is computed and stored once, however many operations read it.

    Only float32 is stored so; other types are returned as they are. On CPUs with LLVM's optimisations switched off,
    subnormal numbers become zero.
    """
    # XLA:CPU fuses sums, products and comparisons into each fusion that reads them, all the way back along residual
    # additions, and removes a barrier before that. It does not repeat a division. This one is by 1, which LLVM sees
    # from the bits and drops: it costs nothing and changes no bit.
    return by_platform(x, cpu=_divide_by_one, default=lambda x: x)


def _divide_by_one(x):
    if x.dtype.itemsize != 4:
        return x
    zero = lax.bitcast_convert_type(x, jnp.uint32) >> 31 >> 1  # one shift by 32 is not defined
    return x / (1 + zero.astype(x.dtype))


def compute_once(x: Values) -> Values:
    """Return x (an array or a tree of arrays) behind a barrier: every reader sees one and the same rounding."""
    return lax.optimization_barrier(x)
