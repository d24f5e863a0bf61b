"""The geometric mean of two probabilities, from their logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def sigmoid_geometric_mean(a: Float[Array, "*#n"], b: Float[Array, "*#n"]) -> Float[Array, "*n"]:
    """Return √(σ(a)·σ(b)) of logits, 0–1 (paper equation 5), with finite gradients however large the logits are.

    Its derivatives are y·(1 − σ(a))/2 and y·(1 − σ(b))/2; the square root itself is never differentiated.
    """
    return jnp.exp(0.5 * (jax.nn.log_sigmoid(a) + jax.nn.log_sigmoid(b)))


@sigmoid_geometric_mean.defjvp
def _jvp(primals, tangents):
    a, b = primals
    y = sigmoid_geometric_mean(a, b)
    return y, 0.5 * y * (jax.nn.sigmoid(-a) * tangents[0] + jax.nn.sigmoid(-b) * tangents[1])
