"""GroupNorm and ReLU on a canvas of packed levels: statistics a level, gaps left at zero, and a gradient of its own.

Autodiff would keep several float32 maps a layer; this keeps the layer's input alone and computes the rest again.

Axes: B images · H, W the canvas's cells · L levels · F channels, in G groups.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tood_jax.geometry.packing import Packing, clear_gaps, level_sums, spread_levels
from tood_jax.networks.group_norm import over_groups, statistics


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def packed_norm(
    x: Float[Array, "b hh ww f"], scale: Float[Array, " f"], bias: Float[Array, " f"], groups: int, where: Packing
) -> Float[Array, "b hh ww f"]:
    """relu(GroupNorm(x)) a level, zero in the gaps, in the type of x; computed in float32, as `group_norm` is."""
    return _forward(x, scale, bias, groups, where)[0]


def _counts(channels: int, groups: int, where: Packing) -> Float[Array, "l 1"]:
    """Numbers that a group's mean is taken of, a level."""
    cells = [height * width for height, width in where.shapes]
    return jnp.asarray(cells, jnp.float32)[:, None] * (channels // groups)


def _statistics(x, groups: int, where: Packing) -> tuple[Float[Array, "b l f"], Float[Array, "b l f"]]:
    count = _counts(x.shape[-1], groups, where)
    return statistics(
        x, lambda y: over_groups(level_sums(y, where), groups) / count, partial(spread_levels, where=where)
    )


def _centred(x, mean, where: Packing) -> Float[Array, "b hh ww f"]:
    return x.astype(jnp.float32) - spread_levels(mean, where)


def _forward(x, scale, bias, groups, where):
    x = _rounded(x)
    mean, rate = _statistics(x, groups, where)
    out = jax.nn.relu(_centred(x, mean, where) * spread_levels(rate * scale, where) + bias)
    return clear_gaps(out, where).astype(x.dtype), (x, mean, rate, scale, bias)


def _backward(groups, where, residuals, cotangent):
    """Two looks at x and the cotangent: one for the sums, one for the gradient.

    Of factors a level and channel all products are taken before they are spread, or XLA writes a float32 map between
    the two looks.
    """
    x, mean, rate, scale, bias = residuals
    centred, gain = _centred(x, mean, where), spread_levels(rate * scale, where)
    is_on = clear_gaps(centred * gain + bias, where) > 0
    cotangent = jnp.where(is_on, _rounded(cotangent).astype(jnp.float32), 0)
    to_bias, to_scale = level_sums(cotangent, where), rate * level_sums(cotangent * centred, where)  # a level
    count = _counts(x.shape[-1], groups, where)
    along_mean = rate * over_groups(scale * to_bias, groups) / count
    along_rate = rate**2 * over_groups(scale * to_scale, groups) / count
    to_x = cotangent * gain - spread_levels(along_mean, where) - centred * spread_levels(along_rate, where)
    return clear_gaps(to_x, where).astype(x.dtype), to_scale.sum(axis=(0, 1)), to_bias.sum(axis=(0, 1))


def _rounded(x: Float[Array, "b hh ww f"]) -> Float[Array, "b hh ww f"]:
    """The map of a convolution, in bfloat16 indeed: XLA would keep it in float32, twice as large, if it could."""
    return jax.lax.optimization_barrier(x) if x.dtype == jnp.bfloat16 else x


packed_norm.defvjp(_forward, _backward)
