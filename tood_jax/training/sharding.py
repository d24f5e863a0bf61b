"""Where arrays live: the batch is split over the mesh's `data` axis, everything else is on every device."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tood_jax.config import ConfigError
from tood_jax.types import Batch


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the given devices (all, by default) with the one axis `data`."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a global batch to the devices; the result is the global batch.

    Raises:
        ConfigError: if the devices don't divide the global batch.
    """
    rows = batch.images.shape[0] * jax.process_count()
    if rows % mesh.size:
        raise ConfigError(
            f"A batch of {rows} images can't be split evenly over {mesh.size} devices: "
            f"choose train.batch_size and train.eval_batch_size as multiples of {mesh.size}."
        )
    sharding = over_batch(mesh)
    return Batch(*(jax.make_array_from_process_local_data(sharding, array) for array in batch))
