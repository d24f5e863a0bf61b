"""Classification losses on probabilities, element by element; sums and normalisation are in `criterion/`.

Scores after the task alignment √(P·M) are probabilities that have no logits, so the losses take probabilities.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from tood_jax.ops.binary_cross_entropy import binary_cross_entropy


def quality_focal_loss(prob: Float[Array, "*n"], target: Float[Array, "*n"], beta: float = 2.0) -> Float[Array, "*n"]:
    """Return |t̂ − p|^β · BCE(p, t̂) (paper equation 11; Li et al. 2020, equation 5).

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
    """Return the focal loss (Lin et al. 2017, equation 5) of probabilities; targets are 0 or 1."""
    error = (1 - prob) * target + prob * (1 - target)
    balance = alpha * target + (1 - alpha) * (1 - target)
    weight = error * error if gamma == 2 else error**gamma
    return balance * weight * binary_cross_entropy(prob, target)
