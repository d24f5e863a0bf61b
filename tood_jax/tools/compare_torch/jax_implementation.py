"""This package's implementation: the Flax model, its losses and its optimizer, as in training and evaluation."""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tood_jax.config import Config
from tood_jax.criterion.assign import assign, batch_locations
from tood_jax.criterion.losses import detection_losses
from tood_jax.models.detector import Detector, canvas_pyramid, detections, normalize_images
from tood_jax.tools.compare_torch.implementation import ForwardResult, ImageDetections, TrainingResult, name_maps
from tood_jax.training.optimizer import make_optimizer
from tood_jax.types import Batch, Tree
from tood_jax.weights.mapping import export_state_dict

Dtype = Any


class JaxImplementation:
    """This package as an `Implementation`."""

    name = "tood_jax"

    def __init__(
        self, model: Detector, variables: Tree, config: Config, learning_rate: float, dtype: Dtype = jnp.float32
    ):
        """Keep a model and its weights.

        Args:
            model: the detector.
            variables: its params and batch_stats.
            config: the config of the model.
            learning_rate: of the trajectories.
            dtype: dtype of weights and batches: float64 for a model that computes in it, else float32.
        """
        assigner = dataclasses.replace(config.assigner, rescue_iou=0.0)  # the published code has no rescue
        self.model, self.learning_rate, self._dtype = model, learning_rate, dtype
        self.config = dataclasses.replace(config, assigner=assigner)
        self.variables = self._as_computed(variables)
        self.optimizer = make_optimizer(config)

    @cached_property
    def _step(self):
        """Function from (params, batch, in_tal_phase) to ((total loss, intermediate results), gradients)."""
        config = self.config

        def loss(params, batch, in_tal_phase):
            image = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
            pred, captured = self.model.apply(
                {**self.variables, "params": params},
                image,
                capture_intermediates=lambda module, _: module.name in ("backbone", "neck"),
                mutable=["intermediates"],
            )
            losses = detection_losses(pred, batch, in_tal_phase, config)
            gt_index = assign(pred, batch, batch_locations(batch, config), in_tal_phase, config).gt_index
            captured = captured["intermediates"]
            c, p = captured["backbone"]["__call__"][0], captured["neck"]["__call__"][0]
            return losses.total, (losses, gt_index, image, c, p, pred)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    @cached_property
    def _detect(self):
        return jax.jit(lambda pred, batch: detections(pred, batch, self.config))

    @cached_property
    def _update(self):
        def update(params, state, gradients):
            updates, state = self.optimizer.update(gradients, state, params, learning_rate=self.learning_rate)
            return optax.apply_updates(params, updates), state

        return jax.jit(update)

    def forward(self, batch: Batch) -> ForwardResult:
        batch = self._as_computed(batch)
        (_, (_, _, image, c, p, pred)), _ = self._step(self.variables["params"], batch, False)
        found = jax.device_get(self._detect(pred, batch))
        cells = canvas_pyramid(batch)
        scores, boxes = (
            [
                _nchw(values[:, level].reshape(len(values), *shape, -1))
                for level, shape in zip(cells.level_slices, cells.shapes, strict=True)
            ]
            for values in (pred.scores, pred.boxes)
        )
        maps = name_maps(_nchw(image), map(_nchw, c), map(_nchw, p), scores, boxes)
        images = zip(found.boxes, found.scores, found.labels, strict=True)
        return ForwardResult(maps, [ImageDetections(b[lab >= 0], s[lab >= 0], lab[lab >= 0]) for b, s, lab in images])

    def losses_and_gradients(self, batch: Batch, in_tal_phase: bool) -> TrainingResult:
        (_, (losses, gt_index, *_)), gradients = self._step(
            self.variables["params"], self._as_computed(batch), in_tal_phase
        )
        parts = {"cls": np.asarray(losses.cls), "box": np.asarray(losses.box)}
        named = export_state_dict({**self.variables, "params": jax.device_get(gradients)}, self.config)
        return TrainingResult(parts, named, np.asarray(gt_index))

    def trajectory(self, batches: list[Batch], in_tal_phase: bool) -> np.ndarray:
        params, rows = self.variables["params"], []
        state = self.optimizer.init(params)
        for batch in batches:
            (_, (losses, *_)), gradients = self._step(params, self._as_computed(batch), in_tal_phase)
            rows.append([losses.cls.sum(), losses.box.sum()])
            params, state = self._update(params, state, gradients)
        return np.asarray(rows)

    def _as_computed(self, tree: Tree) -> Tree:
        """Return the tree on the device, with floats in the compute dtype."""

        def computed(x: np.ndarray) -> jax.Array:
            return jnp.asarray(x, self._dtype if np.issubdtype(x.dtype, np.floating) else x.dtype)

        return jax.tree.map(computed, tree)


def _nchw(array) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)
