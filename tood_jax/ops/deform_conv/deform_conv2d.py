"""Modulated deformable convolution, DCNv2 (Zhu et al. 2019): exact, with gradients of its own.

There are three formulations of equal numbers: tap by tap with gathers (`per_tap.py`, CPU), all taps at once with
gathers (`im2col.py`, GPU), and output row by output row with matrix products (`matmul.py`, TPU). Their bytes and
operations are compared in reports/2026-11/deformable_convolution.md.

Axes: B images · H, W locations of the input · h, w of the output · C input channels · G deformable groups, each of c =
C/G channels · T = 9 taps of the 3×3 kernel, row by row · O output channels · 4 corners of a point: top left, top right,
bottom left, bottom right. Offsets are (dy, dx) in locations.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from tood_jax.distributed.mesh import map_per_device
from tood_jax.ops.deform_conv import im2col, matmul, per_tap
from tood_jax.ops.deform_conv.sampling_points import TAPS
from tood_jax.ops.dispatch import by_platform

Formulation = Literal["per_tap", "im2col", "matmul"]


def deform_conv2d(
    x: Float[Array, "b hh ww c"],
    offsets: Float[Array, "b h w g 9 2"],
    mask: Float[Array, "b h w g 9"],
    kernel: Float[Array, "3 3 i o"],
    *,
    stride: int = 1,
    groups: int = 1,
    formulation: Formulation | None = None,
) -> Float[Array, "b h w o"]:
    """Return a 3×3 convolution, padding 1, whose taps are sampled at offsets and weighted by a mask.

    Args:
        x: the map; its type is the compute type. Outside are zeros, so samples fade over (−1, 0) and (H−1, H).
        offsets: (dy, dx) per deformable group and tap, in locations, however large; float32 also where x is bfloat16.
        mask: 0–1 per deformable group and tap, float32.
        kernel: I = C / groups input channels each.
        stride: of the output's locations in the input.
        groups: of the kernel, as in any grouped convolution.
        formulation: how to compute it; None for the one that suits the platform which the program is compiled for:
            per_tap on CPUs; im2col on GPUs (fewer and larger steps, and nine times the map in memory); matmul on TPUs,
            whose gathers are slow (one product per output row with six rows of the map, and more where the offsets
            reach farther).

    Gradients to all four arrays are exact, and reverse-mode only; at whole locations the one-sided derivative towards
    the higher location.
    """
    x = x.reshape(*x.shape[:3], offsets.shape[3], -1)
    kernel = kernel.reshape(TAPS, *kernel.shape[2:])

    def convolve(*arrays):  # the rows that the offsets reach differ from device to device
        return _deform_conv2d(*arrays, stride, groups, formulation)

    return map_per_device(convolve, whole=1, keep_space=True)(x, offsets, mask, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _deform_conv2d(x, offsets, mask, kernel, stride, groups, formulation):
    """Compute it, with x by deformable group and the kernel by tap."""
    run = _choose(formulation, (per_tap.convolve, im2col.convolve, matmul.convolve), stride, groups)
    return run(x, offsets, mask, kernel)


def _forward(x, offsets, mask, kernel, stride, groups, formulation):
    return _deform_conv2d(x, offsets, mask, kernel, stride, groups, formulation), (x, offsets, mask, kernel)


def _backward(stride, groups, formulation, arguments, cotangent):
    run = _choose(formulation, (per_tap.gradients, im2col.gradients, matmul.gradients), stride, groups)
    return run(*arguments, cotangent)


_deform_conv2d.defvjp(_forward, _backward)


def _choose(formulation: Formulation | None, functions: Sequence[Callable], stride: int, groups: int) -> Any:
    """Return the function of a formulation, or the one that suits the platform."""
    of_per_tap, of_im2col, of_matmul = (partial(function, stride=stride, groups=groups) for function in functions)
    if formulation is None:
        return partial(by_platform, tpu=of_matmul, gpu=of_im2col, default=of_per_tap)
    return {"per_tap": of_per_tap, "im2col": of_im2col, "matmul": of_matmul}[formulation]
