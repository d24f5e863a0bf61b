"""GroupNorm and ReLU of level maps, with statistics per level, and zeros in the gaps and outside of the areas.

The formula is that of one level: relu(group_norm(x)). For several levels in one array autodiff would keep several
float32 maps per layer; the gradient here keeps the input alone and computes the rest again.

Axes: B images · H, W locations of the array · L levels · F channels, in G groups.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tood_jax.ops.group_norm import group_norm, over_groups, statistics
from tood_jax.ops.image_area import Mask
from tood_jax.ops.relu import relu
from tood_jax.ops.t_head.level_maps import Layout, LevelMaps, broadcast_levels, clear, level_counts, level_sums
from tood_jax.precision import at_least_float32


def norm_relu(maps: LevelMaps, scale: Float[Array, " f"], bias: Float[Array, " f"], groups: int) -> LevelMaps:
    """Return relu(GroupNorm(x)) of each level, in the type of x; computed in float32 at least.

    Statistics are taken over the images' areas, outside of which the result is 0.

    Args:
        groups: G, which divides F.
    """
    if len(maps.layout.shapes) == 1:
        data = relu(group_norm(maps.data, scale, bias, groups, maps.inside))
    else:
        data = _norm_relu(maps.data, scale, bias, groups, maps.layout, maps.inside)
    return LevelMaps(data, maps.layout, maps.inside)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _norm_relu(
    x: Float[Array, "b hh ww f"],
    scale: Float[Array, " f"],
    bias: Float[Array, " f"],
    groups: int,
    layout: Layout,
    inside: Mask,
) -> Float[Array, "b hh ww f"]:
    return _forward(x, scale, bias, groups, layout, inside)[0]


def _counts(channels: int, groups: int, layout: Layout, inside: Mask) -> Float[Array, "#b l 1"]:
    """Return how many numbers the mean of a group is taken of, per level."""
    return level_counts(layout, inside) * (channels // groups)


def _statistics(x, groups: int, layout: Layout, inside: Mask) -> tuple[Float[Array, "b l f"], Float[Array, "b l f"]]:
    count = _counts(x.shape[-1], groups, layout, inside)
    return statistics(
        x,
        lambda y: over_groups(level_sums(y, layout, inside), groups) / count,
        lambda y, mean: y - broadcast_levels(mean, layout),
    )


def _centred(x, mean, layout: Layout) -> Float[Array, "b hh ww f"]:
    return at_least_float32(x) - broadcast_levels(mean, layout)


def _forward(x, scale, bias, groups, layout, inside):
    x = _rounded(x)
    mean, rate = _statistics(x, groups, layout, inside)
    out = jax.nn.relu(_centred(x, mean, layout) * broadcast_levels(rate * scale, layout) + bias)
    return clear(out, layout, inside).astype(x.dtype), (x, mean, rate, scale, bias, inside)


def _backward(groups, layout, residuals, cotangent):
    """Read x and the cotangent twice: once for the sums, once for the gradient.

    Products of factors per level and channel are taken before they are broadcast, or XLA writes a float32 map between
    the two.
    """
    x, mean, rate, scale, bias, inside = residuals
    centred, gain = _centred(x, mean, layout), broadcast_levels(rate * scale, layout)
    is_on = clear(centred * gain + bias, layout, inside) > 0
    cotangent = jnp.where(is_on, at_least_float32(_rounded(cotangent)), 0)
    to_bias, to_scale = level_sums(cotangent, layout), rate * level_sums(cotangent * centred, layout)  # per level
    count = _counts(x.shape[-1], groups, layout, inside)
    along_mean = rate * over_groups(scale * to_bias, groups) / count
    along_rate = rate**2 * over_groups(scale * to_scale, groups) / count
    to_x = cotangent * gain - broadcast_levels(along_mean, layout) - centred * broadcast_levels(along_rate, layout)
    return clear(to_x, layout, inside).astype(x.dtype), to_scale.sum(axis=(0, 1)), to_bias.sum(axis=(0, 1)), None


def _rounded(x: Float[Array, "b hh ww f"]) -> Float[Array, "b hh ww f"]:
    """Return x, in bfloat16 indeed: XLA would keep the map in float32, twice as large, if it could."""
    return jax.lax.optimization_barrier(x) if x.dtype == jnp.bfloat16 else x


_norm_relu.defvjp(_forward, _backward)
