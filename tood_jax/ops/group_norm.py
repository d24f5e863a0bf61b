"""GroupNorm (Wu & He 2018) with a gradient of its own, which keeps one map and takes all sums a channel.

Autodiff of the plain formula sums over groups of channels, which XLA:CPU does slowly, and keeps more than one map.

Axes: B images · H, W locations · F channels, in G groups.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.ops.image_area import Mask, clear_outside, count_inside
from tood_jax.precision import at_least_float32, sum_type

EPSILON = 1e-5  # of every normalisation, as in PyTorch


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def group_norm(
    x: Float[Array, "b h w f"], scale: Float[Array, " f"], bias: Float[Array, " f"], groups: int, inside: Mask = None
) -> Float[Array, "b h w f"]:
    """Each image's groups of channels at mean 0 and variance 1, times scale, plus bias; computed in float32 at least.

    Outside of the images' areas it is 0.

    Args:
        scale: of the sum type of x.
        bias: of the sum type of x.
        groups: G, which divides F.
        inside: the images' areas, over which means and variances are taken.
    """
    return _forward(x, scale, bias, groups, inside)[0]


def over_groups(sums: Float[Array, "*n f"], groups: int) -> Float[Array, "*n f"]:
    """Each channel's sum replaced by its group's."""
    by_group = sums.reshape(*sums.shape[:-1], groups, -1)
    return jnp.broadcast_to(by_group.sum(axis=-1, keepdims=True), by_group.shape).reshape(sums.shape)


def statistics(
    x: Array, means: Callable[[Array], Array], subtract: Callable[[Array, Array], Array]
) -> tuple[Float[Array, "*n f"], Float[Array, "*n f"]]:
    """Mean and 1 / standard deviation of each channel's group, float32.

    In float32 the variance is the mean of squared differences; of a bfloat16 map, which is itself rounded to 2⁻⁹, the
    mean of squares less the squared mean, which reads the map once less.

    Args:
        means: of a float32 map (x, its squares, or what `subtract` returns) to one value a group, repeated for its
            channels.
        subtract: (map, means) to the map less the mean of each group.
    """
    given = at_least_float32(x)
    mean = means(given)
    if x.dtype == jnp.bfloat16:
        variance = jnp.maximum(means(given * given) - mean**2, 0)
    else:
        centred = subtract(given, mean)
        variance = means(centred * centred)
    return mean, lax.rsqrt(variance + EPSILON)


def _spread(values: Float[Array, "b f"]) -> Float[Array, "b 1 1 f"]:
    return values[:, None, None]


def _count(x: Float[Array, "b h w f"], groups: int, inside: Mask) -> int | Float[Array, "b 1"]:
    """Return how many numbers the mean of a group is taken of."""
    return count_inside(x, inside) * (x.shape[3] // groups)


def _forward(x, scale, bias, groups, inside=None):
    """Clear the map and its differences once: XLA:CPU writes a map anew for every sum that has a mask of its own."""
    given, count = clear_outside(x, inside), _count(x, groups, inside)

    def means(y: Float[Array, "b h w f"]) -> Float[Array, "b f"]:
        return over_groups(y.sum(axis=(1, 2)), groups) / count

    mean, rate = statistics(given, means, partial(_subtract, inside=inside))
    centred = _subtract(at_least_float32(given), mean, inside)
    out = clear_outside(centred * _spread(rate * scale) + bias, inside).astype(x.dtype)
    return out, (centred if x.dtype == centred.dtype else x, mean, rate, scale, inside)


def _subtract(x: Float[Array, "b h w f"], mean: Float[Array, "b f"], inside: Mask) -> Float[Array, "b h w f"]:
    return clear_outside(x - _spread(mean), inside)


def _backward(groups, residuals, cotangent):
    kept, mean, rate, scale, inside = residuals
    centred = kept if kept.dtype == sum_type(kept) else _subtract(at_least_float32(kept), mean, inside)
    given = at_least_float32(cotangent)
    to_bias = clear_outside(given, inside).sum(axis=(1, 2))  # an image
    to_scale = rate * (given * centred).sum(axis=(1, 2))
    count = _count(centred, groups, inside)
    along_mean = rate * over_groups(scale * to_bias, groups) / count
    along_rate = rate**2 * over_groups(scale * to_scale, groups) / count
    to_x = clear_outside(given * _spread(rate * scale) - _spread(along_mean) - centred * _spread(along_rate), inside)
    return to_x.astype(kept.dtype), _over_images(to_scale), _over_images(to_bias), None


def _over_images(sums: Float[Array, "b f"]) -> Float[Array, " f"]:
    """A product, for XLA would make one sum of two, with another look at the map."""
    return lax.dot(jnp.ones(len(sums), sums.dtype), sums, precision=lax.Precision.HIGHEST)


group_norm.defvjp(_forward, _backward)
