"""Join the processes of one run into a group, and leave it."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tood_jax.distributed.cluster_environment import (
    Detector,
    Membership,
    ProcessError,
    choose_detector,
    read_membership,
)
from tood_jax.distributed.host_sync import gather_json
from tood_jax.untrusted.terminal import print_warning

JOIN_SECONDS, HEARTBEAT_SECONDS = "TOOD_JOIN_SECONDS", "TOOD_HEARTBEAT_SECONDS"  # in the environment
_DEFAULTS = {JOIN_SECONDS: 300, HEARTBEAT_SECONDS: 60}
# Parts of the messages of JAX and its transports when another process is gone.
_LOST_PEER = (
    "Gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "Socket closed",
    "heartbeat",
    "coordination service",
)
_MISSING = {
    "tpu": "not all hosts of the TPU slice have joined: start the command on all of them (gcloud … --worker=all).",
    "kubernetes": "not all pods of the Job have joined: it needs parallelism = completions and a headless service.",
    "mpi4py": "not all processes that mpirun started have joined.",
}


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of this run, if there are any; to be called before any other use of JAX's devices.

    If the others do not join in time, this process prints why and ends (JAX would abort it).

    Raises:
        ProcessError: the environment describes the processes wrongly, or they cannot join.
    """
    if jax.distributed.is_initialized():
        return
    limit, heartbeat = (_read_seconds(environment, name) for name in (JOIN_SECONDS, HEARTBEAT_SECONDS))
    found = read_membership(environment)
    detector = choose_detector(environment) if found is None else None
    if found.count == 1 if found else detector is None:
        return
    # JAX's own service would swallow SIGTERM; the training loop handles signals and agrees on them by itself.
    jax.config.update("jax_enable_preemption_service", False)
    limits: dict[str, Any] = {"initialization_timeout": limit + 60, "heartbeat_timeout_seconds": heartbeat}
    if found is not None:
        with _time_limit(limit, lambda: _what_is_missing(found)):
            _join_described(found, limits)
    elif detector is not None:
        with _time_limit(limit, lambda: _MISSING[detector]):
            _join_detected(detector, limits)


def _join_described(found: Membership, limits: dict[str, Any]) -> None:
    try:
        jax.distributed.initialize(
            found.address,
            found.count,
            found.index,
            local_device_ids=found.devices,
            cluster_detection_method="deactivate",  # everything is known
            **limits,
        )
    except (RuntimeError, ValueError) as error:
        raise _cannot_join(error) from None


def _join_detected(detector: Detector, limits: dict[str, Any]) -> None:
    """Let JAX find the other processes; the clients of Kubernetes and MPI raise errors of many types."""
    try:
        jax.distributed.initialize(cluster_detection_method="mpi4py" if detector == "mpi4py" else None, **limits)
    except Exception as error:
        if detector == "tpu" and "should be defined" in str(error):
            return  # a TPU that belongs to no slice of several hosts
        raise _cannot_join(error) from error


def _cannot_join(error: Exception) -> ProcessError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ProcessError(f"The processes of this run can't join ({reason}).")


def connect_processes(mesh: Mesh) -> None:
    """Wait for all processes, and on the CPU open the connections between them along both axes of the mesh.

    Otherwise gloo opens each connection at its first use, and gives up when one process gets there 30 s after another
    that has compiled the step already.
    """
    gather_json(None)
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    rows, columns = mesh.axis_names
    grid = NamedSharding(mesh, PartitionSpec(rows, columns))
    ones = jax.make_array_from_callback(mesh.devices.shape, grid, lambda index: np.ones(mesh.devices.shape)[index])
    for summed, kept in (((0, 1), ()), ((0,), (columns,)), ((1,), (rows,))):
        sharding = NamedSharding(mesh, PartitionSpec(*kept))
        jax.jit(partial(jnp.sum, axis=summed), out_shardings=sharding)(ones).block_until_ready()


def leave_at_once(status: int) -> None:
    """End this process if it has peers; return if it is alone.

    The ordinary end of a process waits for the others for five minutes, while they wait for it in the next step. After
    this one they notice at once that it is gone.
    """
    if jax.distributed.is_initialized():
        end_at_once(status)


def end_at_once(status: int) -> NoReturn:
    """End this process without waiting for its threads or its peers."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def explain_lost_peer(error: BaseException) -> str:
    """Return the message for an error that comes from the end of another process; "" for any other error."""
    text = str(error)
    if not jax.distributed.is_initialized() or not any(part in text for part in _LOST_PEER):
        return ""
    return (
        "Another process of this run has ended or cannot be reached any more; see its last messages. The same command "
        f"goes on from the newest checkpoint. ({text.splitlines()[0][:200]})"
    )


# ---------------------------------------------------------------- waiting for the other processes


@contextlib.contextmanager
def _time_limit(seconds: int, explain: Callable[[], str]) -> Iterator[None]:
    """End the process with the explanation when the block takes longer."""

    def end() -> None:
        print_warning(f"After {seconds} s {explain()} {JOIN_SECONDS} sets another time limit.")
        sys.stderr.flush()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _what_is_missing(found: Membership) -> str:
    if found.index and not _answers(found.address):
        return (
            f"nobody answers at {found.address}, where the primary of {found.count} processes should listen: is it "
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


def _read_seconds(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name) or str(_DEFAULTS[name])
    if not text.isdigit():
        raise ProcessError(f"{name}={text} must be a whole number.")
    return int(text)
