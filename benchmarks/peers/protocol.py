"""The protocol of a peer: one implementation of TOOD, or of a part of it, that a benchmark can time."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from benchmarks.harness.programs import Program
from benchmarks.peers.inputs import PeerInputs

Run = Callable[[], object]
"""Do the work once and return its arrays, if they must be waited for."""

TRAINING, INFERENCE = "training step", "inference with NMS"
TASK_ALIGNED, ATSS, NMS = "task-aligned assigner", "ATSS", "NMS"
DEFORMABLE_FORWARD, DEFORMABLE_GRADIENT = "DCNv2, forward", "DCNv2, forward and gradient"
# The parts of a training step beside convolutions that are functions on their own, each with its gradient.
NORMS, ALIGNMENT, LOSSES, OPTIMIZER = "norms and ReLUs", "alignment", "assignment and losses", "optimizer"
STEP_PARTS = (NORMS, ALIGNMENT, LOSSES, OPTIMIZER)


class Workload(NamedTuple):
    """A piece of work that is ready to run."""

    run: Run
    program: Program | None = None  # where it was compiled ahead of time


class Peer(Protocol):
    """One implementation."""

    name: str  # in tables and reports

    def workloads(self, inputs: PeerInputs) -> Mapping[str, Callable[[], Workload]]:
        """Return what this peer implements, by name: calling a value prepares the work (and compiles it)."""
        ...

    def peak_device_bytes(self, workload: Workload) -> int | None:
        """Return the largest device memory since the last call; None where it is not known, as on a CPU."""
        ...
