"""One run in many processes: who belongs to it, as the environment says, and how a process leaves.

The first of these that is there decides (`docs/scaling.md` tells what to type):

    an address     JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES, JAX_PROCESS_ID (our launcher sets them too)
    SLURM          srun with more than one task
    Open MPI       mpirun with more than one process
    a Cloud TPU    a slice of several hosts, found by JAX itself

and else the process is alone. JAX_LOCAL_DEVICE_IDS=0,1 names a process's own GPUs, where it shouldn't take them all.
"""

import contextlib
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tood_jax.training.messages import from_all

JOIN_SECONDS, HEARTBEAT_SECONDS = "TOOD_JOIN_SECONDS", "TOOD_HEARTBEAT_SECONDS"  # in the environment
_DEFAULTS = {JOIN_SECONDS: 300, HEARTBEAT_SECONDS: 60}
_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Parts of what JAX and its transports say when another process is gone.
_LOST_PEER = (
    "Gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "Socket closed",
    "heartbeat",
    "coordination service",
)


class ProcessError(RuntimeError):
    """The processes of a run don't find each other, or the environment describes them wrongly."""


@dataclass(frozen=True)
class Membership:
    """This process among those of its run."""

    source: str
    """Who says so."""
    address: str
    """host:port where the first process listens."""
    count: int
    index: int
    devices: tuple[int, ...] | None = None
    """Which of the GPUs that it sees are its own; None = all."""


def membership(environment: Mapping[str, str]) -> Membership | None:
    """What the environment says, None if nothing (on a Cloud TPU JAX knows more). Raises ProcessError."""
    explicit = [name for name in _EXPLICIT if environment.get(name)]
    if len(explicit) == len(_EXPLICIT):
        count, index = (_whole(environment, name) for name in _EXPLICIT[1:])
        return _checked(Membership("JAX_PROCESS_ID", environment[_EXPLICIT[0]], count, index, _named_gpus(environment)))
    if len(explicit) > 1 or (explicit and explicit[0] != _EXPLICIT[0]):
        missing = ", ".join(name for name in _EXPLICIT if name not in explicit)
        raise ProcessError(f"{' and '.join(explicit)} set, but not {missing}: set all three in every process, or none.")
    return _slurm(environment) or _open_mpi(environment)


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of this run, if there are any; before any other use of JAX's devices.

    Raises ProcessError. If the others don't come in time, it says so and ends the process (JAX would abort it).
    """
    if jax.distributed.is_initialized():
        return
    limit, heartbeat = (_seconds(environment, name) for name in (JOIN_SECONDS, HEARTBEAT_SECONDS))
    found = membership(environment)
    on_tpu = found is None and _on_cloud_tpu(environment)
    if not on_tpu and (found is None or found.count == 1):
        return
    # JAX's own service would swallow SIGTERM; the loop hears signals and agrees on them by itself.
    jax.config.update("jax_enable_preemption_service", False)
    limits: dict[str, Any] = {"initialization_timeout": limit + 60, "heartbeat_timeout_seconds": heartbeat}
    with _time_limit(found, limit):
        try:
            if found is None:
                jax.distributed.initialize(**limits)
            else:
                jax.distributed.initialize(
                    found.address,
                    found.count,
                    found.index,
                    local_device_ids=found.devices,
                    cluster_detection_method="deactivate",  # all is said
                    **limits,
                )
        except (RuntimeError, ValueError) as error:
            if found is None and "should be defined" in str(error):
                return  # a TPU that belongs to no slice of several hosts
            raise ProcessError(f"The processes of this run can't join ({str(error).splitlines()[0]}).") from None


def meet(mesh: Mesh) -> None:
    """Waits for all processes, and on the CPU opens the connections between them along both axes of the mesh.

    Else gloo would open each at its first use, and give up when one process comes there 30 s after another, which
    has the step compiled already.
    """
    from_all(None)
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    rows, columns = mesh.axis_names
    grid = NamedSharding(mesh, PartitionSpec(rows, columns))
    ones = jax.make_array_from_callback(mesh.devices.shape, grid, lambda index: np.ones(mesh.devices.shape)[index])
    for summed, left in (((0, 1), ()), ((0,), (columns,)), ((1,), (rows,))):
        into = NamedSharding(mesh, PartitionSpec(*left))
        jax.jit(partial(jnp.sum, axis=summed), out_shardings=into)(ones).block_until_ready()


def leave_at_once(status: int) -> None:
    """Ends this process if it has peers; returns if it is alone.

    The ordinary end of a process waits for the others (for five minutes), while they wait for it in the next step.
    Thus they notice at once that it is gone.
    """
    if jax.distributed.is_initialized():
        end_at_once(status)


def end_at_once(status: int) -> NoReturn:
    """Ends this process without waiting for its threads or its peers."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def of_a_lost_peer(error: BaseException) -> str:
    """What to tell the user of an error that comes from another process's end; "" of any other error."""
    text = str(error)
    if not jax.distributed.is_initialized() or not any(part in text for part in _LOST_PEER):
        return ""
    return (
        "Another process of this run has ended or can't be reached any more; see what it said. The same command goes "
        f"on from the newest checkpoint. ({text.splitlines()[0][:200]})"
    )


# ---------------------------------------------------------------- what each environment says


