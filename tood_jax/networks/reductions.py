"""The 1×1 convolutions that read T-head's interactive features: both task decompositions (equations 1–3) and the first
of each branch of the alignment, in one product, for the features are the largest maps of the network.

Axes: B images · H, W a level's cells · P levels · F = channels of the tower · L = interactive convolutions · K = hidden
channels of the alignment · R = 2·F + 2·K, or 2·F without alignment.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.networks.alignment import Hidden


class Reduced(NamedTuple):
    """What the reductions give, before norms and ReLUs."""

    cls: Float[Array, "b h w f"]
    reg: Float[Array, "b h w f"]
    hidden: Hidden | None


def reduce_features(head: Any, features: Float[Array, "b h w lf"]) -> Reduced:
    """Of a bound `THead` and the interactive features of one level.

    Layer attention weighs the kernels, so that the weighed features never exist, but on maps of fewer cells than
    channels the features, which there are smaller than the kernels of all images.
    """
    pooled = features.mean(axis=(1, 2), keepdims=True)
    is_small = features.shape[1] * features.shape[2] <= head.channels
    if is_small or head.is_initializing():
        cls, reg = (one.reduced(features, pooled) for one in (head.cls_decomposition, head.reg_decomposition))
        return Reduced(cls, reg, head.align.hidden(features))
    return parted(head, product(features, joined_kernels(head, pooled)[:, 0]))


@jax.custom_vjp
def product(x: Float[Array, "b h w i"], kernels: Float[Array, "b i o"]) -> Float[Array, "b h w o"]:
    """Each image's map times its own kernel, with a gradient that takes its cotangent in one piece.

    It comes in the parts of `parted`: XLA:GPU would join them in each of the gradient's products, and fail at these.
    """
    return jnp.einsum("bhwi,bio->bhwo", x, kernels)


def _product_backward(given, cotangent):
    x, kernels = given
    cotangent = lax.optimization_barrier(cotangent)
    return jnp.einsum("bhwo,bio->bhwi", cotangent, kernels), jnp.einsum("bhwi,bhwo->bio", x, cotangent)


product.defvjp(lambda x, kernels: (product(x, kernels), (x, kernels)), _product_backward)


def joined_kernels(head: Any, pooled: Float[Array, "b p 1 lf"]) -> Float[Array, "b p lf r"]:
    """The kernel of all four for each image and level: layer attention is folded into it."""
    parts = [one.kernels(pooled) for one in (head.cls_decomposition, head.reg_decomposition)]
    for convolution in _first_of_alignment(head):
        kernel = convolution.variables["params"]["kernel"][0, 0].astype(head.dtype)
        parts.append(jnp.broadcast_to(kernel, (*parts[0].shape[:2], *kernel.shape)))
    return jnp.concatenate(parts, axis=-1)


def parted(head: Any, reduced: Float[Array, "b h w r"]) -> Reduced:
    """What that kernel gave, by its parts, with the alignment's biases."""
    sizes = [head.channels, 2 * head.channels, 2 * head.channels + head.align.channels]
    cls, reg, *hidden = jnp.split(reduced, sizes[: 3 if head.align.active else 1], axis=-1)
    biases = [one.variables["params"]["bias"].astype(head.dtype) for one in _first_of_alignment(head)]
    if not biases:
        return Reduced(cls, reg, None)
    return Reduced(cls, reg, (hidden[0] + biases[0], hidden[1] + biases[1]))


def _first_of_alignment(head: Any) -> tuple[Any, ...]:
    return (head.align.cls_alignment[0], head.align.reg_alignment[0]) if head.align.active else ()
