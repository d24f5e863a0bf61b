"""The two axes of the mesh, and how a function of single images runs on it.

The mathematics never names a device. Only the functions here ask for the mesh that a program is traced under
(`jax.sharding.use_abstract_mesh`, set by the steps of training and evaluation); without one they change nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

DATA, SPACE = "data", "space"  # the batch is split over the first, the height of images over the second


def image_by_image(function: Callable[..., Any], whole: int = 0, keep_space: bool = False) -> Callable[..., Any]:
    """A function of arrays with B in front, to be run on each device for its own images alone.

    For functions that treat every image by itself, such as assignment and NMS: XLA's partitioner has no rule for top-k
    on CPUs and GPUs and would gather the whole batch for it. Gradients of what is whole are summed over the devices.

    Args:
        whole: so many of the last arguments, parameters for instance, have no B and are the same on every device.
        keep_space: the devices that share an image share this work too; else each of them does all of it.
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


def height_is_split() -> bool:
    """Do several devices share the height of an image?"""
    return jax.sharding.get_abstract_mesh().shape.get(SPACE, 1) > 1
