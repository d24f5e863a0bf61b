"""Box losses, box by box; weights and normalisation belong to the detector."""

from jaxtyping import Array, Float

from tood_jax.geometry.boxes import aligned_giou


def giou_loss(pred: Float[Array, "*n 4"], target: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """1 − GIoU of xyxy boxes in one unit, 0–2 (Rezatofighi et al. 2019)."""
    return 1 - aligned_giou(pred, target)
