"""Convolutions with the gradients that are quick on each platform, and the layer made of them.

XLA:CPU forms the gradient of a kernel slowly: 3 to 40 times slower than a matrix product does, and a grouped one's 400
times. So on CPUs gradients of kernels are products, one a tap or one a column of taps, 1×1 convolutions products
altogether, and gradients of small maps and convolutions of few outputs one product, summed where taps meet
(`python -m benchmarks.convolutions`). GPUs and TPUs keep the native convolutions, but for two on TPUs: the stem, which
sees 2×2 pixels as one of more channels, and grouped ones, whose groups are put together into blocks of 128 channels
(`python -m benchmarks.alternatives`). The platform that is compiled for decides, for it needn't be the one at hand.

Maps are NHWC, kernels HWIO. Axes: B images · H, W the input's cells · h, w the output's · I, O channels.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tood_jax.mesh import height_is_split, image_by_image
from tood_jax.networks.fusion import computed_once
from tood_jax.networks.kernel_blocks import LANES, widened

# On CPUs a kernel's gradient is products of its taps if it has at most so many (a stem's 49 are quicker in one), and a
# map of so many cells, or so many inputs times outputs: with fewer little is gained, and these products take longer to
# compile than one convolution.
MOST_TAPS, LEAST_CELLS, LEAST_PAIRS = 9, 512, 2**16
# There a map's gradient is one product if there are at least so many channels on both sides, and if what each cell says
# to each tap, which is held in one piece, is at most so many numbers: no more than caches hold. So is a convolution of
# at most so many outputs, for fewer than 128 take XLA:CPU as long as 128 do.
LEAST_CHANNELS, MOST_COLUMNS, FEW_OUTPUTS = 64, 6 * 2**20, 96


def conv(
    channels: int,
    size: int,
    *,
    name: str,
    dtype: jax.typing.DTypeLike,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    kernel_init: nn.initializers.Initializer | None = None,
    bias_init: nn.initializers.Initializer = nn.initializers.zeros,
) -> nn.Conv:
    """A convolution padded by size // 2 on every side (PyTorch's padding, also at stride 2)."""
    return nn.Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=[(size // 2, size // 2)] * 2,
        feature_group_count=groups,
        conv_general_dilated=_in_words_of_flax,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init or nn.initializers.he_normal(),
        bias_init=bias_init,
        name=name,
    )


def _in_words_of_flax(x, kernel, strides, padding, *, feature_group_count=1, precision=None, **_):
    """`convolve` as flax calls it; dilations are 1 and maps NHWC throughout this project."""
    (stride, _), ((below, _), _) = strides, padding
    return convolve(x, kernel, stride, below, feature_group_count, precision)


def convolve(
    x: Float[Array, "b hh ww i"],
    kernel: Float[Array, "kh kw ig o"],
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "b h w o"]:
    """A convolution; its gradients are reverse-mode only.

    Args:
        x: the map, zero outside.
        kernel: [size, size, I / groups, O], of the type of x.
        stride, padding: cells, down and across alike.
    """
    run: Callable[..., Array] = partial(_convolve, stride=stride, padding=padding, groups=groups, precision=precision)
    if groups > 1:  # XLA's partitioner would gather the whole batch for it on GPUs
        run = image_by_image(run, whole=1, keep_space=True)
    return run(x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve(x, kernel, stride, padding, groups, precision):
    native = partial(_native, stride=stride, padding=padding, groups=groups, precision=precision)
    if _is_product(kernel, padding, groups):
        product = partial(_product, stride=stride, precision=precision)
        return lax.platform_dependent(x, kernel, cpu=product, default=native)
    if stride == 1 and kernel.shape[-1] <= FEW_OUTPUTS and _suits_columns(kernel, x, groups, kernel.shape[-1]):
        spread = partial(_by_spreading, padding=padding, precision=precision)
        return lax.platform_dependent(x, kernel, cpu=spread, default=native)
    if _is_stem(x, kernel, stride, padding) and not height_is_split():
        return lax.platform_dependent(x, kernel, tpu=partial(by_depth, precision=precision), default=native)
    return native(x, kernel)


def _forward(x, kernel, stride, padding, groups, precision):
    return _convolve(x, kernel, stride, padding, groups, precision), (x, kernel)


def _backward(stride, padding, groups, precision, residuals, cotangent):
    x, kernel = residuals
    cotangent = computed_once(cotangent)  # each shifted copy would compute it again
    native = partial(_native, stride=stride, padding=padding, groups=groups, precision=precision)

    def to_x(function):
        return lambda x, kernel, cotangent: jax.linear_transpose(lambda x: function(x, kernel), x)(cotangent)[0]

    def to_kernel(function):
        return lambda x, kernel, cotangent: jax.linear_transpose(lambda k: function(x, k), kernel)(cotangent)[0]

    arguments = x, kernel, cotangent
    gradient_of_x, gradient_of_kernel = to_x(native), to_kernel(native)
    on_cpu_of_x, on_cpu_of_kernel = gradient_of_x, gradient_of_kernel
    if _is_product(kernel, padding, groups):
        on_cpu_of_x = to_x(partial(_product, stride=stride, precision=precision))
    elif _suits_columns(kernel, cotangent, groups, kernel.shape[2]):
        on_cpu_of_x = partial(_map_gradient_by_columns, stride=stride, padding=padding, precision=precision)
    if _suits_taps(kernel, cotangent, groups):
        how = {"stride": stride, "padding": padding, "groups": groups, "precision": precision}
        on_cpu_of_kernel = partial(_kernel_gradient_by_taps, **how)
    return (
        lax.platform_dependent(*arguments, cpu=on_cpu_of_x, default=gradient_of_x),
        lax.platform_dependent(*arguments, cpu=on_cpu_of_kernel, default=gradient_of_kernel),
    )


_convolve.defvjp(_forward, _backward)


def _native(x, kernel, *, stride, padding, groups, precision):
    """XLA's own convolution; on TPUs a grouped one runs in blocks as wide as the matrix unit.

    There XLA gives each group 128 numbers' room, however few channels it has.
    """

    def convolve(x, kernel, groups=groups):
        around = ((padding, padding), (padding, padding))
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), around, None, None, layout, groups, precision=precision
        )

    if groups == 1:
        return convolve(x, kernel)
    return lax.platform_dependent(
        x, kernel, tpu=lambda x, kernel: convolve(x, *widened(kernel, groups, LANES)), default=convolve
    )


