"""Which processes belong to one run, as the environment describes them.

The first of these that is present decides (`docs/distributed.md` shows what to type):

    explicit       JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES, JAX_PROCESS_ID (our launcher sets them too)
    SLURM          srun with more than one task
    Open MPI       mpirun with more than one process
    Cloud TPU      a slice of several hosts, detected by JAX
    Kubernetes     an indexed Job or a JobSet, detected by JAX with the package `kubernetes`
    other MPI      mpirun of MPICH or Intel MPI, detected by JAX with the package `mpi4py`

Otherwise the process is alone. JAX_LOCAL_DEVICE_IDS=0,1 names the GPUs of a process that must not take all.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

_ADDRESS, _COUNT, _INDEX = _EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
# Numbers of pods or processes, set by LeaderWorkerSet and by Kubeflow's training jobs.
_POD_COUNTS = ("LWS_GROUP_SIZE", "WORLD_SIZE", "PET_NNODES", "NUM_PROCESSES")
_MPI_COUNTS = ("PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # MPICH and Intel MPI; MVAPICH


class ProcessError(RuntimeError):
    """The processes of a run cannot join, or the environment describes them wrongly."""


@dataclass(frozen=True)
class Membership:
    """This process among those of its run."""

    source: str
    """Environment variable that the index comes from."""
    address: str
    """host:port on which the primary process listens."""
    count: int
    """Processes of the run."""
    index: int
    """Of this process, 0 … count - 1."""
    devices: tuple[int, ...] | None = None
    """Which of the visible GPUs this process uses; None: all."""


def read_membership(environment: Mapping[str, str]) -> Membership | None:
    """Return what the environment says explicitly, or what SLURM or Open MPI say; None if nothing.

    Raises:
        ProcessError: it is incomplete or contradictory.
    """
    explicit = [name for name in _EXPLICIT if environment.get(name)]
    if len(explicit) == len(_EXPLICIT):
        count, index = _read_int(environment, _COUNT), _read_int(environment, _INDEX)
        return _checked(Membership(_INDEX, environment[_ADDRESS], count, index, _named_gpus(environment)))
    if len(explicit) > 1 or (explicit and explicit[0] != _ADDRESS):
        missing = ", ".join(name for name in _EXPLICIT if name not in explicit)
        raise ProcessError(f"{' and '.join(explicit)} set, but not {missing}: set all three in every process, or none.")
    return _slurm(environment) or _open_mpi(environment)


Detector = Literal["tpu", "kubernetes", "mpi4py"]


def choose_detector(environment: Mapping[str, str]) -> Detector | None:
    """Return which of JAX's own detections finds the other processes; None: this process is alone.

    To be asked where `read_membership` finds nothing. JAX's detections of SLURM and Open MPI are not listed: they find
    no more than `read_membership`.

    Raises:
        ProcessError: there are several processes, and JAX lacks the package that would find them.
    """
    # JAX sets this mark when it is imported where there are TPU chips and their library.
    if environment.get("TPU_ML_PLATFORM") == "JAX" and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return "tpu"
    if environment.get("KUBERNETES_SERVICE_HOST"):
        if "JOB_COMPLETION_INDEX" in environment and find_spec("kubernetes"):
            return "kubernetes"
        _refuse_several(environment, ("JOB_COMPLETION_INDEX", *_POD_COUNTS), "This Kubernetes pod", "jax[k8s]")
    if any(_is_several(environment, name) for name in _MPI_COUNTS):
        if find_spec("mpi4py"):
            return "mpi4py"
        _refuse_several(environment, _MPI_COUNTS, "This process", "mpi4py")
    return None


def _is_several(environment: Mapping[str, str], name: str) -> bool:
    """Return whether a variable counts more than one process; an indexed Job says only that there may be several."""
    value = environment.get(name, "")
    return value.isdigit() and (name == "JOB_COMPLETION_INDEX" or int(value) > 1)


def _refuse_several(environment: Mapping[str, str], names: tuple[str, ...], what: str, package: str) -> None:
    for name in names:
        if _is_several(environment, name):
            raise ProcessError(
                f"{what} is one of several ({name}={environment[name]}) and does not know the others: set "
                f"{', '.join(_EXPLICIT)} in each of them, or install {package}. If each shall train alone, set "
                f"{_COUNT}=1, {_INDEX}=0 and {_ADDRESS}=localhost:1234."
            )


# ---------------------------------------------------------------- SLURM


def _slurm(environment: Mapping[str, str]) -> Membership | None:
    """Describe a task that srun started. (An sbatch script itself is no step, and so is alone.)"""
    if not all(environment.get(name) for name in _SLURM_STEP):
        return None
    count = _read_int(environment, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS")
    # Jobs, and steps of a job, get different ports of the range from 61440.
    step = int(environment["SLURM_STEP_ID"]) if environment.get("SLURM_STEP_ID", "").isdigit() else 0
    port = (
        environment.get("JAX_COORDINATOR_PORT") or 61440 + (_read_int(environment, "SLURM_JOB_ID") + 97 * step) % 4096
    )
    address = environment.get(_ADDRESS) or f"{_first_host(environment['SLURM_STEP_NODELIST'])}:{port}"
    devices = _own_gpus(environment, _read_int(environment, "SLURM_LOCALID"), _slurm_tasks_on_this_node(environment))
    return _checked(Membership("SLURM_PROCID", address, count, _read_int(environment, "SLURM_PROCID"), devices))


def _slurm_tasks_on_this_node(environment: Mapping[str, str]) -> int | None:
    """Read "4(x2),3": four tasks on each of two nodes, three on the next."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    each = [int(tasks) for tasks, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", text) for _ in range(int(times or 1))]
    node = environment.get("SLURM_NODEID", "")
    return each[int(node)] if node.isdigit() and int(node) < len(each) else None


