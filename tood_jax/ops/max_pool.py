"""Max-pooling of the stem.

The formula is `_native`. XLA:CPU walks over every window, and its gradient over all windows with four maps of indices,
which takes two to four times as long as the maximum of slices (`_of_slices`), which CPUs use.

Axes: B images · H, W locations of the input · h, w of the output · F channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.ops.dispatch import by_platform


@jax.custom_vjp
def max_pool(x: Float[Array, "b hh ww f"]) -> Float[Array, "b h w f"]:
    """Return the largest of 3×3 locations at stride 2, padded by one.

    Of equal ones the first gets the gradient, as in PyTorch. The gradient is reverse-mode only.
    """
    return by_platform(x, cpu=_of_slices, default=_native)


def _backward(x, cotangent):
    def pull_back(function):
        return lambda x, cotangent: jax.vjp(function, x)[1](cotangent)[0]

    return (by_platform(x, cotangent, cpu=pull_back(_of_slices), default=pull_back(_native)),)


max_pool.defvjp(lambda x: (max_pool(x), x), _backward)


def _native(x):
    return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])


def _of_slices(x):
    return _largest_of_three(
        _largest_of_three(x, axis=2), axis=1
    )  # columns first: of equal locations the first in a row


def _largest_of_three(x, axis: int):
    length = x.shape[axis]
    count = (length + 1) // 2
    around = [(0, 0)] * x.ndim
    around[axis] = (1, 2 * count - length)
    padded = jnp.pad(x, around, constant_values=-jnp.inf)
    left, middle, right = (lax.slice_in_dim(padded, at, at + 2 * count - 1, 2, axis) for at in range(3))
    return _larger(_larger(left, middle), right)


def _larger(a, b):
    """Return the larger value, the first of two equal ones; NaN if one is NaN."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)