def _is_product(kernel, padding: int, groups: int) -> bool:
    return kernel.shape[:2] == (1, 1) and padding == 0 and groups == 1


def _suits_taps(kernel, cotangent, groups: int) -> bool:
    rows, columns, inputs, outputs = kernel.shape
    cells = cotangent.size // outputs
    is_large = cells >= LEAST_CELLS or inputs * outputs >= LEAST_PAIRS
    return rows * columns == 1 or (rows * columns <= MOST_TAPS and (is_large or groups > 1))


def _suits_columns(kernel, cells, groups: int, channels: int) -> bool:
    """Can one product with so many channels a tap be had of these cells, and is it quicker?"""
    rows, columns, inputs, outputs = kernel.shape
    taps, count = rows * columns, cells.size // cells.shape[-1]
    is_small = taps <= MOST_TAPS and count * taps * channels <= MOST_COLUMNS
    return is_small and groups == 1 and min(inputs, outputs) >= LEAST_CHANNELS and kernel.dtype == jnp.float32


def _is_stem(x, kernel, stride: int, padding: int) -> bool:
    """A convolution that `by_depth` can do, of an image's few channels."""
    size, _, channels, _ = kernel.shape
    is_even = x.shape[1] % 2 == x.shape[2] % 2 == 0
    return stride == 2 and padding % 2 == 1 and size == 2 * padding + 1 and channels == x.shape[-1] <= 4 and is_even


def by_depth(
    x: Float[Array, "b hh ww i"], kernel: Float[Array, "kh kw i o"], precision: lax.PrecisionLike = None
) -> Float[Array, "b h w o"]:
    """A convolution of stride 2, padded by size // 2, as one of stride 1 over 2×2 pixels with 4·I channels.

    A TPU gives each pixel 128 numbers' room, however few channels it has. Slices make the channels, for XLA turns a
    reshape into copies of twice the map.

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


def _product(x, kernel, *, stride, precision):
    return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0], precision=precision)


def _by_spreading(x, kernel, *, padding, precision):
    """A convolution of stride 1 as one product of what each cell says to the taps' outputs, summed where they meet."""
    said = lax.dot_general(x, kernel, (((3,), (2,)), ((), ())), precision=precision)  # [B, H, W, kh, kw, O]
    last = len(kernel) - 1
    shape = tuple(length + 2 * padding - last for length in x.shape[1:3])
    return _meet(said, lambda tap: padding - tap, shape)


