"""Modulated deformable convolution, DCNv2 (Zhu et al. 2019): exact, with gradients of its own, on CPU, GPU and TPU.

There are three formulations of equal numbers: tap by tap with gathers (deformable_gather.py), all taps at once with
gathers (deformable_columns.py), and output row by output row with matrix products (deformable_products.py).
docs/deformable.md counts bytes and operations and compares them.

Axes: B images · H, W the input's cells · h, w the output's cells · C input channels · G deformable groups, each of c =
C/G channels · T = 9 taps of the 3×3 kernel, row by row · O output channels · 4 corners of a place: top left, top right,
bottom left, bottom right. Offsets are (dy, dx) in cells.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.mesh import image_by_image
from tood_jax.networks import deformable_columns, deformable_gather, deformable_products
from tood_jax.networks.convolution import conv
from tood_jax.networks.deformable_places import SIZE, TAPS
from tood_jax.networks.layers import Dtype

Formulation = Literal["gather", "columns", "products"]
_MODULES: tuple[Any, ...] = (deformable_gather, deformable_columns, deformable_products)  # in that order


def deformable_conv(
    x: Float[Array, "b hh ww c"],
    offsets: Float[Array, "b h w g 9 2"],
    mask: Float[Array, "b h w g 9"],
    kernel: Float[Array, "3 3 i o"],
    *,
    stride: int = 1,
    groups: int = 1,
    formulation: Formulation | None = None,
) -> Float[Array, "b h w o"]:
    """A 3×3 convolution, padding 1, whose taps look where the offsets point and count as much as the mask says.

    Args:
        x: the map; its dtype is the compute type. Outside lie zeros, so samples fade over (−1, 0) and (H−1, H).
        offsets: (dy, dx) a deformable group and tap, cells, however large; float32 also where x is bfloat16.
        mask: 0–1 a deformable group and tap, float32.
        kernel: I = C / groups input channels each.
        stride: of the output's cells in the input.
        groups: of the kernel, as in any grouped convolution.
        formulation: how to sample: "gather" (the default on CPU), "columns" (on GPU: fewer and larger steps, and nine
            times the map in memory), or "products" (on TPU, whose gathers are slow: one product an output row with six
            rows of the map, and more where the offsets reach farther). All give the same numbers. The platform that
            the program is compiled for decides.

    Gradients to all four arrays are exact, and reverse-mode only; at integer places the one-sided derivative towards
    the higher cell.
    """
    x = x.reshape(*x.shape[:3], offsets.shape[3], -1)
    kernel = kernel.reshape(TAPS, *kernel.shape[2:])

    def convolve(*arrays):  # the rows that the offsets reach differ from device to device
        return _convolve(*arrays, stride, groups, formulation)

    return image_by_image(convolve, whole=1, keep_space=True)(x, offsets, mask, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _convolve(x, offsets, mask, kernel, stride, groups, formulation):
    """Of x by deformable group and the kernel by tap."""
    run = _chosen(formulation, [module.convolve for module in _MODULES], stride, groups)
    return run(x, offsets, mask, kernel)


def _forward(x, offsets, mask, kernel, stride, groups, formulation):
    return _convolve(x, offsets, mask, kernel, stride, groups, formulation), (x, offsets, mask, kernel)


def _backward(stride, groups, formulation, arguments, cotangent):
    run = _chosen(formulation, [module.pull_back for module in _MODULES], stride, groups)
    return run(*arguments, cotangent)


_convolve.defvjp(_forward, _backward)


def _chosen(formulation: Formulation | None, functions: Sequence[Callable], stride: int, groups: int) -> Any:
    """That function of _MODULES', or the one that suits the platform that is compiled for, not the one at hand."""
    gather, columns, products = (partial(function, stride=stride, groups=groups) for function in functions)
    if formulation is None:
        return partial(lax.platform_dependent, tpu=products, cuda=columns, rocm=columns, default=gather)
    return {"gather": gather, "columns": columns, "products": products}[formulation]


class DeformableConv(nn.Module):
    """`deformable_conv` with its own convolution for offsets and mask; it starts as half a plain convolution.

    Of the 27 channels a deformable group that `conv_offset` gives, the first two thirds are offsets, (dy, dx) tap by
    tap and group after group, the last third logits of the mask (as published: mmcv's packed DCNv2).

    Attributes:
        channels: O.
        stride, groups: of the convolution.
        deformable_groups: G.
    """

    channels: int
    stride: int = 1
    groups: int = 1
    deformable_groups: int = 1
    dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b hh ww c"]) -> Float[Array, "b h w o"]:
        zeros, groups = nn.initializers.zeros_init(), self.deformable_groups
        said = conv(
            groups * 3 * TAPS,
            SIZE,
            name="conv_offset",
            dtype=self.dtype,
            stride=self.stride,
            bias=True,
            kernel_init=zeros,
        )(x)
        offsets, logits = jnp.split(said.astype(jnp.float32), [groups * 2 * TAPS], axis=-1)
        kernel = self.param("kernel", self.kernel_init, (SIZE, SIZE, x.shape[-1] // self.groups, self.channels))
        return deformable_conv(
            x.astype(self.dtype),
            offsets.reshape(*offsets.shape[:3], groups, TAPS, 2),
            nn.sigmoid(logits).reshape(*logits.shape[:3], groups, TAPS),
            kernel.astype(self.dtype),
            stride=self.stride,
            groups=self.groups,
        )
