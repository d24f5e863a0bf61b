"""Options of the compiler for the steps of training and evaluation."""

from functools import cache

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from tood_jax.config import Config

Options = dict[str, str | bool]

# By platform. With few images a TPU's compiler folds columns into the batch, which makes T-head slower
# (reports/2026-11/accelerator_compilation.md).
DEFAULT_OPTIONS: dict[str, Options] = {
    "tpu": {"xla_tpu_run_space_to_batch": "false", "xla_tpu_run_space_to_batch_on_new_platforms": "false"}
}


def compiler_options(config: Config, mesh: Mesh) -> Options:
    """Return train.compiler_options, and the defaults of the mesh's platform for options that it does not name."""
    local_devices = (device for device in mesh.devices.flat if device.process_index == jax.process_index())
    device = next(local_devices, mesh.devices.flat[0])
    defaults = {
        name: value
        for name, value in DEFAULT_OPTIONS.get(device.platform, {}).items()
        if name not in config.compiler_options and _is_known(name, value, device)
    }
    return defaults | config.compiler_options


@cache  # called for each step that is compiled
def _is_known(name: str, value: str | bool, device: jax.Device) -> bool:
    """Return whether this version of the device's compiler has an option; an unknown one ends the compilation."""
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(jnp.negative, compiler_options={name: value}).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
