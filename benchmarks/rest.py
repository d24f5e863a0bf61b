"""What a training step does besides convolutions, in four pieces that are functions on their own: our side of them.

Norms with their ReLUs, the explicit alignment (scores and sampled box sides), assignment and losses, each with its
gradient, and the optimizer. Left out are the sums, joins and averages in between. peers_rest.py is PyTorch's side.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import Program, compile_program, compiled_run, random_predictions
from benchmarks.task import Run, Task
from tood_jax.build import build_model
from tood_jax.detectors.detector import canvas_pyramid
from tood_jax.detectors.losses import detection_losses
from tood_jax.networks.alignment import align_maps
from tood_jax.networks.layers import Norm, relu
from tood_jax.training.optimizer import is_trained, make_optimizer
from tood_jax.training.state import TrainState
from tood_jax.training.step import updated_state
from tood_jax.types import Predictions

NORMS, ALIGNMENT, LOSSES, OPTIMIZER = "norms and ReLUs", "alignment", "assignment and losses", "optimizer"
ROWS = (NORMS, ALIGNMENT, LOSSES, OPTIMIZER)


class NormMap(NamedTuple):
    """A map that a norm gets, and what comes back to it."""

    kind: str  # as `layers.Norm`'s
    groups: int
    trained: bool  # a frozen one has no gradient
    values: np.ndarray  # [B, H, W, C], the network's type
    cotangent: np.ndarray


class LevelMaps(NamedTuple):
    """What the alignment of one level gets, [B, H, W, …] float32."""

    logits: np.ndarray  # C
    alignment: np.ndarray  # 1
    boxes: np.ndarray  # 4, xyxy in strides
    offsets: np.ndarray  # 8


def runs(task: Task) -> dict[str, Callable[[], tuple[Run, Program]]]:
    """As `ours.runs`."""
    return {
        NORMS: lambda: _norms(task),
        ALIGNMENT: lambda: _alignment(task),
        LOSSES: lambda: _losses(task),
        OPTIMIZER: lambda: _optimizer(task),
    }


def norm_maps(task: Task) -> list[NormMap]:
    """Of every norm of the network, in the order of their names; of the seed alone."""
    train = dataclasses.replace(task.config.train, precision="float32", pack_levels="never")  # so that each is called
    config = dataclasses.replace(task.config, train=train)
    model = build_model(config, task.classes)

    def captured(variables, images):
        calls = {"capture_intermediates": lambda module, _: isinstance(module, Norm), "mutable": ["intermediates"]}
        return model.apply(variables, images, **calls)[1]["intermediates"]

    images = jax.ShapeDtypeStruct(task.batch.images.shape, np.float32)
    shapes = jax.eval_shape(captured, task.variables, images)
    rng, dtype, found = np.random.default_rng(0), jnp.dtype(task.config.train.precision), []
    for path, leaf in jax.tree.leaves_with_path(shapes):
        kind = config.backbone.norm if path[0].key == "backbone" else "group"
        values, cotangent = rng.standard_normal((2, *leaf.shape), np.float32).astype(dtype)
        found.append(NormMap(kind, config.head.norm_groups, is_trained(path, config.backbone), values, cotangent))
    return found


def level_maps(task: Task) -> list[LevelMaps]:
    """Of the five levels; of the seed alone."""
    cells, pred = canvas_pyramid(task.batch), head_says(task)
    rng, batch = np.random.default_rng(0), len(task.batch.images)

    def noise(shape, channels):
        return rng.standard_normal((batch, *shape, channels), np.float32)

    return [
        LevelMaps(
            noise(shape, task.classes),
            noise(shape, 1),
            pred.boxes[:, level].reshape(batch, *shape, 4),
            noise(shape, 8),
        )
        for shape, level in zip(cells.shapes, cells.level_slices, strict=True)
    ]


def head_says(task: Task) -> Predictions:
    """What losses are taken of."""
    return random_predictions(task.batch, task.classes, seed=0)


def _norms(task: Task) -> tuple[Run, Program]:
    maps = norm_maps(task)
    trained = [one for one in maps if one.trained]
    frozen = [one for one in maps if not one.trained]

    def apply(one: NormMap, x, parameters):
        channels = np.zeros(x.shape[-1], np.float32)
        statistics = {"batch_stats": {"norm": {"mean": channels, "var": channels + 1}}}
        norm = Norm(one.kind, one.groups, x.dtype)
        return relu(norm.apply({"params": {"norm": parameters}, **statistics}, x))

    def parameters(one: NormMap):
        channels = np.zeros(one.values.shape[-1], np.float32)
        return {"scale": channels + 1, "bias": channels}

    def forward(of, values, affine):
        return [apply(*each) for each in zip(of, values, affine, strict=True)]

    def run(values, affine, cotangents, frozen_values, frozen_affine):
        out, back = jax.vjp(lambda *given: forward(trained, *given), values, affine)
        return out, back(cotangents), forward(frozen, frozen_values, frozen_affine)

    arguments = (
        [one.values for one in trained],
        [parameters(one) for one in trained],
        [one.cotangent for one in trained],
        [one.values for one in frozen],
        [parameters(one) for one in frozen],
    )
    return compiled_run(jax.jit(run), *jax.device_put(arguments))


def _alignment(task: Task) -> tuple[Run, Program]:
    def run(levels):
        def forward(levels):
            return [align_maps(*level) for level in levels]

        out, back = jax.vjp(forward, levels)
        return out, back(out)

    return compiled_run(jax.jit(run), jax.device_put([tuple(level) for level in level_maps(task)]))


def _losses(task: Task) -> tuple[Run, Program]:
    def total(scores, boxes, batch):
        return detection_losses(Predictions(scores, boxes), batch, True, task.config).total

    pred = head_says(task)
    arguments = jax.device_put((pred.scores, pred.boxes, task.batch))
    return compiled_run(jax.jit(jax.value_and_grad(total, argnums=(0, 1))), *arguments)


def _optimizer(task: Task) -> tuple[Run, Program]:
    """As the step has it: with the gradient's norm, and refused where that isn't finite."""
    optimizer, params = make_optimizer(task.config), task.variables["params"]

    def update(state, gradients):
        finite = jnp.isfinite(optax.tree.norm(gradients))
        return updated_state(state, gradients, {}, finite, 1e-12, optimizer, ema_decay=None)

    gradients = jax.device_put(jax.tree.map(lambda x: 0.01 * x, params))
    state = jax.device_put(TrainState(np.int32(0), params, {}, optimizer.init(params), {}))
    program = compile_program(jax.jit(update, donate_argnums=0), state, gradients)

    def run() -> Any:
        nonlocal state
        state = program.run(state, gradients)
        return state

    return run, program
