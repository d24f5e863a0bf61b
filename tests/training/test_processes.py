"""What the environment says of a process and its peers, and what it says wrongly."""

import os
import subprocess
import sys

import pytest

from tood_jax.cli.launch import free_port
from tood_jax.training.processes import Membership, ProcessError, membership

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
    assert membership(environment) == expected


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
    assert membership(SLURM | {"SLURM_STEP_NODELIST": nodes}).address.startswith(f"{first}:")


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
    assert membership(SLURM | change).devices == devices


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
        membership(environment)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (0, "After 2 s not all 2 processes have joined at 127.0.0.1:"),
        (1, "After 2 s nobody answers at 127.0.0.1:"),
    ],
)
def test_waiting_for_the_others_has_an_end(index, said):
    place = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }
    environment = {**os.environ, **place, "TOOD_JOIN_SECONDS": "2"}
    command = [sys.executable, "-c", "from tood_jax.training.processes import join; join()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(said)
    assert "Traceback" not in done.stderr
