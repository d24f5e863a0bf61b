"""The stem's convolution of stride 2 as one of stride 1 over 2×2 pixels, for TPUs."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def suits_space_to_depth(x, kernel, stride: int, padding: int) -> bool:
    """Return whether `conv2d_space_to_depth` computes this convolution, and its map has few channels."""
    size, _, channels, _ = kernel.shape
    is_even = x.shape[1] % 2 == x.shape[2] % 2 == 0
    return stride == 2 and padding % 2 == 1 and size == 2 * padding + 1 and channels == x.shape[-1] <= 4 and is_even


def conv2d_space_to_depth(
    x: Float[Array, "b hh ww i"], kernel: Float[Array, "kh kw i o"], precision: lax.PrecisionLike = None
) -> Float[Array, "b h w o"]:
    """Return a convolution of stride 2, padded by size // 2, as one of stride 1 over 2×2 pixels with 4·I channels.

    A TPU stores 128 numbers per pixel, however few channels it has. Slices make the channels, since XLA turns a reshape
    into copies of twice the map.

    Args:
        x: of even height and width.
        kernel: of size 3, 7, 11, …
    """
    blocks = jnp.concatenate([x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)], axis=-1)
    size, _, inputs, outputs = kernel.shape
    half = (size + 1) // 2  # a row and column of zeros in front make the kernel's size even
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(half, 2, half, 2, inputs, outputs)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(half, half, 4 * inputs, outputs)
    around = ((half // 2, half // 2 - 1),) * 2
    return lax.conv_general_dilated(
        blocks, kernel, (1, 1), around, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )
