"""The machines that programs are compiled for: TPU slices and GPUs as described devices, or the devices at hand.

Nothing of a TPU or GPU is needed but its compiler (`pip install "jax[tpu]"`, `pip install "jax[cuda12]"`).
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from tood_jax.ahead_of_time.gpus import GPUS, description
from tood_jax.config import ConfigError

HERE = "here"


class Chip(NamedTuple):
    """What a JAX device of this kind has, by its maker's data sheet."""

    name: str
    device_kind: str  # how JAX's begins
    memory: float  # bytes of HBM
    bfloat16: float  # FLOP/s
    bandwidth: float  # bytes/s of HBM


def _gpu(kind: str, bfloat16: float) -> Chip:
    gpu = GPUS[kind]
    return Chip(gpu.name, gpu.name, gpu.memory, bfloat16, gpu.bandwidth)


# Google Cloud's pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x"; NVIDIA's data sheets (SXM, dense). A device is a chip,
# but half a chip (one of its two dies) on tpu7x.
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
    """What a device has, if its kind is known."""
    kind = device.device_kind
    fitting = [chip for chip in CHIPS.values() if kind.startswith(chip.device_kind)]
    return max(fitting, key=lambda chip: len(chip.device_kind), default=None)


def devices_of(topology: str) -> tuple[Sequence[jax.Device], Chip | None]:
    """Devices of a TPU slice such as "v5e:16x16", of GPUs such as "h200:8" (one host) or "h200:4x8" (four hosts of
    eight), or of this machine, "here"; and what each has, if known.

    Raises:
        ConfigError: for a slice that doesn't exist, and without the compiler.
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
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would look for a TPU's metadata server, for minutes
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # libtpu reports by many types
        reason = _first_line(error)
        mend = (
            'install the TPU compiler (pip install "jax[tpu]")' if "libtpu" in reason.lower() else "name another shape"
        )
        raise ConfigError(f"--topology={topology} can't be described ({reason}): {mend}.") from None


def _gpus(topology: str, kind: str, shape: str) -> Sequence[jax.Device]:
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", shape)
    if found is None:
        said = f"how many GPUs, {kind}:8, or hosts and GPUs a host, {kind}:4x8"
        raise ConfigError(f"--topology={topology} must say {said}.")
    grid = f"1x{found[1] or 1}x{found[2]}"
    # Else the compiler's plug-in looks for a GPU here and gives up without one.
    if not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=grid, target_config=description(GPUS[kind])
        ).devices
    except Exception as error:  # of several types, by what is missing
        raise ConfigError(
            f"--topology={topology} can't be described ({_first_line(error)}): install the GPU compiler "
            '(pip install "jax[cuda12]").'
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
