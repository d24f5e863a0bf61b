"""Shardings of arrays over a mesh with two axes: `data` splits the batch, `space` splits the height of every image.

Everything is `jit` over global arrays with a NamedSharding each: the mathematics never names a device, a sum over a
sharded array is global, and XLA inserts the collectives.

`space` splits an image's rows evenly at every level of the pyramid or not at all: with heights that divide unevenly,
XLA's partitioner was seen to give wrong gradients of kernels under a right loss, so other canvases are refused.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tood_jax.config import ConfigError
from tood_jax.distributed.mesh import DATA, SPACE
from tood_jax.types import Batch

_COARSEST_STRIDE = 128  # of P7
_MIN_SPLIT_SIZE = 2**12  # elements; smaller parameters stay whole on every device


def make_mesh(devices: Sequence[jax.Device] | None = None, space: int = 1) -> Mesh:
    """Return a mesh (data, space) of the given devices (all, by default), in the order of their processes.

    Raises:
        ConfigError: if `space` does not divide the devices of each process, since a process reads whole images; or if
            the processes have different numbers of devices, since they read equal shares of a batch.
    """
    chosen = sorted(jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id))
    counts = Counter(device.process_index for device in chosen)
    if len(set(counts.values())) > 1:
        shares = ", ".join(f"process {index} has {count}" for index, count in counts.items())
        raise ConfigError(f"All processes of a run need equally many devices, but {shares}.")
    if len(chosen) % space:
        raise ConfigError(f"parallel.space = {space} must divide the {len(chosen)} devices.")
    grid = np.asarray(chosen).reshape(-1, space)
    if any(len({device.process_index for device in row}) > 1 for row in grid):
        each = len(chosen) // len(counts)
        raise ConfigError(f"parallel.space = {space} must divide the {each} devices of each process.")
    return Mesh(grid, (DATA, SPACE), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that are whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis is split over `data`."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def batch_shardings(mesh: Mesh) -> Batch:
    """Return a sharding for each field of a batch: images over both axes, the others over `data`."""
    rows = over_batch(mesh)
    return Batch(*[rows] * len(Batch._fields))._replace(images=NamedSharding(mesh, PartitionSpec(DATA, SPACE)))


def state_shardings(shapes: Any, mesh: Mesh, split: bool):
    """Return shardings of a state (or any tree of parameters): whole on every device, or split over `data`.

    Args:
        shapes: pytree of anything with a shape.
        split: split each large array along its largest axis that the devices divide (the last of equals), so that each
            device holds a share of parameters, momentum and moving average (ZeRO, Rajbhandari et al. 2020).
    """

    def sharding_of(leaf) -> NamedSharding:
        shape = tuple(leaf.shape)
        parts = mesh.shape[DATA]
        fitting = [axis for axis, length in enumerate(shape) if length % parts == 0]
        if not split or parts == 1 or not fitting or np.prod(shape) < _MIN_SPLIT_SIZE:
            return replicated(mesh)
        axis = max(fitting, key=lambda axis: (shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[DATA if i == axis else None for i in range(len(shape))]))

    return jax.tree.map(sharding_of, shapes)


def put_whole(tree: Any, shardings: Any) -> Any:
    """Lay out arrays that every process has whole over the devices of all processes.

    Args:
        shardings: one per array, or a single one for all.
    """

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda array: put(array, shardings), tree)
    return jax.tree.map(put, tree, shardings)


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Put this process's rows of a global batch on the devices, and return the global batch.

    Raises:
        ConfigError: if the devices do not divide the global batch, or the canvas can't be split in height.
    """
    check_batch(batch.images.shape[0] * jax.process_count(), mesh)
    check_canvases([batch.images.shape[1:3]], mesh)
    shardings = batch_shardings(mesh)
    return Batch(
        *(jax.make_array_from_process_local_data(spec, array) for spec, array in zip(shardings, batch, strict=True))
    )


def check_batch(rows: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raise ConfigError if the global batch, processed in `accumulate` parts, does not divide over `data`."""
    parts = mesh.shape[DATA] * accumulate
    if rows % parts:
        also = f" × {accumulate} parts (train.accumulate_steps)" if accumulate > 1 else ""
        fewer = " Or let several devices share an image: parallel.space." if rows < mesh.shape[DATA] else ""
        raise ConfigError(
            f"A batch of {rows} images can't be split evenly over {mesh.shape[DATA]} devices{also}: "
            f"choose train.batch_size and train.eval_batch_size as multiples of {parts}.{fewer}"
        )


def check_canvases(canvases: Iterable[tuple[int, int]], mesh: Mesh) -> None:
    """Raise ConfigError for a canvas (height, width) whose rows do not divide over `space` at every level."""
    space = mesh.shape[SPACE]
    multiple = _COARSEST_STRIDE * space
    for height, width in canvases:
        if space > 1 and height % multiple:
            fitting = -(-height // multiple) * multiple
            raise ConfigError(
                f"A canvas {height} pixels high can't be split over parallel.space = {space} devices: heights must "
                f"be multiples of 128 · {space} = {multiple}; in data.buckets write {fitting}x{width} for "
                f"{height}x{width}."
            )
