"""What the environment says of a process and its peers, and what it says wrongly."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tood_jax.cli.launch import free_port
from tood_jax.distributed import cluster_environment
from tood_jax.distributed.cluster_environment import Membership, ProcessError, choose_detector, read_membership
from tood_jax.distributed.process_group import join

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def without(environment, *names):
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (EXPLICIT, Membership("JAX_PROCESS_ID", "10.0.0.1:1234", 4, 2)),
        (EXPLICIT | {"JAX_LOCAL_DEVICE_IDS": "2,3"}, Membership("JAX_PROCESS_ID", "10.0.0.1:1234", 4, 2, (2, 3))),
        (SLURM | EXPLICIT, Membership("JAX_PROCESS_ID", "10.0.0.1:1234", 4, 2)),  # said is said
        (SLURM, Membership("SLURM_PROCID", "node007:62344", 8, 5, (1,))),
        (SLURM | {"SLURM_STEP_ID": "1"}, Membership("SLURM_PROCID", "node007:62441", 8, 5, (1,))),
        (SLURM | {"JAX_COORDINATOR_PORT": "77"}, Membership("SLURM_PROCID", "node007:77", 8, 5, (1,))),
        (
            SLURM | {"JAX_COORDINATOR_ADDRESS": "head:1"},
            Membership("SLURM_PROCID", "head:1", 8, 5, (1,)),
        ),
        (without(SLURM, "SLURM_STEP_NODELIST"), None),  # the sbatch script itself, without srun
        (MPI, Membership("OMPI_COMM_WORLD_RANK", "10.96.0.1:62624", 2, 1, (1,))),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ],
)
def test_what_the_environment_says(environment, expected):
    assert read_membership(environment) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,other2", "node001"),
        ("node[001-015],other", "node001"),
        ("gpu-[3,7-9]", "gpu-3"),
        ("a[12]", "a12"),
    ],
)
def test_the_first_of_slurms_nodes(nodes, first):
    assert read_membership(SLURM | {"SLURM_STEP_NODELIST": nodes}).address.startswith(f"{first}:")


@pytest.mark.parametrize(
    ("change", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, None),  # one task a node: all its GPUs
        ({"CUDA_VISIBLE_DEVICES": "3"}, None),  # --gpus-per-task=1: SLURM shared them out
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, (2, 3)),
        ({"SLURM_GPUS_ON_NODE": "4"}, (1,)),
        ({"SLURM_STEP_TASKS_PER_NODE": "4,2(x2)", "SLURM_GPUS_ON_NODE": "8"}, (4, 5, 6, 7)),
        ({"JAX_LOCAL_DEVICE_IDS": "0"}, (0,)),
        ({"CUDA_VISIBLE_DEVICES": ""}, (1,)),  # no GPU there: it says nothing
    ],
)
def test_gpus_of_a_task(change, devices):
    assert read_membership(SLURM | change).devices == devices


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (without(EXPLICIT, "JAX_PROCESS_ID"), "ADDRESS and JAX_NUM_PROCESSES set, but not JAX_PROCESS_ID: set all"),
        ({"JAX_NUM_PROCESSES": "2"}, "but not JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID: set all three"),
        (EXPLICIT | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4 must lie between 0 and 3"),
        (EXPLICIT | {"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES=four must be a whole number"),
        (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "must be host:port, not 10.0.0.1"),
        (EXPLICIT | {"JAX_LOCAL_DEVICE_IDS": "all"}, "JAX_LOCAL_DEVICE_IDS=all must be numbers"),
        (SLURM | {"SLURM_GPUS_ON_NODE": "6"}, "4 processes of one host can't share its 6 GPUs"),
        (without(MPI, "OMPI_MCA_orte_hnp_uri"), "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(environment, said):
    with pytest.raises(ProcessError, match=said.replace("(", r"\(")):
        read_membership(environment)


ON_KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
INDEXED = ON_KUBERNETES | {"JOB_COMPLETION_INDEX": "0"}


@pytest.fixture
def installed(monkeypatch):
    """Makes the packages of these names, and no others, installed."""

    def install(*names):
        monkeypatch.setattr(cluster_environment, "find_spec", lambda name: True if name in names else None)

    install()
    return install


@pytest.mark.parametrize(
    ("environment", "packages", "expected"),
    [
        ({}, (), None),
        ({"TPU_ML_PLATFORM": "JAX"}, (), "tpu"),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, (), None),
        (ON_KUBERNETES, ("kubernetes",), None),  # a plain pod
        (INDEXED, ("kubernetes",), "kubernetes"),
        (INDEXED | {"TPU_ML_PLATFORM": "JAX"}, ("kubernetes",), "tpu"),
        (ON_KUBERNETES | {"LWS_GROUP_SIZE": "1"}, (), None),
        ({"WORLD_SIZE": "2"}, (), None),  # of PyTorch's launchers, elsewhere
        ({"PMI_SIZE": "2"}, ("mpi4py",), "mpi4py"),
        ({"PMI_SIZE": "1"}, (), None),
    ],
)
def test_jax_detects_what_the_environment_does_not_describe(installed, environment, packages, expected):
    installed(*packages)
    assert read_membership(environment) is None
    assert choose_detector(environment) == expected


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        (INDEXED, "JOB_COMPLETION_INDEX=0"),
        (ON_KUBERNETES | {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}, "LWS_GROUP_SIZE=2"),
        (ON_KUBERNETES | {"WORLD_SIZE": "4", "RANK": "0"}, "WORLD_SIZE=4"),
        (ON_KUBERNETES | {"NUM_PROCESSES": "2"}, "NUM_PROCESSES=2"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "PMI_SIZE=2"),
    ],
)
def test_one_of_several_processes_that_cannot_find_the_others_does_not_train_alone(installed, environment, variable):
    with pytest.raises(ProcessError, match=rf"is one of several \({variable}\) and does not know the others: set JAX"):
        join(environment)


def test_a_pod_of_an_indexed_job_may_train_alone(installed):
    alone = {"JAX_COORDINATOR_ADDRESS": "localhost:1234", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    join(INDEXED | alone)
    assert not jax.distributed.is_initialized()


def test_a_detection_that_fails_is_one_sentence(tmp_path):
    """JAX asks the cluster through the package `kubernetes`, whose errors have types of its own."""
    code = "class Config:\n    def load_incluster_config(self):\n        raise LookupError('no service account')\n"
    (tmp_path / "kubernetes.py").write_text(f"{code}config = Config()\n")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = run_join(INDEXED | {"PYTHONPATH": path})
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("The processes of this run can't join (no service account).")


def run_join(environment):
    command = [sys.executable, "-c", "from tood_jax.distributed.process_group import join; join()"]
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (0, "After 2 s not all 2 processes have joined at 127.0.0.1:"),
        (1, "After 2 s nobody answers at 127.0.0.1:"),
    ],
)
def test_waiting_for_the_others_has_an_end(index, said):
    own = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }
    done = run_join(own | {"TOOD_JOIN_SECONDS": "2"})
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(said)
    assert "Traceback" not in done.stderr
