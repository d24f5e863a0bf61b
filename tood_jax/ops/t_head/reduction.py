"""The 1×1 convolutions that read T-head's interactive features, in one product.

They are both task decompositions (equations 2–4) and the first convolution of each branch of the task alignment. The
interactive features are the largest maps of the network, so they are read once.

Axes: B images · h, w locations of a level · P levels · L interactive layers of F channels · I = L·F · O output
channels.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.ops.conv.conv2d import conv2d
from tood_jax.ops.dispatch import by_platform
from tood_jax.ops.image_area import Mask, mean_inside
from tood_jax.ops.t_head.level_maps import LevelMaps, layout_of, pack


class Attended(NamedTuple):
    """A 1×1 convolution of features whose layers are weighted first (layer attention)."""

    weights: Float[Array, "b p 1 l"]  # of each layer, 0–1, per image and level
    kernel: Float[Array, "1 1 i o"]


class Pointwise(NamedTuple):
    """A 1×1 convolution with a bias."""

    kernel: Float[Array, "1 1 i k"]
    bias: Float[Array, " k"]


def concatenate_layers(layers: Sequence[LevelMaps]) -> tuple[Float[Array, "b _ _ i"], ...]:
    """Return the interactive features of each level: the maps of all layers side by side."""
    return tuple(jnp.concatenate(maps, axis=-1) for maps in zip(*(layer.levels() for layer in layers), strict=True))


def pool_levels(features: Sequence[Float[Array, "b _ _ i"]], areas: Sequence[Mask]) -> Float[Array, "b p 1 i"]:
    """Return the mean of each level over the images' areas, outside of which the features are zero."""
    means = [mean_inside(x, area) for x, area in zip(features, areas, strict=True)]
    return means[0] if len(means) == 1 else jnp.concatenate(means, axis=1)


def reduce_features(
    features: Sequence[Float[Array, "b _ _ i"]],
    attended: Sequence[Attended],
    pointwise: Sequence[Pointwise],
    inside: Mask = None,
) -> list[LevelMaps]:
    """Return the output of each convolution, `attended` first, for all levels.

    The formula is `_reduce_apart`: weight the layers, then convolve. Elsewhere the attention weights the kernels, which
    gives the same numbers without weighted copies of the features. On a map with fewer locations than output channels
    the kernels of all images would be larger than the features.

    Args:
        features: zero outside of the images' areas.
        inside: the images' areas, as in `LevelMaps`.

    Raises:
        ValueError: a kernel is not 1×1.
    """
    for kernel in [convolution.kernel for convolution in attended] + [convolution.kernel for convolution in pointwise]:
        if kernel.shape[:2] != (1, 1):
            size = "×".join(map(str, kernel.shape[:2]))
            raise ValueError(
                f"reduce_features computes 1×1 convolutions in one product and got a {size} kernel: apply that "
                "convolution to the interactive features itself."
            )
    if len(features) == 1 and features[0].shape[1] * features[0].shape[2] <= attended[0].kernel.shape[-1]:
        outputs = _reduce_apart(features[0], attended, pointwise)
    else:
        outputs = _reduce_together(features, attended, pointwise)
    layout = layout_of([(x.shape[1], x.shape[2]) for x in features])
    maps = [LevelMaps(data, layout, inside) for data in outputs]
    count = len(attended)
    biased = [out.map(partial(jnp.add, bias)) for out, (_, bias) in zip(maps[count:], pointwise, strict=True)]
    return maps[:count] + [out.cleared() for out in biased]


def _reduce_apart(
    x: Float[Array, "b h w i"], attended: Sequence[Attended], pointwise: Sequence[Pointwise]
) -> list[Array]:
    outputs = []
    for weights, kernel in attended:
        by_layer = x.reshape(*x.shape[:3], weights.shape[-1], -1)
        outputs.append(conv2d((by_layer * weights[..., None]).reshape(x.shape), kernel))
    return outputs + [conv2d(x, kernel) for kernel, _ in pointwise]


def _reduce_together(
    features: Sequence[Float[Array, "b _ _ i"]], attended: Sequence[Attended], pointwise: Sequence[Pointwise]
) -> list[Array]:
    kernels = [_attended_kernel(weights, kernel[0, 0]) for weights, kernel in attended]
    shape = kernels[0].shape[:2]
    kernels += [jnp.broadcast_to(kernel[0, 0], (*shape, *kernel.shape[2:])) for kernel, _ in pointwise]
    joined = jnp.concatenate(kernels, axis=-1)  # [B, P, I, all O]
    ends = [sum(kernel.shape[-1] for kernel in kernels[: i + 1]) for i in range(len(kernels) - 1)]
    if len(features) == 1:
        reduced = product_per_image(features[0], joined[:, 0])
    else:
        levels = [jnp.einsum("bhwi,bio->bhwo", x, joined[:, i]) for i, x in enumerate(features)]
        reduced = pack(levels, layout_of([(x.shape[1], x.shape[2]) for x in features]))
    return jnp.split(reduced, ends, axis=-1)


def _attended_kernel(weights: Float[Array, "b p 1 l"], kernel: Float[Array, "i o"]) -> Float[Array, "b p i o"]:
    """Return the kernel for each image and level, with the attention of its layers folded in."""
    weights = weights[:, :, 0]
    by_layer = kernel.reshape(weights.shape[-1], -1, kernel.shape[-1])
    return weight_kernels(weights, by_layer).reshape(*weights.shape[:2], *kernel.shape)


@jax.custom_vjp
def weight_kernels(weights: Float[Array, "b p l"], kernels: Float[Array, "l i o"]) -> Float[Array, "b p l i o"]:
    """Return the kernel of each layer times its weight in each image and level.

    The gradient of the kernels, a sum over images of large arrays, is a product on CPUs, where XLA takes thirty times
    as long for the sum.
    """
    return weights[..., None, None] * kernels


def _weight_kernels_backward(residuals, cotangent):
    weights, kernels = residuals
    by_product = partial(jnp.einsum, "bpl,bplio->lio")
    to_kernels = by_platform(weights, cotangent, cpu=by_product, default=_sum_over_images)
    return (cotangent * kernels).sum(axis=(-2, -1)), to_kernels


def _sum_over_images(weights, cotangent):
    return (weights[..., None, None] * cotangent).sum(axis=(0, 1))


weight_kernels.defvjp(
    lambda weights, kernels: (weight_kernels(weights, kernels), (weights, kernels)), _weight_kernels_backward
)


@jax.custom_vjp
def product_per_image(x: Float[Array, "b h w i"], kernels: Float[Array, "b i o"]) -> Float[Array, "b h w o"]:
    """Return the map of each image times its own kernel, with a gradient that takes its cotangent in one piece.

    The cotangent comes in parts, one per convolution: XLA:GPU would join them within each product of the gradient, and
    fail at these.
    """
    return jnp.einsum("bhwi,bio->bhwo", x, kernels)


def _product_backward(residuals, cotangent):
    x, kernels = residuals
    cotangent = lax.optimization_barrier(cotangent)
    return jnp.einsum("bhwo,bio->bhwi", cotangent, kernels), jnp.einsum("bhwi,bhwo->bio", x, cotangent)


product_per_image.defvjp(lambda x, kernels: (product_per_image(x, kernels), (x, kernels)), _product_backward)
