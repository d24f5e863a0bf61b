"""Options of the compiler for the steps of training and evaluation."""

from functools import cache

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from tood_jax.config import Config

Options = dict[str, str | bool]

# By platform. With few images a TPU's compiler folds columns into the batch, which costs T-head two thirds of its
# traffic and half of its estimated time (docs/pods.md).
OURS: dict[str, Options] = {
    "tpu": {"xla_tpu_run_space_to_batch": "false", "xla_tpu_run_space_to_batch_on_new_platforms": "false"}
}


def compiler_options(config: Config, mesh: Mesh) -> Options:
    """Those of train.compiler_options, and what we choose for the mesh's platform where they say nothing of it."""
    here = (device for device in mesh.devices.flat if device.process_index == jax.process_index())
    device = next(here, mesh.devices.flat[0])
    ours = OURS.get(device.platform, {})
    open_to_us = {name: value for name, value in ours.items() if name not in config.compiler_options}
    known = {name: value for name, value in open_to_us.items() if _is_known(name, value, device)}
    return known | config.compiler_options


@cache  # asked for each step that is compiled
def _is_known(name: str, value: str | bool, device: jax.Device) -> bool:
    """Does this version of the device's compiler have an option? It ends the compilation if not."""
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(jnp.negative, compiler_options={name: value}).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