def _slurm(environment: Mapping[str, str]) -> Membership | None:
    """Of a task that srun started. (An sbatch script itself is no step, and so is alone.)"""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if not all(environment.get(name) for name in needed):
        return None
    count = _whole(environment, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS")
    local = _slurm_tasks_on_this_node(environment)
    # Jobs, and steps of a job, get different ports of the range from 61440.
    steps = int(environment["SLURM_STEP_ID"]) if environment.get("SLURM_STEP_ID", "").isdigit() else 0
    port = environment.get("JAX_COORDINATOR_PORT") or 61440 + (_whole(environment, "SLURM_JOB_ID") + 97 * steps) % 4096
    address = environment.get("JAX_COORDINATOR_ADDRESS") or f"{_first_host(environment['SLURM_STEP_NODELIST'])}:{port}"
    devices = _own_gpus(environment, _whole(environment, "SLURM_LOCALID"), local)
    return _checked(Membership("SLURM_PROCID", address, count, _whole(environment, "SLURM_PROCID"), devices))


def _slurm_tasks_on_this_node(environment: Mapping[str, str]) -> int | None:
    """From "4(x2),3": four tasks on each of two nodes, three on the next."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    each = [int(tasks) for tasks, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", text) for _ in range(int(times or 1))]
    node = environment.get("SLURM_NODEID", "")
    return each[int(node)] if node.isdigit() and int(node) < len(each) else None


def _first_host(nodes: str) -> str:
    """The first of SLURM's list: "node[007-015,020],other" gives node007."""
    plain, bracket, rest = re.split(r"([\[,]|$)", nodes, maxsplit=1)
    return plain + re.split(r"[-,\]]", rest, maxsplit=1)[0] if bracket == "[" else plain


def _open_mpi(environment: Mapping[str, str]) -> Membership | None:
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    if not all(environment.get(name) for name in names):
        return None
    count, index = (_whole(environment, name) for name in names)
    if count == 1:
        return None
    local, devices = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 0)) or None, None
    if environment.get("OMPI_COMM_WORLD_LOCAL_RANK"):
        devices = _own_gpus(environment, _whole(environment, "OMPI_COMM_WORLD_LOCAL_RANK"), local)
    address = environment.get("JAX_COORDINATOR_ADDRESS", "")
    if not address and (
        uri := re.search(r"^(\d+)\..*?tcp6?://\[?([^,:\]]+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    ):
        # Open MPI 4 tells where mpirun runs, which is the first process's host; job numbers are multiples of 4096.
        address = f"{uri[2]}:{environment.get('JAX_COORDINATOR_PORT') or 61440 + int(uri[1]) // 4096 % 4096}"
    if not address:
        raise ProcessError(
            f"mpirun started {count} processes, but doesn't tell where the first one runs: pass it on with "
            "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT (any free port of that host)."
        )
    return _checked(Membership("OMPI_COMM_WORLD_RANK", address, count, index, devices))


def _on_cloud_tpu(environment: Mapping[str, str]) -> bool:
    """Importing JAX leaves this mark where there are TPU chips and their library."""
    return environment.get("TPU_ML_PLATFORM") == "JAX" and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def _own_gpus(environment: Mapping[str, str], local_index: int, local_count: int | None) -> tuple[int, ...] | None:
    """Equal shares of the GPUs that the processes of a host see, where the scheduler didn't share them out already."""
    named, seen = _named_gpus(environment), _visible_gpus(environment)
    if named is not None or local_count == 1 or seen == 1:
        return named
    if seen is None or local_count is None:
        return (local_index,)
    if seen % local_count:
        raise ProcessError(
            f"{local_count} processes of one host can't share its {seen} GPUs: start a divisor of {seen}."
        )
    each = seen // local_count
    return tuple(range(local_index * each, (local_index + 1) * each))


def _named_gpus(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    text = environment.get("JAX_LOCAL_DEVICE_IDS", "")
    if not re.fullmatch(r"(\d+(,\d+)*)?", text):
        raise ProcessError(f"JAX_LOCAL_DEVICE_IDS={text} must be numbers of GPUs, as in 0,1.")
    return tuple(int(number) for number in text.split(",")) if text else None


def _visible_gpus(environment: Mapping[str, str]) -> int | None:
    if "CUDA_VISIBLE_DEVICES" in environment:
        return len([one for one in environment["CUDA_VISIBLE_DEVICES"].split(",") if one.strip()]) or None
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(on_node) if on_node.isdigit() else None


def _checked(found: Membership) -> Membership:
    host, colon, port = found.address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ProcessError(f"The coordinator's address must be host:port, not {found.address}.")
    if not 0 <= found.index < found.count:
        raise ProcessError(
            f"{found.source}={found.index} must lie between 0 and {found.count - 1}, the number of processes less one."
        )
    return found


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdigit():
        raise ProcessError(f"{name}={text} must be a whole number.")
    return int(text)


def _seconds(environment: Mapping[str, str], name: str) -> int:
    return _whole(environment, name) if environment.get(name) else _DEFAULTS[name]


# ---------------------------------------------------------------- waiting for the others


@contextlib.contextmanager
def _time_limit(found: Membership | None, seconds: int) -> Iterator[None]:
    """Ends the process with a sentence when the block takes longer."""

    def give_up() -> None:
        print(f"After {seconds} s {_what_is_missing(found)} {JOIN_SECONDS} sets another time limit.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _what_is_missing(found: Membership | None) -> str:
    if found is None:
        return "not all hosts of the TPU slice have joined: start the command on all of them (gcloud … --worker=all)."
    if found.index and not _answers(found.address):
        return (
            f"nobody answers at {found.address}, where the first of {found.count} processes should listen: is it "
            "running, is that its address, and does the network let the port through?"
        )
    return (
        f"not all {found.count} processes have joined at {found.address}: each must be running, with the same number "
        f"of processes and a {found.source} of its own."
    )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except OSError:
        return False
