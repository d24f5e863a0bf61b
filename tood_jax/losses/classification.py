"""Classification losses on probabilities, element by element; sums and normalisation belong to the detector.

Scores after the task alignment √(P·M) are probabilities that have no logits, so the losses take probabilities.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def binary_cross_entropy(prob: Float[Array, "*n"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """−t·log p − (1 − t)·log(1 − p); logarithms stop at −100 and the gradient stays finite at p = 0 and 1.

    The target is a constant: no gradient flows to it.
    """
    return -(target * jnp.maximum(jnp.log(prob), -100) + (1 - target) * jnp.maximum(jnp.log1p(-prob), -100))


@binary_cross_entropy.defjvp
def _binary_cross_entropy_jvp(primals, tangents):
    prob, target = primals
    slope = (prob - target) / jnp.maximum(prob * (1 - prob), 1e-12)
    return binary_cross_entropy(prob, target), slope * tangents[0]


def quality_focal_loss(prob: Float[Array, "*n"], target: Float[Array, "*n"], beta: float = 2.0) -> Float[Array, "*n"]:
    """|t̂ − p|^β · BCE(p, t̂) (paper equation 8; Li et al. 2020, equation 5).

    Args:
        prob: 0–1.
        target: soft label 0–1 at the object's class, 0 everywhere else.
        beta: focusing exponent, ≥ 1.
    """
    distance = jnp.abs(target - prob)
    weight = distance * distance if beta == 2 else distance**beta
    return weight * binary_cross_entropy(prob, target)


def focal_loss(
    prob: Float[Array, "*n"], target: Float[Array, "*n"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*n"]:
    """Focal loss (Lin et al. 2017, equation 5) on probabilities; targets are 0 or 1."""
    wrongness = (1 - prob) * target + prob * (1 - target)
    balance = alpha * target + (1 - alpha) * (1 - target)
    weight = wrongness * wrongness if gamma == 2 else wrongness**gamma
    return balance * weight * binary_cross_entropy(prob, target)
