"""Convolution and normalisation as every network here uses them.

Maps are NHWC. Parameters are float32; `dtype` is the compute type. Kernels are HWIO.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Dtype = Any
EPSILON = 1e-5  # of every normalisation, as in PyTorch


def conv(
    channels: int,
    size: int,
    *,
    name: str,
    dtype: Dtype,
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
        conv_general_dilated=_grouped if groups > 1 else None,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init or nn.initializers.he_normal(),
        bias_init=bias_init,
        name=name,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def grouped_conv(x, kernel, strides, padding, groups, precision):
    """A grouped convolution whose kernel gradient is quick on the CPU: one batched product for each tap.

    XLA:CPU forms that gradient some 400 times slower (2.4 s for one 3×3 layer of X101-64x4d on a 128×160 image); its
    forward and input gradient are well, and so is everything on GPU and TPU, which keep the native one. The platform
    that is compiled for decides, for it needn't be the one at hand.

    Args:
        x: [B, H, W, I].
        kernel: [height, width, I / groups, O].
        strides, padding: (down, across); ((above, below), (left, right)).
    """
    return _native_grouped_conv(x, kernel, strides, padding, groups, precision)


def _native_grouped_conv(x, kernel, strides, padding, groups, precision):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, None, None, ("NHWC", "HWIO", "NHWC"), groups, precision=precision
    )


def _grouped_conv_forward(x, kernel, strides, padding, groups, precision):
    return grouped_conv(x, kernel, strides, padding, groups, precision), (x, kernel)


def _grouped_conv_backward(strides, padding, groups, precision, residuals, cotangent):
    def native(x, kernel):
        return _native_grouped_conv(x, kernel, strides, padding, groups, precision)

    def transposed(x, kernel, cotangent):
        return jax.linear_transpose(lambda kernel: native(x, kernel), kernel)(cotangent)[0]

    x, kernel = residuals
    (to_x,) = jax.linear_transpose(lambda x: native(x, kernel), x)(cotangent)
    by_taps = partial(_kernel_gradient_by_taps, strides=strides, padding=padding, groups=groups, precision=precision)
    to_kernel = lax.platform_dependent(x, kernel, cotangent, cpu=by_taps, default=transposed)
    return to_x, to_kernel


def _kernel_gradient_by_taps(x, kernel, cotangent, *, strides, padding, groups, precision):
    batch, height, width, channels = cotangent.shape
    cotangent_by_group = cotangent.reshape(batch, height, width, groups, channels // groups)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    def tap(row, column):
        """[I / groups, O]: the gradient of one place of the kernel, which saw this strided view of x."""
        view = padded[:, row :: strides[0], column :: strides[1]][:, :height, :width]
        view = view.reshape(batch, height, width, groups, -1)
        product = jnp.einsum("bhwgi,bhwgo->igo", view, cotangent_by_group, precision=precision)
        return product.reshape(-1, channels)

    taps = [[tap(row, column) for column in range(kernel.shape[1])] for row in range(kernel.shape[0])]
    return jnp.stack([jnp.stack(row) for row in taps])


grouped_conv.defvjp(_grouped_conv_forward, _grouped_conv_backward)


def _grouped(x, kernel, strides, padding, *, feature_group_count, precision=None, **_):
    """`grouped_conv` in the words that flax uses; dilations are 1 and maps NHWC throughout this project."""
    return grouped_conv(x, kernel, tuple(strides), tuple(map(tuple, padding)), feature_group_count, precision)


class Norm(nn.Module):
    """BatchNorm with fixed or with batch statistics, or GroupNorm.

    Attributes:
        kind: "frozen_batch" (running statistics always), "batch" (statistics over the global batch when training)
            or "group".
        groups: of the GroupNorm; must divide the channels.
        zero_scale: start with scale 0, so that a residual branch starts as nothing.
    """

    kind: str
    groups: int = 32
    dtype: Dtype = jnp.float32
    zero_scale: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        scale_init = nn.initializers.zeros_init() if self.zero_scale else nn.initializers.ones_init()
        if self.kind == "group":
            return nn.GroupNorm(
                num_groups=self.groups,
                epsilon=EPSILON,
                dtype=self.dtype,
                scale_init=scale_init,
                use_fast_variance=False,
                name="norm",
            )(x)
        return nn.BatchNorm(
            use_running_average=not (train and self.kind == "batch"),
            momentum=0.9,
            epsilon=EPSILON,
            dtype=self.dtype,
            scale_init=scale_init,
            name="norm",
        )(x)


def conv_and_norm(convolution: nn.Module, norm: Norm, x: Array, train: bool = False) -> Array:
    """norm(convolution(x)) of two bound modules; in bfloat16, fixed statistics are folded into the kernel.

    In float32 the two stay apart, as in the published code: folded, one golden gradient of X101 was 1.8e-3 off.
    """
    is_folded = norm.kind == "frozen_batch" and norm.dtype == jnp.bfloat16
    if not is_folded or convolution.is_initializing():
        return norm(convolution(x), train)
    return folded_norm(convolution, norm, x)


def folded_norm(convolution: nn.Module, norm: Norm, x: Array) -> Array:
    """norm(convolution(x)) with the norm's fixed statistics and scale in the kernel, folded in float32.

    The map before the norm then need not be kept, and the gradient of the norm's scale comes from the kernel's, without
    another look at the map.
    """
    parameters, affine = convolution.variables["params"], norm.variables["params"]["norm"]
    statistics = norm.variables["batch_stats"]["norm"]
    rate = affine["scale"] * lax.rsqrt(statistics["var"] + EPSILON)
    apply, _ = pure(convolution)
    y = apply({"params": {**parameters, "kernel": parameters["kernel"] * rate}}, x)
    return y + (affine["bias"] - statistics["mean"] * rate).astype(y.dtype)


@jax.custom_jvp
def sigmoid_geometric_mean(a: Float[Array, "*#n"], b: Float[Array, "*#n"]) -> Float[Array, "*n"]:
    """√(σ(a)·σ(b)) of logits, 0–1 (paper equation 4), with finite gradients however large the logits are.

    Its derivatives are y·(1 − σ(a))/2 and y·(1 − σ(b))/2; the square root itself is never differentiated.
    """
    return jnp.exp(0.5 * (jax.nn.log_sigmoid(a) + jax.nn.log_sigmoid(b)))


@sigmoid_geometric_mean.defjvp
def _sigmoid_geometric_mean_jvp(primals, tangents):
    a, b = primals
    y = sigmoid_geometric_mean(a, b)
    return y, 0.5 * y * (jax.nn.sigmoid(-a) * tangents[0] + jax.nn.sigmoid(-b) * tangents[1])


def pure(module: nn.Module) -> tuple[Callable[..., Any], Any]:
    """A bound submodule as a function (variables, *arguments) and its variables, for `lax.scan` and `jax.checkpoint`.

    The function changes no variables.
    """
    unbound = module.clone()
    return unbound.apply, module.variables


def stack_trees(trees: list[Any]) -> Any:
    """Trees of one structure and shape as one tree with a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
