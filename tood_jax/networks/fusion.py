"""How XLA:CPU is kept from computing a map again in everything that reads it."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def computed_once(x: Array) -> Array:
    """x itself; compiled for CPUs, XLA computes and stores it once, however many read it. Float32 only, else no help.

    XLA:CPU fuses sums, products and comparisons into each fusion that reads them, all the way back along residual
    additions, and removes a barrier before that. It won't repeat a division. This one is by 1, which LLVM sees from the
    bits, and drops: it costs nothing and changes no bit. Where LLVM is told not to optimise it is carried out, and
    subnormal numbers become zero.
    """
    return lax.platform_dependent(x, cpu=_divided_by_one, default=lambda x: x)


def _divided_by_one(x):
    if x.dtype != jnp.float32:
        return x
    zero = lax.bitcast_convert_type(x, jnp.uint32) >> 31 >> 1  # one shift by 32 isn't defined
    return x / (1 + zero.astype(x.dtype))
