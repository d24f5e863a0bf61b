"""Bilinear sampling of box sides, each at its own learnt offset (paper section 3.1, equation 6).

The formula is `gather.py`, which CPUs and GPUs use; `matmul.py` has the same numbers for TPUs, which process the
elements of gathers and scatters one after another.

Axes: B images · H, W locations of a level · N locations of some levels in a row, each level row by row · S sides.
"""

from functools import partial

import jax
from jaxtyping import Array, Float

from tood_jax.geometry.locations import Shapes
from tood_jax.ops.bilinear import gather, matmul
from tood_jax.ops.dispatch import by_platform


def sample_sides(boxes: Float[Array, "b h w s"], offsets: Float[Array, "b h w s 2"]) -> Float[Array, "b h w s"]:
    """Sample channel s of a map at (row + dy, column + dx), each location and each channel at its own offset.

    Args:
        boxes: the map of box sides (any unit; sampling is linear in it).
        offsets: (dy, dx) in locations.

    Returns:
        The sampled map. Outside the map are zeros, so values fade over (−1, 0) and (H−1, H), as in the published
        deformable sampling. Exact gradients to both arguments; at whole locations the one-sided derivative towards the
        higher location.
    """
    batch, height, width, sides = boxes.shape
    in_a_row = boxes.reshape(batch, -1, sides), offsets.reshape(batch, -1, sides, 2)
    return sample_sides_of_levels(*in_a_row, ((height, width),)).reshape(boxes.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def sample_sides_of_levels(
    boxes: Float[Array, "b n s"], offsets: Float[Array, "b n s 2"], shapes: Shapes
) -> Float[Array, "b n s"]:
    """Apply `sample_sides` to several maps of these (height, width) in a row; no level reads another."""
    by_gather, by_matmul = (partial(module.sample, shapes=shapes) for module in (gather, matmul))
    return by_platform(boxes, offsets, tpu=by_matmul, default=by_gather)


def _forward(boxes, offsets, shapes):
    return sample_sides_of_levels(boxes, offsets, shapes), (boxes, offsets)


def _backward(shapes, arguments, cotangent):
    def gradients(module):
        sample = partial(module.sample, shapes=shapes)
        return lambda boxes, offsets, cotangent: jax.vjp(sample, boxes, offsets)[1](cotangent)

    return by_platform(*arguments, cotangent, tpu=gradients(matmul), default=gradients(gather))


sample_sides_of_levels.defvjp(_forward, _backward)
