"""Convolutions and their gradients as matrix products, for CPUs.

Each function gives what XLA's own convolution, or its gradient, gives. The `suits_…` functions return whether a product
is faster, by the sizes alone; the limits were measured by `python -m benchmarks.cases.convolutions`.

Axes: B images · H, W locations of the input · h, w of the output · I, O channels.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tood_jax.precision import sum_type

# A kernel's gradient is products of its taps if it has at most so many (the 49 of a stem are faster in one), and a map
# of at least so many locations, or so many inputs times outputs: with fewer little is gained, and these products take
# longer to compile than one convolution.
MOST_TAPS, LEAST_LOCATIONS, LEAST_PAIRS = 9, 512, 2**16
# A map's gradient is one product if there are at least so many channels on both sides, and if the contributions of all
# locations to all taps, which are held in one array, are at most so many numbers: no more than caches hold. So is a
# convolution of at most so many outputs, since fewer than 128 take XLA:CPU as long as 128 do.
LEAST_CHANNELS, MOST_CONTRIBUTIONS, FEW_OUTPUTS = 64, 6 * 2**20, 96


def is_pointwise(kernel, padding: int, groups: int) -> bool:
    """Return whether a convolution is a 1×1 convolution without padding and groups."""
    return kernel.shape[:2] == (1, 1) and padding == 0 and groups == 1


def suits_kernel_gradient(cotangent, kernel, groups: int) -> bool:
    """Return whether `kernel_gradient` is faster than XLA's."""
    rows, columns, inputs, outputs = kernel.shape
    locations = cotangent.size // outputs
    is_large = locations >= LEAST_LOCATIONS or inputs * outputs >= LEAST_PAIRS
    return rows * columns == 1 or (rows * columns <= MOST_TAPS and (is_large or groups > 1))


def suits_map_gradient(cotangent, kernel, groups: int) -> bool:
    """Return whether `map_gradient` is faster than XLA's."""
    return _fits_one_product(cotangent, kernel, groups, kernel.shape[2])


def suits_few_outputs(x, kernel, groups: int) -> bool:
    """Return whether `conv2d_of_few_outputs` is faster than XLA's convolution."""
    outputs = kernel.shape[-1]
    return outputs <= FEW_OUTPUTS and _fits_one_product(x, kernel, groups, outputs)


def _fits_one_product(x, kernel, groups: int, channels: int) -> bool:
    rows, columns, inputs, outputs = kernel.shape
    taps, locations = rows * columns, x.size // x.shape[-1]
    contributions = locations * taps * channels  # of a program for any batch size no number, and may be any
    is_small = taps <= MOST_TAPS and isinstance(contributions, int) and contributions <= MOST_CONTRIBUTIONS
    return is_small and groups == 1 and min(inputs, outputs) >= LEAST_CHANNELS and kernel.dtype == sum_type(kernel)


def pointwise(x, kernel, *, stride, precision):
    """Return a 1×1 convolution."""
    return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0], precision=precision)


def conv2d_of_few_outputs(x, kernel, *, padding, precision):
    """Return a convolution of stride 1: one product gives each location's contribution to each tap's output."""
    contributions = lax.dot_general(x, kernel, (((3,), (2,)), ((), ())), precision=precision)  # [B, H, W, kh, kw, O]
    last = len(kernel) - 1
    shape = tuple(length + 2 * padding - last for length in x.shape[1:3])
    return _sum_contributions(contributions, lambda tap: padding - tap, shape)


def map_gradient(x, kernel, cotangent, *, stride, padding, precision):
    """Return the gradient of the map: one product of the cotangent with all taps, and their sum (col2im).

    A convolution needs the kernel with its ends flipped and its channels swapped, and XLA:CPU copies it so more slowly
    than it then convolves a small map.
    """
    rows = kernel.reshape(-1, kernel.shape[-1])  # as a matrix, or XLA:CPU copies it
    contributions = lax.dot_general(cotangent, rows, (((3,), (1,)), ((), ())), precision=precision)
    contributions = contributions.reshape(*cotangent.shape[:3], *kernel.shape[:3])  # [B, h, w, kh, kw, I]
    return _sum_contributions(contributions, lambda tap: tap - padding, x.shape[1:3], stride)


