"""The machines that programs are compiled for: TPU slices as described devices, or the devices at hand.

Nothing of a TPU is needed but its compiler (`pip install "jax[tpu]"`).
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from tood_jax.config import ConfigError

HERE = "here"


class Chip(NamedTuple):
    """What a JAX device of this kind has, by its maker's data sheet."""

    name: str
    memory: float  # bytes of HBM
    bfloat16: float  # FLOP/s
    bandwidth: float  # bytes/s of HBM


# Google Cloud's pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x"; NVIDIA's data sheets of H100 and H200 (SXM). A device
# is a chip, but half a chip (one of its two dies) on tpu7x.
CHIPS = {
    "v4": Chip("TPU v4", 32 * 2**30, 275e12, 1228e9),
    "v5e": Chip("TPU v5e", 16 * 2**30, 197e12, 819e9),
    "v5p": Chip("TPU v5p", 95 * 2**30, 459e12, 2765e9),
    "v6e": Chip("TPU v6e", 32 * 2**30, 918e12, 1640e9),
    "tpu7x": Chip("TPU7x, one die", 96 * 2**30, 1153.5e12, 3690e9),
    "NVIDIA H100": Chip("NVIDIA H100", 80e9, 989e12, 3350e9),
    "NVIDIA H200": Chip("NVIDIA H200", 141e9, 989e12, 4800e9),
}


def devices_of(topology: str) -> tuple[Sequence[jax.Device], Chip | None]:
    """Devices of a TPU slice such as "v5e:16x16" (or of this machine: "here"), and what each has, if known.

    Raises:
        ConfigError: for a slice that doesn't exist, and without the TPU compiler.
    """
    if topology == HERE:
        devices = jax.devices()
        return devices, next((chip for name, chip in CHIPS.items() if name in devices[0].device_kind), None)
    kind = topology.partition(":")[0]
    if kind not in CHIPS or ":" not in topology:
        raise ConfigError(
            f"--topology={topology} must be here, or a kind and a shape such as v5e:16x16, v6e:2x4, v5p:4x4x4; "
            f"the kinds are {', '.join(name for name in CHIPS if ' ' not in name)}."
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would look for a TPU's metadata server, for minutes
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices, CHIPS[kind]
    except Exception as error:  # libtpu reports by many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        mend = (
            'install the TPU compiler (pip install "jax[tpu]")' if "libtpu" in reason.lower() else "name another shape"
        )
        raise ConfigError(f"--topology={topology} can't be described ({reason}): {mend}.") from None
