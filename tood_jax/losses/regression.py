"""Box losses, box by box; weights and normalisation are in `criterion/`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tood_jax.geometry.boxes import aligned_giou


def giou_loss(pred: Float[Array, "*n 4"], target: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Return 1 − GIoU of xyxy boxes in one unit, 0–2 (Rezatofighi et al. 2019)."""
    return 1 - aligned_giou(pred, target)


def smooth_l1_loss(difference: Float[Array, "*n"], beta: float = 0.11) -> Float[Array, "*n"]:
    """Return |d| − β/2, and d²/2β below β (Girshick 2015); 0.11 is FoveaBox's β."""
    size = jnp.abs(difference)
    return jnp.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def distribution_focal_loss(logits: Float[Array, "*n k"], distance: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return the cross entropy towards the two bins around a distance, each weighted by its nearness.

    Li et al. 2020, equation 6.

    Args:
        logits: of the bins 0 … K−1.
        distance: 0 ≤ d < K − 1, in bins; a constant to autodiff.
    """
    log_share = jax.nn.log_softmax(logits, axis=-1)
    left = jnp.floor(distance).astype(jnp.int32)[..., None]
    at_left = jnp.take_along_axis(log_share, left, axis=-1)[..., 0]
    at_right = jnp.take_along_axis(log_share, left + 1, axis=-1)[..., 0]
    nearness = distance - left[..., 0]
    return -((1 - nearness) * at_left + nearness * at_right)
