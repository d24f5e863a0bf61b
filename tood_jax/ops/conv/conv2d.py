"""Two-dimensional convolution, with gradients that are fast on each platform.

The formula is `_native`, XLA's own convolution. What replaces it:

    CPU   1×1 convolutions, gradients of kernels, gradients of small maps and convolutions with few outputs are matrix
          products (`matmul.py`): XLA:CPU takes 3 to 40 times as long for them, and 400 times for grouped kernels
          (`python -m benchmarks.cases.convolutions`)
    TPU   the stem is a convolution over 2×2 pixels with four times the channels (`space_to_depth.py`), and grouped
          convolutions have their groups joined into blocks of 128 channels (`block_diagonal.py`;
          `python -m benchmarks.cases.alternative_formulations`)

Maps are NHWC, kernels HWIO. Axes: B images · H, W locations of the input · h, w of the output · I, O channels.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax
from jaxtyping import Array, Float

from tood_jax.distributed.mesh import is_height_split, map_per_device
from tood_jax.ops.conv import matmul
from tood_jax.ops.conv.block_diagonal import LANES, block_diagonal
from tood_jax.ops.conv.space_to_depth import conv2d_space_to_depth, suits_space_to_depth
from tood_jax.ops.dispatch import by_platform
from tood_jax.ops.materialize import materialize


def conv2d(
    x: Float[Array, "b hh ww i"],
    kernel: Float[Array, "kh kw ig o"],
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "b h w o"]:
    """Return a convolution of a map; its gradients are reverse-mode only.

    Args:
        x: the map, zero outside.
        kernel: [size, size, I / groups, O], of the type of x.
        stride: locations, the same in both directions.
        padding: locations, the same on all sides.
    """
    run: Callable[..., Array] = partial(_conv2d, stride=stride, padding=padding, groups=groups, precision=precision)
    if groups > 1:  # XLA's partitioner would gather the whole batch for it on GPUs
        run = map_per_device(run, whole=1, keep_space=True)
    return run(x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv2d(x, kernel, stride, padding, groups, precision):
    native = partial(_native, stride=stride, padding=padding, groups=groups, precision=precision)
    if matmul.is_pointwise(kernel, padding, groups):
        on_cpu = partial(matmul.pointwise, stride=stride, precision=precision)
        return by_platform(x, kernel, cpu=on_cpu, default=native)
    if stride == 1 and matmul.suits_few_outputs(x, kernel, groups):
        on_cpu = partial(matmul.conv2d_of_few_outputs, padding=padding, precision=precision)
        return by_platform(x, kernel, cpu=on_cpu, default=native)
    if suits_space_to_depth(x, kernel, stride, padding) and not is_height_split():
        return by_platform(x, kernel, tpu=partial(conv2d_space_to_depth, precision=precision), default=native)
    return native(x, kernel)


def _forward(x, kernel, stride, padding, groups, precision):
    return _conv2d(x, kernel, stride, padding, groups, precision), (x, kernel)


def _backward(stride, padding, groups, precision, residuals, cotangent):
    x, kernel = residuals
    cotangent = materialize(cotangent)  # each shifted copy would compute it again
    native = partial(_native, stride=stride, padding=padding, groups=groups, precision=precision)

    def transpose_to_x(function):
        return lambda x, kernel, cotangent: jax.linear_transpose(lambda x: function(x, kernel), x)(cotangent)[0]

    def transpose_to_kernel(function):
        return lambda x, kernel, cotangent: jax.linear_transpose(lambda k: function(x, k), kernel)(cotangent)[0]

    to_x, to_kernel = transpose_to_x(native), transpose_to_kernel(native)
    cpu_to_x, cpu_to_kernel = to_x, to_kernel
    if matmul.is_pointwise(kernel, padding, groups):
        cpu_to_x = transpose_to_x(partial(matmul.pointwise, stride=stride, precision=precision))
    elif matmul.suits_map_gradient(cotangent, kernel, groups):
        cpu_to_x = partial(matmul.map_gradient, stride=stride, padding=padding, precision=precision)
    if matmul.suits_kernel_gradient(cotangent, kernel, groups):
        options = {"stride": stride, "padding": padding, "groups": groups, "precision": precision}
        cpu_to_kernel = partial(matmul.kernel_gradient, **options)
    arguments = x, kernel, cotangent
    return (
        by_platform(*arguments, cpu=cpu_to_x, default=to_x),
        by_platform(*arguments, cpu=cpu_to_kernel, default=to_kernel),
    )


_conv2d.defvjp(_forward, _backward)


def _native(x, kernel, *, stride, padding, groups, precision):
    """Return XLA's convolution; on TPUs the groups are joined into blocks as wide as the matrix unit."""

    def convolve(x, kernel, groups=groups):
        around = ((padding, padding), (padding, padding))
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), around, None, None, layout, groups, precision=precision
        )

    if groups == 1:
        return convolve(x, kernel)
    return by_platform(
        x, kernel, tpu=lambda x, kernel: convolve(x, *block_diagonal(kernel, groups, LANES)), default=convolve
    )
