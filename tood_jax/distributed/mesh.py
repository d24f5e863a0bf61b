"""The two axes of the mesh, and how a function of separate images runs on it.

The mathematics never names a device. Only these functions read the mesh that a program is traced under
(`jax.sharding.use_abstract_mesh`, set by the steps of training and evaluation); without a mesh they change nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

DATA, SPACE = "data", "space"  # the batch is split over the first, the height of images over the second


def map_per_device(function: Callable[..., Any], whole: int = 0, keep_space: bool = False) -> Callable[..., Any]:
    """Return the function of arrays [B, …] so that each device runs it for its own images only.

    For functions that treat every image by itself, such as assignment and NMS: XLA's partitioner has no rule for top-k
    on CPUs and GPUs and would gather the whole batch. Gradients of the arguments without B are summed over the devices.

    Args:
        whole: number of the last arguments that have no axis B and are the same on every device, such as parameters.
        keep_space: the devices that share an image share this work too; otherwise each of them does all of it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if DATA not in mesh.axis_names:
        return function
    rows, everywhere = PartitionSpec(DATA), PartitionSpec()

    def run(*arguments: Any) -> Any:
        in_specs = (*[rows] * (len(arguments) - whole), *[everywhere] * whole)
        axes = {DATA} if keep_space else set(mesh.axis_names)
        mapped = jax.shard_map(function, in_specs=in_specs, out_specs=rows, axis_names=axes, check_vma=False)
        return mapped(*arguments)

    return run


def is_height_split() -> bool:
    """Return whether several devices share the height of an image."""
    return jax.sharding.get_abstract_mesh().shape.get(SPACE, 1) > 1
