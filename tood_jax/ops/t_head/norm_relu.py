"""GroupNorm and ReLU of level maps, with statistics per level and zeros in the gaps.

The formula is that of one level: relu(group_norm(x)). For several levels in one array autodiff would keep several
float32 maps per layer; the gradient here keeps the input alone and computes the rest again.

Axes: B images · H, W locations of the array · L levels · F channels, in G groups.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tood_jax.ops.group_norm import group_norm, over_groups, statistics
from tood_jax.ops.relu import relu
from tood_jax.ops.t_head.level_maps import Layout, LevelMaps, broadcast_levels, clear_gaps, level_sums
from tood_jax.precision import at_least_float32


def norm_relu(maps: LevelMaps, scale: Float[Array, " f"], bias: Float[Array, " f"], groups: int) -> LevelMaps:
    """Return relu(GroupNorm(x)) of each level, in the type of x; computed in float32 at least.

    Args:
        groups: G, which divides F.
    """
    if len(maps.layout.shapes) == 1:
        return maps.map(lambda x: relu(group_norm(x, scale, bias, groups)))
    return LevelMaps(_norm_relu(maps.data, scale, bias, groups, maps.layout), maps.layout)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _norm_relu(
    x: Float[Array, "b hh ww f"], scale: Float[Array, " f"], bias: Float[Array, " f"], groups: int, layout: Layout
) -> Float[Array, "b hh ww f"]:
    return _forward(x, scale, bias, groups, layout)[0]


def _counts(channels: int, groups: int, layout: Layout) -> Float[Array, "l 1"]:
    """Return how many numbers the mean of a group is taken of, per level."""
    locations = [height * width for height, width in layout.shapes]
    return jnp.asarray(locations, jnp.float32)[:, None] * (channels // groups)


def _statistics(x, groups: int, layout: Layout) -> tuple[Float[Array, "b l f"], Float[Array, "b l f"]]:
    count = _counts(x.shape[-1], groups, layout)
    return statistics(
        x, lambda y: over_groups(level_sums(y, layout), groups) / count, partial(broadcast_levels, layout=layout)
    )


def _centred(x, mean, layout: Layout) -> Float[Array, "b hh ww f"]:
    return at_least_float32(x) - broadcast_levels(mean, layout)


def _forward(x, scale, bias, groups, layout):
    x = _rounded(x)
    mean, rate = _statistics(x, groups, layout)
    out = jax.nn.relu(_centred(x, mean, layout) * broadcast_levels(rate * scale, layout) + bias)
    return clear_gaps(out, layout).astype(x.dtype), (x, mean, rate, scale, bias)


def _backward(groups, layout, residuals, cotangent):
    """Read x and the cotangent twice: once for the sums, once for the gradient.

    Products of factors per level and channel are taken before they are broadcast, or XLA writes a float32 map between
    the two.
    """
    x, mean, rate, scale, bias = residuals
    centred, gain = _centred(x, mean, layout), broadcast_levels(rate * scale, layout)
    is_on = clear_gaps(centred * gain + bias, layout) > 0
    cotangent = jnp.where(is_on, at_least_float32(_rounded(cotangent)), 0)
    to_bias, to_scale = level_sums(cotangent, layout), rate * level_sums(cotangent * centred, layout)  # per level
    count = _counts(x.shape[-1], groups, layout)
    along_mean = rate * over_groups(scale * to_bias, groups) / count
    along_rate = rate**2 * over_groups(scale * to_scale, groups) / count
    to_x = cotangent * gain - broadcast_levels(along_mean, layout) - centred * broadcast_levels(along_rate, layout)
    return clear_gaps(to_x, layout).astype(x.dtype), to_scale.sum(axis=(0, 1)), to_bias.sum(axis=(0, 1))


def _rounded(x: Float[Array, "b hh ww f"]) -> Float[Array, "b hh ww f"]:
    """Return x, in bfloat16 indeed: XLA would keep the map in float32, twice as large, if it could."""
    return jax.lax.optimization_barrier(x) if x.dtype == jnp.bfloat16 else x


_norm_relu.defvjp(_forward, _backward)
