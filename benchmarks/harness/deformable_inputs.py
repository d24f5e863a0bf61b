"""Arguments of the deformable convolution: their shapes, and random ones.

Axes: as in tood_jax/ops/deform_conv/deform_conv2d.py.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from tood_jax.ops.deform_conv.sampling_points import TAPS

Shapes = dict[str, tuple[tuple[int, ...], Any]]


@dataclass(frozen=True)
class DeformableSizes:
    """Sizes of one deformable convolution; the defaults are C4 of an image of 800 × 1344."""

    batch: int = 1
    """B."""
    height: int = 50
    """H, rows of the input."""
    width: int = 84
    """W, columns of the input."""
    channels: int = 256
    """C, and O too."""
    deformable_groups: int = 1
    """G."""
    groups: int = 1
    """Groups of the kernel."""
    stride: int = 1
    """Stride of the output in the input."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of map, kernel and output; offsets and mask are float32."""
    spread: float = 1.5
    """Standard deviation of the offsets, in locations of the input."""


def argument_shapes(sizes: DeformableSizes) -> Shapes:
    """Return shape and dtype of the arguments of `deform_conv2d`, in order, and of its output's cotangent."""
    dtype = jnp.dtype(sizes.dtype)
    locations = (sizes.batch, -(-sizes.height // sizes.stride), -(-sizes.width // sizes.stride))
    return {
        "x": ((sizes.batch, sizes.height, sizes.width, sizes.channels), dtype),
        "offsets": ((*locations, sizes.deformable_groups, TAPS, 2), jnp.float32),
        "mask": ((*locations, sizes.deformable_groups, TAPS), jnp.float32),
        "kernel": ((3, 3, sizes.channels // sizes.groups, sizes.channels), dtype),
        "cotangent": ((*locations, sizes.channels), dtype),
    }


def random_arguments(sizes: DeformableSizes, seed: int) -> tuple[jax.Array, ...]:
    """Return normal numbers; offsets have their spread, the mask lies between 0 and 1."""
    shapes = argument_shapes(sizes)
    keys = jax.random.split(jax.random.key(seed), 5)
    arrays = {
        name: jax.random.normal(key, shape, dtype)
        for key, (name, (shape, dtype)) in zip(keys, shapes.items(), strict=True)
    }
    arrays["offsets"] *= sizes.spread
    arrays["mask"] = jax.nn.sigmoid(arrays["mask"])
    arrays["kernel"] *= math.prod(arrays["kernel"].shape[:3]) ** -0.5
    return tuple(arrays.values())


def abstract_arguments(sizes: DeformableSizes, sharding: SingleDeviceSharding) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the arguments as shapes on a chip, to compile for it."""
    shapes = argument_shapes(sizes).values()
    return tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes)
