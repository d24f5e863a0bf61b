"""The stem's max-pooling, with what is quick on each platform.

XLA:CPU walks over every window, and its gradient over all windows with four maps of indices: two to four times as long
as the largest of slices, by which CPUs have it here. GPUs and TPUs keep the native ones.

Axes: B images · H, W the input's cells · h, w the output's · F channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def max_pool(x: Float[Array, "b hh ww f"]) -> Float[Array, "b h w f"]:
    """The largest of 3×3 cells at stride 2, padded by one; of equal ones the first gets the gradient, as in PyTorch.

    Its gradient is reverse-mode only.
    """
    return lax.platform_dependent(x, cpu=_of_slices, default=_native)


def _backward(x, cotangent):
    def pull_back(function):
        return lambda x, cotangent: jax.vjp(function, x)[1](cotangent)[0]

    return (lax.platform_dependent(x, cotangent, cpu=pull_back(_of_slices), default=pull_back(_native)),)


max_pool.defvjp(lambda x: (max_pool(x), x), _backward)


def _native(x):
    return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])


def _of_slices(x):
    return _largest_of_three(_largest_of_three(x, axis=2), axis=1)  # columns first: of equal cells the first in a row


def _largest_of_three(x, axis: int):
    length = x.shape[axis]
    count = (length + 1) // 2
    around = [(0, 0)] * x.ndim
    around[axis] = (1, 2 * count - length)
    padded = jnp.pad(x, around, constant_values=-jnp.inf)
    left, middle, right = (lax.slice_in_dim(padded, at, at + 2 * count - 1, 2, axis) for at in range(3))
    return _larger(_larger(left, middle), right)


def _larger(a, b):
    """The larger one, the first of two equal ones; NaN wins."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)