def _map_gradient_by_columns(x, kernel, cotangent, *, stride, padding, precision):
    """One product of what each cell says to each tap of the kernel, summed where the taps meet (col2im).

    A convolution needs the kernel with its ends flipped and its channels swapped, which XLA:CPU writes down more slowly
    than it then convolves a small map.
    """
    rows = kernel.reshape(-1, kernel.shape[-1])  # in one row of places, or XLA:CPU copies it
    said = lax.dot_general(cotangent, rows, (((3,), (1,)), ((), ())), precision=precision)
    said = said.reshape(*cotangent.shape[:3], *kernel.shape[:3])  # [B, h, w, kh, kw, I]
    return _meet(said, lambda tap: tap - padding, x.shape[1:3], stride)


def _meet(
    said: Float[Array, "b h w kh kw n"], place: Callable[[int], int], shape: tuple[int, ...], stride: int = 1
) -> Float[Array, "b hh ww n"]:
    """What the cells say to their taps, summed on a map of this height and width.

    What cell i says to a tap lies at cell `stride` · i + place(tap) of the map, down and across alike.
    """
    zero = jnp.zeros((), said.dtype)

    def around(tap: int, cells: int, size: int) -> tuple[int, int, int]:
        """The padding that puts a row of so many cells there, in one of that size."""
        before = place(tap)
        return before, size - before - stride * (cells - 1) - 1, stride - 1

    total = jnp.zeros((len(said), *shape, said.shape[-1]), said.dtype)
    for row, column in np.ndindex(said.shape[3:5]):
        down, across = around(row, said.shape[1], shape[0]), around(column, said.shape[2], shape[1])
        total += lax.pad(said[:, :, :, row, column], zero, ((0, 0, 0), down, across, (0, 0, 0)))
    return total


def _kernel_gradient_by_taps(x, kernel, cotangent, *, stride, padding, groups, precision):
    """Products of the map and the cotangent, one of them shifted by the taps' places: one product a tap, or fewer."""
    rows, columns, inputs, outputs = kernel.shape
    batch, height, width, _ = cotangent.shape
    if stride == groups == 1 and (height, width) == x.shape[1:3]:
        return _kernel_gradient_by_columns(x, kernel, cotangent, padding, precision)
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def tap(row: int, column: int):
        """[I / groups, O]: the gradient of one place of the kernel."""
        seen = padded[:, row::stride, column::stride][:, :height, :width]
        if groups == 1:
            return _over_cells(seen, cotangent, precision)
        seen, said = (one.reshape(batch, height, width, groups, -1) for one in (seen, cotangent))
        return jnp.einsum("bhwgi,bhwgo->igo", seen, said, precision=precision).reshape(inputs, outputs)

    return jnp.stack([jnp.stack([tap(row, column) for column in range(columns)]) for row in range(rows)])


def _kernel_gradient_by_columns(x, kernel, cotangent, padding: int, precision: lax.PrecisionLike):
    """Of a kernel that keeps the map's size: one product a column of it, with the cotangent shifted for all its rows.

    Of so few outputs that all taps' cotangents are no wider than the map, one product altogether.
    """
    rows, columns, inputs, outputs = kernel.shape
    shifted = [_shifted(cotangent, padding - row, axis=1) for row in range(rows)]
    if rows * columns * outputs <= inputs:
        shifted = [_shifted(one, padding - column, axis=2) for one in shifted for column in range(columns)]
        product = _over_cells(x, jnp.concatenate(shifted, axis=-1), precision)  # [I, taps·O]
        return product.reshape(inputs, rows, columns, outputs).transpose(1, 2, 0, 3)
    said = jnp.concatenate(shifted, axis=-1)
    products = [_over_cells(_shifted(x, column - padding, axis=2), said, precision) for column in range(columns)]
    return jnp.stack([one.reshape(inputs, rows, outputs) for one in products]).transpose(2, 0, 1, 3)


def _shifted(x: Float[Array, "b h w n"], by: int, axis: int) -> Float[Array, "b h w n"]:
    """Cell c + `by` of x at cell c, along rows or columns; zero where there is none."""
    around = [(0, 0, 0)] * x.ndim
    around[axis] = (-by, by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), around)


def _over_cells(x: Float[Array, "b h w i"], y: Float[Array, "b h w o"], precision: lax.PrecisionLike):
    """[I, O]: products summed over all cells. In one row, for which XLA:CPU needs no transposed copy of the map.

    The wider one goes last: XLA:CPU takes up to twice as long with a narrow one there. The barrier keeps it from
    turning them around.
    """
    x, y = (one.reshape(-1, one.shape[-1]) for one in (x, y))
    product = partial(lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())), precision=precision)
    if x.shape[1] > y.shape[1]:
        return lax.optimization_barrier(product(y, x)).T
    return product(x, y)
