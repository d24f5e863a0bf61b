"""Binary cross entropy of probabilities, finite in value and gradient at 0 and 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def binary_cross_entropy(prob: Float[Array, "*n"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return −t·log p − (1 − t)·log(1 − p); logarithms stop at −100 and the gradient stays finite at p = 0 and 1.

    The target is a constant: no gradient flows to it.
    """
    return -(target * jnp.maximum(jnp.log(prob), -100) + (1 - target) * jnp.maximum(jnp.log1p(-prob), -100))


@binary_cross_entropy.defjvp
def _jvp(primals, tangents):
    prob, target = primals
    slope = (prob - target) / jnp.maximum(prob * (1 - prob), 1e-12)
    return binary_cross_entropy(prob, target), slope * tangents[0]
