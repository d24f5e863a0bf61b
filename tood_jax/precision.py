"""The float types of the computation.

Maps and kernels are in the compute type: bfloat16, float32, or float64 (comparisons alone). Sums, norms, scores, boxes
and all that follows are in the sum type: float32 for bfloat16, otherwise the compute type.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # of `config.TrainConfig.precision`


def sum_type(*arrays: Array) -> Any:
    """Return the type in which sums over these floating arrays are taken: float32, or float64 if one of them is."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def at_least_float32(x: Array) -> Array:
    """Return a floating array in its sum type."""
    return x.astype(sum_type(x))
