"""Our side of versus_torch.py: each piece of work, compiled, as a function without arguments."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import rest
from benchmarks.common import Program, compiled_run, mesh_of
from benchmarks.task import ATSS, TASK_ALIGNED, Run, Task, ToAssign
from benchmarks.train_step import compile_step, standing_still
from tood_jax.assigners.atss import assign_atss_batch
from tood_jax.assigners.task_aligned import assign_task_aligned_batch
from tood_jax.build import build_model
from tood_jax.config import HeadConfig, LearningConfig
from tood_jax.detectors.detector import canvas_pyramid
from tood_jax.evaluation.predict import compile_detect_step
from tood_jax.networks.deformable import deformable_conv
from tood_jax.postprocess import nms
from tood_jax.training.sharding import put_batch, replicated

Made = tuple[Run, Program]


def runs(task: Task) -> dict[str, Callable[[], Made]]:
    """By row: calling a value compiles the work and returns it with its program."""
    return {
        "training step": lambda: _training(task),
        "inference with NMS": lambda: _inference(task),
        TASK_ALIGNED: lambda: _assigner(task, TASK_ALIGNED),
        ATSS: lambda: _assigner(task, ATSS),
        "NMS": lambda: _nms(task),
        "DCNv2, forward": lambda: _deformable(task, gradient=False),
        "DCNv2, forward and gradient": lambda: _deformable(task, gradient=True),
        **rest.runs(task),
    }


def _training(task: Task) -> Made:
    """The product's step in its task-aligned phase."""
    config = standing_still(task.config, len(task.batch.images))
    config = dataclasses.replace(config, learning=dataclasses.replace(config.learning, warmup_epochs=0))
    program, step = compile_step(config, task.classes, _params_and_stats(task), task.batch, mesh_of(1))
    return functools.partial(step, 0), program


def _inference(task: Task) -> Made:
    mesh = mesh_of(1)
    step = compile_detect_step(build_model(task.config, task.classes), task.config, mesh)
    return compiled_run(step, *jax.device_put(_params_and_stats(task), replicated(mesh)), put_batch(task.batch, mesh))


def assigners(given: ToAssign, learning: LearningConfig) -> dict[str, tuple[Callable, tuple]]:
    """Each assigner, by its row, and its arguments; the functions take `chunk`."""
    batch, scores, boxes, valid = given
    cells = canvas_pyramid(batch)
    atss = functools.partial(assign_atss_batch, level_slices=cells.level_slices, topk=learning.atss_topk)
    aligned = functools.partial(assign_task_aligned_batch, topk=learning.topk, alpha=learning.alpha, beta=learning.beta)
    anchors = cells.anchors(HeadConfig().anchor_scale)
    return {
        TASK_ALIGNED: (aligned, (scores, boxes, cells.points, valid, batch.gt_boxes, batch.gt_labels, batch.gt_mask)),
        ATSS: (atss, (anchors, valid, batch.gt_boxes, batch.gt_mask)),
    }


def _assigner(task: Task, row: str) -> Made:
    assign, arguments = assigners(task.to_assign, task.config.learning)[row]
    return compiled_run(jax.jit(assign), *jax.device_put(arguments))


def _nms(task: Task) -> Made:
    options = task.config.detect
    function = functools.partial(nms, iou_threshold=options.nms_iou, max_detections=options.max_detections)
    return compiled_run(jax.jit(function), *jax.device_put(task.candidates))


def _deformable(task: Task, *, gradient: bool) -> Made:
    def both(*arrays):
        out, back = jax.vjp(deformable_conv, *arrays)
        return back(jnp.ones_like(out))

    arrays = jax.device_put((task.map, task.offsets, task.mask, task.kernel))
    return compiled_run(jax.jit(both if gradient else deformable_conv), *arrays)


def _params_and_stats(task: Task) -> tuple[Any, Any]:
    return task.variables["params"], task.variables.get("batch_stats", {})
