"""tood_jax itself as a peer: each workload is compiled ahead of time."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.harness.programs import compile_call, device_mesh
from benchmarks.harness.training_step import compile_training_step, with_negligible_learning_rate
from benchmarks.peers.inputs import AssignerInputs, PeerInputs
from benchmarks.peers.protocol import (
    ATSS,
    DEFORMABLE_FORWARD,
    DEFORMABLE_GRADIENT,
    INFERENCE,
    NMS,
    TASK_ALIGNED,
    TRAINING,
    Workload,
)
from benchmarks.peers.tood_jax_step_parts import step_part_workloads
from tood_jax.assigners.atss import assign_atss_batch
from tood_jax.assigners.task_aligned import assign_task_aligned_batch
from tood_jax.config import AssignerConfig, HeadConfig
from tood_jax.distributed.sharding import put_batch, replicated
from tood_jax.evaluation.predict import compile_detect_step
from tood_jax.models.build import build_model
from tood_jax.models.detector import canvas_pyramid
from tood_jax.ops.deform_conv.deform_conv2d import deform_conv2d
from tood_jax.postprocess import nms


class ToodJaxPeer:
    """A `Peer` that implements all workloads."""

    name = "tood_jax"

    def workloads(self, inputs: PeerInputs) -> dict[str, Callable[[], Workload]]:
        return {
            TRAINING: lambda: training_workload(inputs),
            INFERENCE: lambda: _inference(inputs),
            TASK_ALIGNED: lambda: _assigner(inputs, TASK_ALIGNED),
            ATSS: lambda: _assigner(inputs, ATSS),
            NMS: lambda: _nms(inputs),
            DEFORMABLE_FORWARD: lambda: _deformable(inputs, gradient=False),
            DEFORMABLE_GRADIENT: lambda: _deformable(inputs, gradient=True),
            **step_part_workloads(inputs),
        }

    def peak_device_bytes(self, workload: Workload) -> int | None:
        """Return what the program takes of a GPU, as its compiler reports; JAX's allocator has no peak to reset."""
        memory = workload.program and workload.program.about["memory"]
        return memory["total"] if memory and jax.default_backend() == "gpu" else None


def training_workload(inputs: PeerInputs) -> Workload:
    """Return the training step in its task-aligned phase."""
    config = with_negligible_learning_rate(inputs.config, len(inputs.batch.images))
    config = dataclasses.replace(config, assigner=dataclasses.replace(config.assigner, warmup_epochs=0))
    variables, mesh = inputs.params_and_stats, device_mesh(1)
    program, step = compile_training_step(config, inputs.classes, variables, inputs.batch, mesh)
    return Workload(functools.partial(step, 0), program)


def assigner_calls(inputs: AssignerInputs, options: AssignerConfig) -> dict[str, tuple[Callable, tuple]]:
    """Return each assigner by its workload's name, with its arguments; the functions take `chunk`."""
    batch, scores, boxes, valid = inputs
    locations = canvas_pyramid(batch)
    atss = functools.partial(assign_atss_batch, level_slices=locations.level_slices, topk=options.atss_topk)
    task_aligned = functools.partial(
        assign_task_aligned_batch, topk=options.topk, alpha=options.alpha, beta=options.beta
    )
    anchors = locations.anchors(HeadConfig().anchor_scale)
    objects = (batch.gt_boxes, batch.gt_labels, batch.gt_mask)
    return {
        TASK_ALIGNED: (task_aligned, (scores, boxes, locations.points, valid, *objects)),
        ATSS: (atss, (anchors, valid, batch.gt_boxes, batch.gt_mask)),
    }


def _inference(inputs: PeerInputs) -> Workload:
    mesh = device_mesh(1)
    step = compile_detect_step(build_model(inputs.config, inputs.classes), inputs.config, mesh)
    variables = jax.device_put(inputs.params_and_stats, replicated(mesh))
    return Workload(*compile_call(step, *variables, put_batch(inputs.batch, mesh)))


def _assigner(inputs: PeerInputs, name: str) -> Workload:
    assign, arguments = assigner_calls(inputs.assigner, inputs.config.assigner)[name]
    return Workload(*compile_call(jax.jit(assign), *jax.device_put(arguments)))


def _nms(inputs: PeerInputs) -> Workload:
    options = inputs.config.detect
    function = functools.partial(nms, iou_threshold=options.nms_iou, max_detections=options.max_detections)
    return Workload(*compile_call(jax.jit(function), *jax.device_put(inputs.nms_candidates)))


def _deformable(inputs: PeerInputs, *, gradient: bool) -> Workload:
    def forward_and_gradient(*arrays):
        out, pull_back = jax.vjp(deform_conv2d, *arrays)
        return pull_back(jnp.ones_like(out))

    arrays = jax.device_put(
        (inputs.deformable_map, inputs.deformable_offsets, inputs.deformable_mask, inputs.deformable_kernel)
    )
    return Workload(*compile_call(jax.jit(forward_and_gradient if gradient else deform_conv2d), *arrays))
