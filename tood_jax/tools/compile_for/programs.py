"""Trace or lower the training step and the evaluation step of a config, also for devices of other machines."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tood_jax.config import Config
from tood_jax.distributed.sharding import batch_shardings, check_batch, check_canvases, replicated
from tood_jax.evaluation.predict import compile_detect_step
from tood_jax.models.build import build_model
from tood_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tood_jax.training.state import state_shapes
from tood_jax.training.train_step import compile_train_step, train_state_shardings
from tood_jax.types import Batch

STEPS_PER_EPOCH = 1000  # changes only constants of the schedule, not the program


def abstract_batch(images: int, canvas: tuple[int, int], max_objects: int, mesh: Mesh) -> Batch:
    """Return the shapes, dtypes and shardings of a global batch.

    Args:
        images: number of images.
        canvas: (height, width) in pixels.
        max_objects: padded objects per image.
        mesh: the devices.
    """
    check_batch(images, mesh)
    check_canvases([canvas], mesh)
    shapes = Batch(
        images=((images, *canvas, 3), np.uint8),
        sizes=((images, 2), np.int32),
        scales=((images, 2), np.float32),
        gt_boxes=((images, max_objects, 4), np.float32),
        gt_labels=((images, max_objects), np.int32),
        gt_mask=((images, max_objects), np.bool_),
        image_indices=((images,), np.int32),
    )
    shardings = batch_shardings(mesh)
    return Batch(
        *(
            jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for (shape, dtype), sharding in zip(shapes, shardings, strict=True)
        )
    )


def lower_train_step(config: Config, num_classes: int, images: int, canvas: tuple[int, int], mesh: Mesh) -> Any:
    """Return `trace_train_step`, lowered for the devices of the mesh."""
    return trace_train_step(config, num_classes, images, canvas, mesh).lower()


def lower_detect_step(config: Config, num_classes: int, images: int, canvas: tuple[int, int], mesh: Mesh) -> Any:
    """Return `trace_detect_step`, lowered for the devices of the mesh."""
    return trace_detect_step(config, num_classes, images, canvas, mesh).lower()


def trace_train_step(config: Config, num_classes: int, images: int, canvas: tuple[int, int], mesh: Mesh) -> Any:
    """Return the training step, traced for a global batch of `images`, with the donation and shardings of a run."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=images))
    model = build_model(config, num_classes, platform_of(mesh))
    schedule = learning_rate_schedule(
        config.optimizer, batch_size=images, steps_per_epoch=STEPS_PER_EPOCH, epochs=config.train.epochs
    )
    optimizer = make_optimizer(config)
    step = compile_train_step(model, config, optimizer, schedule, STEPS_PER_EPOCH, mesh)
    shapes = state_shapes(model, optimizer, keep_ema=config.optimizer.ema_decay is not None)
    state = _with_shardings(shapes, train_state_shardings(model, config, optimizer, mesh))
    return step.trace(state, abstract_batch(images, canvas, config.data.max_objects, mesh))


def trace_detect_step(config: Config, num_classes: int, images: int, canvas: tuple[int, int], mesh: Mesh) -> Any:
    """Return the evaluation step, from pixels to detections, traced for a global batch of `images`."""
    model = build_model(config, num_classes, platform_of(mesh))
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
    variables = _with_shardings(variables, jax.tree.map(lambda _: replicated(mesh), variables))
    batch = abstract_batch(images, canvas, config.data.max_objects, mesh)
    return compile_detect_step(model, config, mesh).trace(variables["params"], variables.get("batch_stats", {}), batch)


def platform_of(mesh: Mesh) -> str:
    """Return "cpu", "gpu" or "tpu", the platform of a mesh, which may differ from the default backend."""
    return str(mesh.devices.flat[0].platform)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
