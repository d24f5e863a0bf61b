"""Target devices: descriptions of TPU slices and GPUs, or the devices of this machine.

For a TPU or GPU only its compiler is needed (`pip install "jax[tpu]"`, `pip install "jax[cuda12]"`).
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from tood_jax.config import ConfigError
from tood_jax.tools.compile_for.gpus import GPUS, target_config

HERE = "here"


class Chip(NamedTuple):
    """Properties of a JAX device, from the data sheet of its vendor."""

    name: str
    device_kind: str  # start of JAX's `device_kind`
    memory: float  # bytes of HBM
    bfloat16: float  # FLOP/s
    bandwidth: float  # bytes/s of HBM


def _gpu(kind: str, bfloat16: float) -> Chip:
    gpu = GPUS[kind]
    return Chip(gpu.name, gpu.name, gpu.memory, bfloat16, gpu.bandwidth)


# Google Cloud's pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x"; NVIDIA's data sheets (SXM, dense). A device is a chip,
# or half a chip (one of its two dies) on tpu7x.
CHIPS = {
    "v4": Chip("TPU v4", "TPU v4", 32 * 2**30, 275e12, 1228e9),
    "v5e": Chip("TPU v5e", "TPU v5 lite", 16 * 2**30, 197e12, 819e9),
    "v6e": Chip("TPU v6e", "TPU v6 lite", 32 * 2**30, 918e12, 1640e9),
    "v5p": Chip("TPU v5p", "TPU v5", 95 * 2**30, 459e12, 2765e9),
    "tpu7x": Chip("TPU7x, one die", "TPU7x", 96 * 2**30, 1153.5e12, 3690e9),
    "a100": _gpu("a100", 312e12),
    "h100": _gpu("h100", 989e12),
    "h200": _gpu("h200", 989e12),
}


def chip_of(device: jax.Device) -> Chip | None:
    """Return the properties of a device; None for an unknown kind."""
    kind = device.device_kind
    matching = [chip for chip in CHIPS.values() if kind.startswith(chip.device_kind)]
    return max(matching, key=lambda chip: len(chip.device_kind), default=None)


def devices_of(topology: str) -> tuple[Sequence[jax.Device], Chip | None]:
    """Return (devices, properties of each device, or None if unknown).

    Args:
        topology: a TPU slice such as "v5e:16x16", GPUs such as "h200:8" (one host) or "h200:4x8" (four hosts of eight),
            or "here" for this machine.

    Raises:
        ConfigError: the slice does not exist, or its compiler is not installed.
    """
    if topology == HERE:
        devices = jax.devices()
        return devices, chip_of(devices[0])
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not shape:
        raise ConfigError(
            f"--topology={topology} must be here, or a kind and a shape such as v5e:16x16, v5p:4x4x4, h200:8, h100:4x8 "
            f"(four hosts of eight); the kinds are {', '.join(CHIPS)}."
        )
    return (_gpus if kind in GPUS else _tpus)(topology, kind, shape), CHIPS[kind]


def _tpus(topology: str, kind: str, shape: str) -> Sequence[jax.Device]:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu searches for a TPU's metadata server for minutes
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # libtpu raises many types
        reason = _first_line(error)
        is_missing = "libtpu" in reason.lower()
        remedy = 'install the TPU compiler (pip install "jax[tpu]")' if is_missing else "name another shape"
        raise ConfigError(f"--topology={topology} can't be described ({reason}): {remedy}.") from None


def _gpus(topology: str, kind: str, shape: str) -> Sequence[jax.Device]:
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", shape)
    if found is None:
        raise ConfigError(
            f"--topology={topology} must have the number of GPUs, {kind}:8, or of hosts and GPUs per host, {kind}:4x8."
        )
    grid = f"1x{found[1] or 1}x{found[2]}"
    # Else the compiler's plug-in searches for a GPU on this machine and fails without one.
    if not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=grid, target_config=target_config(GPUS[kind])
        ).devices
    except Exception as error:  # the type depends on what is missing
        raise ConfigError(
            f"--topology={topology} can't be described ({_first_line(error)}): install the GPU compiler "
            '(pip install "jax[cuda12]").'
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