def _first_host(nodes: str) -> str:
    """Return the first host of SLURM's list: "node[007-015,020],other" gives node007."""
    prefix, bracket, remainder = re.split(r"([\[,]|$)", nodes, maxsplit=1)
    return prefix + re.split(r"[-,\]]", remainder, maxsplit=1)[0] if bracket == "[" else prefix


# ---------------------------------------------------------------- Open MPI


def _open_mpi(environment: Mapping[str, str]) -> Membership | None:
    if not (environment.get("OMPI_COMM_WORLD_SIZE") and environment.get("OMPI_COMM_WORLD_RANK")):
        return None
    count, index = _read_int(environment, "OMPI_COMM_WORLD_SIZE"), _read_int(environment, "OMPI_COMM_WORLD_RANK")
    if count == 1:
        return None
    local_count, devices = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 0)) or None, None
    if environment.get("OMPI_COMM_WORLD_LOCAL_RANK"):
        devices = _own_gpus(environment, _read_int(environment, "OMPI_COMM_WORLD_LOCAL_RANK"), local_count)
    address = environment.get(_ADDRESS) or _open_mpi_address(environment)
    if not address:
        raise ProcessError(
            f"mpirun started {count} processes, but does not say where the primary process runs: pass its address "
            f"with mpirun -x {_ADDRESS}=HOST:PORT (any free port of that host)."
        )
    return _checked(Membership("OMPI_COMM_WORLD_RANK", address, count, index, devices))


def _open_mpi_address(environment: Mapping[str, str]) -> str:
    """Return the address of the host that mpirun runs on, the primary process's in Open MPI 4; "" if it is unknown."""
    uri = re.search(r"^(\d+)\..*?tcp6?://\[?([^,:\]]+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    if uri is None:
        return ""
    port = environment.get("JAX_COORDINATOR_PORT") or 61440 + int(uri[1]) // 4096 % 4096  # jobs are multiples of 4096
    return f"{uri[2]}:{port}"


# ---------------------------------------------------------------- GPUs of a process


def _own_gpus(environment: Mapping[str, str], local_index: int, local_count: int | None) -> tuple[int, ...] | None:
    """Return an equal share of the GPUs that the processes of a host see, unless the scheduler has shared them out."""
    named, visible = _named_gpus(environment), _visible_gpus(environment)
    if named is not None or local_count == 1 or visible == 1:
        return named
    if visible is None or local_count is None:
        return (local_index,)
    if visible % local_count:
        raise ProcessError(
            f"{local_count} processes of one host can't share its {visible} GPUs: start a divisor of {visible}."
        )
    each = visible // local_count
    return tuple(range(local_index * each, (local_index + 1) * each))


def _named_gpus(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    text = environment.get("JAX_LOCAL_DEVICE_IDS", "")
    if not re.fullmatch(r"(\d+(,\d+)*)?", text):
        raise ProcessError(f"JAX_LOCAL_DEVICE_IDS={text} must be numbers of GPUs, as in 0,1.")
    return tuple(int(number) for number in text.split(",")) if text else None


def _visible_gpus(environment: Mapping[str, str]) -> int | None:
    if "CUDA_VISIBLE_DEVICES" in environment:
        return len([gpu for gpu in environment["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip()]) or None
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(on_node) if on_node.isdigit() else None


# ---------------------------------------------------------------- checks


def _checked(found: Membership) -> Membership:
    host, colon, port = found.address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ProcessError(f"The coordinator's address must be host:port, not {found.address}.")
    if not 0 <= found.index < found.count:
        raise ProcessError(
            f"{found.source}={found.index} must lie between 0 and {found.count - 1}, the number of processes less one."
        )
    return found


def _read_int(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdigit():
        raise ProcessError(f"{name}={text} must be a whole number.")
    return int(text)
