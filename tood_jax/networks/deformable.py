"""Modulated deformable convolution, DCNv2 (Zhu et al. 2019): exact, with gradients of its own, on CPU, GPU and TPU.

It goes tap by tap: sample what the tap sees, multiply, add. So nine times the map, the columns of a textbook
implementation, never lie in memory, neither forward nor backward (which samples again). docs/deformable.md counts
bytes and operations and compares the formulations.

Axes: B images · H, W the input's cells · h, w the output's cells · C input channels · G deformable groups, each of c =
C/G channels · T = 9 taps of the 3×3 kernel, row by row · O output channels · 4 corners of a place: top left, top right,
bottom left, bottom right. Offsets are (dy, dx) in cells.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.networks.deformable_sampling import SIZE, places_of, ring, sample_by_gather, sampler
from tood_jax.networks.layers import Dtype, conv

TAPS = SIZE * SIZE
Formulation = Literal["gather", "products", "columns"]


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
        formulation: how to sample: "gather" (the default but on TPU), "products" (the default where the program is
            compiled for a TPU, whose gathers are slow: one-hot products whose number grows with the vertical reach of
            the offsets), or "columns", the textbook's way with JAX's own gradient and nine times the memory. All give
            the same numbers.

    Gradients to all four arrays are exact; at integer places the one-sided derivative towards the higher cell. They are
    reverse-mode only, but for "columns".
    """
    if formulation == "columns":
        return _convolve_columns(x, offsets, mask, kernel, stride, groups)
    return _convolve(x, offsets, mask, kernel, stride, groups, formulation)


def multiply(seen: Float[Array, "b h w c"], kernel: Float[Array, "i o"], groups: int) -> Float[Array, "b h w o"]:
    """One tap's samples times its part of the kernel, group by group of the kernel, in float32."""
    if groups == 1:
        return jnp.einsum("bhwc,co->bhwo", seen, kernel, preferred_element_type=jnp.float32)
    seen, kernel = seen.reshape(*seen.shape[:3], groups, -1), kernel.reshape(len(kernel), groups, -1)
    out = jnp.einsum("bhwgi,igo->bhwgo", seen, kernel, preferred_element_type=jnp.float32)
    return out.reshape(*out.shape[:3], -1)


def _by_tap(x, offsets, mask, kernel):
    """x by deformable group, and what differs from tap to tap, the tap in front."""
    kernels = kernel.reshape(TAPS, *kernel.shape[2:])
    taps = jnp.arange(TAPS), jnp.moveaxis(offsets, 4, 0), jnp.moveaxis(mask, 4, 0), kernels
    return x.reshape(*x.shape[:3], offsets.shape[3], -1), taps


def _by_platform(function: Callable, *arrays: Any) -> Any:
    """`function(*arrays, formulation=…)`, as it suits the platform that is compiled for, not the one at hand."""
    ways = {"tpu": "products", "default": "gather"}
    return lax.platform_dependent(*arrays, **{key: partial(function, formulation=way) for key, way in ways.items()})


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _convolve(x, offsets, mask, kernel, stride, groups, formulation):
    if formulation is None:
        return _by_platform(partial(_convolve, stride=stride, groups=groups), x, offsets, mask, kernel)
    by_group, taps = _by_tap(x, offsets, mask, kernel)
    sampling = sampler(formulation, *x.shape[1:3])
    prepared = sampling.prepare(by_group)

    def add_tap(total, tap):
        tap, offsets, mask, kernel = tap
        seen = sampling.sample(prepared, places_of(offsets, mask, tap, stride, *x.shape[1:3]))
        return total + multiply(seen.reshape(*seen.shape[:3], -1), kernel, groups), None

    start = jnp.zeros((*offsets.shape[:3], kernel.shape[-1]), jnp.float32)
    return lax.scan(add_tap, start, taps)[0].astype(x.dtype)


def _convolve_forward(x, offsets, mask, kernel, stride, groups, formulation):
    return _convolve(x, offsets, mask, kernel, stride, groups, formulation), (x, offsets, mask, kernel)


def _convolve_backward(stride, groups, formulation, arguments, cotangent):
    if formulation is None:
        return _by_platform(partial(_pull_back, stride, groups), arguments, cotangent)
    return _pull_back(stride, groups, arguments, cotangent, formulation)


def _pull_back(stride, groups, arguments, cotangent, formulation):
    x, offsets, mask, kernel = arguments
    by_group, taps = _by_tap(x, offsets, mask, kernel)
    sampling = sampler(formulation, *x.shape[1:3])
    prepared = sampling.prepare(by_group)

    def pull_tap(to_x, tap):
        tap, offsets, mask, kernel = tap
        places = places_of(offsets, mask, tap, stride, *x.shape[1:3])
        seen = sampling.sample(prepared, places)
        _, back = jax.vjp(lambda seen, kernel: multiply(seen.reshape(looks), kernel, groups), seen, kernel)
        to_seen, to_kernel = back(cotangent)
        to_x, dots = sampling.pull(prepared, to_x, places, to_seen)
        top_left, top_right, bottom_left, bottom_right = dots = jnp.where(places.inside, dots, 0)
        to_mask = (places.corner_weights() * dots).sum(0)
        to_row = (bottom_left - top_left) * (1 - places.right) + (bottom_right - top_right) * places.right
        to_column = (top_right - top_left) * (1 - places.down) + (bottom_right - bottom_left) * places.down
        to_offsets = jnp.stack([to_row, to_column], axis=-1) * places.mask[..., None]
        return to_x, (to_offsets, to_mask, to_kernel)

    cotangent = cotangent.astype(jnp.float32)
    looks = (*offsets.shape[:3], x.shape[-1])
    to_x, (to_offsets, to_mask, to_kernel) = lax.scan(pull_tap, jnp.zeros(prepared.shape, jnp.float32), taps)
    to_offsets, to_mask = jnp.moveaxis(to_offsets, 0, 4), jnp.moveaxis(to_mask, 0, 4)
    return sampling.restore(to_x).reshape(x.shape).astype(x.dtype), to_offsets, to_mask, to_kernel.reshape(kernel.shape)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _convolve_columns(x, offsets, mask, kernel, stride, groups):
    by_group, (_, offsets, mask, kernel) = _by_tap(x, offsets, mask, kernel)
    places = (places_of(offsets[tap], mask[tap], tap, stride, *x.shape[1:3]) for tap in range(TAPS))
    columns = jnp.stack([sample_by_gather(ring(by_group), place, x.shape[2]) for place in places])  # [T, B, h, w, G, c]
    columns = columns.reshape(*columns.shape[:4], groups, -1)
    kernel = kernel.reshape(*kernel.shape[:2], groups, -1)
    out = jnp.einsum("tbhwgi,tigo->bhwgo", columns, kernel, preferred_element_type=jnp.float32)
    return out.reshape(*out.shape[:3], -1).astype(x.dtype)


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