def _sum_contributions(
    contributions: Float[Array, "b h w kh kw n"], shift: Callable[[int], int], shape: tuple[int, ...], stride: int = 1
) -> Float[Array, "b hh ww n"]:
    """Return the contributions of locations to taps, summed on a map of this (height, width).

    The contribution of location i to a tap belongs to location `stride` · i + shift(tap), in both directions.
    """
    zero = jnp.zeros((), contributions.dtype)

    def padding(tap: int, count: int, size: int) -> tuple[int, int, int]:
        """Return (before, after, between) that bring `count` locations to a row of `size`."""
        before = shift(tap)
        return before, size - before - stride * (count - 1) - 1, stride - 1

    total = jnp.zeros((len(contributions), *shape, contributions.shape[-1]), contributions.dtype)
    for row, column in np.ndindex(contributions.shape[3:5]):
        vertical = padding(row, contributions.shape[1], shape[0])
        horizontal = padding(column, contributions.shape[2], shape[1])
        total += lax.pad(contributions[:, :, :, row, column], zero, ((0, 0, 0), vertical, horizontal, (0, 0, 0)))
    return total


def kernel_gradient(x, kernel, cotangent, *, stride, padding, groups, precision):
    """Return the gradient of the kernel: products of the map and the shifted cotangent, one per tap or fewer."""
    rows, columns, inputs, outputs = kernel.shape
    batch, height, width, _ = cotangent.shape
    if stride == groups == 1 and (height, width) == x.shape[1:3]:
        return _kernel_gradient_by_columns(x, kernel, cotangent, padding, precision)
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def tap(row: int, column: int):
        """Return the gradient of one tap, [I / groups, O]."""
        window = padded[:, row::stride, column::stride][:, :height, :width]
        if groups == 1:
            return _sum_over_locations(window, cotangent, precision)
        inputs_, outputs_ = (array.reshape(batch, height, width, groups, -1) for array in (window, cotangent))
        return jnp.einsum("bhwgi,bhwgo->igo", inputs_, outputs_, precision=precision).reshape(inputs, outputs)

    return jnp.stack([jnp.stack([tap(row, column) for column in range(columns)]) for row in range(rows)])


def _kernel_gradient_by_columns(x, kernel, cotangent, padding: int, precision: lax.PrecisionLike):
    """Return the gradient of a kernel that keeps the map's size: one product per column of the kernel.

    With so few outputs that the cotangents of all taps are no wider than the map, it is one product for all.
    """
    rows, columns, inputs, outputs = kernel.shape
    shifted = [_shifted(cotangent, padding - row, axis=1) for row in range(rows)]
    if rows * columns * outputs <= inputs:
        shifted = [_shifted(array, padding - column, axis=2) for array in shifted for column in range(columns)]
        product = _sum_over_locations(x, jnp.concatenate(shifted, axis=-1), precision)  # [I, taps·O]
        return product.reshape(inputs, rows, columns, outputs).transpose(1, 2, 0, 3)
    joined = jnp.concatenate(shifted, axis=-1)
    products = [
        _sum_over_locations(_shifted(x, column - padding, axis=2), joined, precision) for column in range(columns)
    ]
    return jnp.stack([product.reshape(inputs, rows, outputs) for product in products]).transpose(2, 0, 1, 3)


def _shifted(x: Float[Array, "b h w n"], by: int, axis: int) -> Float[Array, "b h w n"]:
    """Return x moved by `-by` locations along an axis, with zeros where nothing comes in."""
    around = [(0, 0, 0)] * x.ndim
    around[axis] = (-by, by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), around)


def _sum_over_locations(x: Float[Array, "b h w i"], y: Float[Array, "b h w o"], precision: lax.PrecisionLike):
    """Return [I, O], products summed over all locations; flat, since XLA:CPU then needs no transposed copy of the map.

    The wider array goes last: XLA:CPU takes up to twice as long with a narrow one there. The barrier keeps it from
    swapping them.
    """
    x, y = (array.reshape(-1, array.shape[-1]) for array in (x, y))
    product = partial(lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())), precision=precision)
    if x.shape[1] > y.shape[1]:
        return lax.optimization_barrier(product(y, x)).T
    return product(x, y)
