"""Ultralytics' task-aligned assigner as a peer. Imports torch; Ultralytics is imported when it is used."""

from collections.abc import Callable

from benchmarks.peers.inputs import PeerInputs
from benchmarks.peers.protocol import TASK_ALIGNED, Workload
from benchmarks.peers.torch_runtime import peak_device_bytes, synchronized, to_tensor
from tood_jax.geometry.locations import level_shapes
from tood_jax.tools.compare_torch.torch_reference.boxes import locations_of


class UltralyticsPeer:
    """A `Peer` that implements the task-aligned assigner."""

    name = "ultralytics"

    def workloads(self, inputs: PeerInputs) -> dict[str, Callable[[], Workload]]:
        return {TASK_ALIGNED: lambda: _assigner(inputs)}

    def peak_device_bytes(self, workload: Workload) -> int | None:
        return peak_device_bytes()


def _assigner(inputs: PeerInputs) -> Workload:
    """It works on the whole padded batch."""
    from ultralytics.utils.tal import TaskAlignedAssigner

    options = inputs.config.assigner
    assigner = TaskAlignedAssigner(options.topk, inputs.classes, options.alpha, options.beta)
    scores, boxes = to_tensor(inputs.assigner.scores), to_tensor(inputs.assigner.boxes)
    points = locations_of(level_shapes(*inputs.batch.images.shape[1:3]), scores).points
    labels = to_tensor(inputs.batch.gt_labels)[..., None].long()
    gt_boxes, mask = to_tensor(inputs.batch.gt_boxes), to_tensor(inputs.batch.gt_mask)[..., None]
    return Workload(synchronized(lambda: assigner(scores, boxes, points, labels, gt_boxes, mask)))
