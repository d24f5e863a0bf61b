"""Our side: the flax model, its losses and its optimizer as training and evaluation use them."""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tood_jax.config import Config
from tood_jax.detectors.detector import Detector, canvas_pyramid, detections, normalize_images
from tood_jax.detectors.losses import detection_losses
from tood_jax.detectors.targets import assign, batch_priors
from tood_jax.torch_reference.comparison.sides import Forward, Found, Learnt, forward_maps
from tood_jax.training.optimizer import descend, make_optimizer
from tood_jax.types import Batch
from tood_jax.weights.mapping import export_state_dict

Tree = Any


class Ours:
    """See `sides.Side`."""

    name = "tood_jax"

    def __init__(self, model: Detector, variables: Tree, config: Config, learning_rate: float):
        self.model, self.config, self.learning_rate = model, config, learning_rate
        self.variables = _as_computed(variables)
        self.optimizer = make_optimizer(config)

    @cached_property
    def _step(self):
        """(params, batch, aligned) to ((total, everything on the way), gradients): one program for all questions."""
        config = self.config

        def loss(params, batch, aligned):
            image = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
            pred, captured = self.model.apply(
                {**self.variables, "params": params},
                image,
                capture_intermediates=lambda module, _: module.name in ("backbone", "neck"),
                mutable=["intermediates"],
            )
            losses = detection_losses(pred, batch, aligned, config)
            gt_index = assign(pred, batch, batch_priors(batch, config), aligned, config).gt_index
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
            _, state = self.optimizer.update(gradients, state, params)
            return descend(params, state, self.learning_rate), state

        return jax.jit(update)

    def forward(self, batch: Batch) -> Forward:
        batch = _as_computed(batch)
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
        maps = forward_maps(_nchw(image), map(_nchw, c), map(_nchw, p), scores, boxes)
        images = zip(found.boxes, found.scores, found.labels, strict=True)
        return Forward(maps, [Found(b[lab >= 0], s[lab >= 0], lab[lab >= 0]) for b, s, lab in images])

    def learn(self, batch: Batch, aligned: bool) -> Learnt:
        (_, (losses, gt_index, *_)), gradients = self._step(self.variables["params"], _as_computed(batch), aligned)
        parts = {"cls": np.asarray(losses.cls), "box": np.asarray(losses.box)}
        named = export_state_dict({**self.variables, "params": jax.device_get(gradients)}, self.config)
        return Learnt(parts, named, np.asarray(gt_index))

    def trajectory(self, batches: list[Batch], aligned: bool) -> np.ndarray:
        params, rows = self.variables["params"], []
        state = self.optimizer.init(params)
        for batch in batches:
            (_, (losses, *_)), gradients = self._step(params, _as_computed(batch), aligned)
            rows.append([losses.cls.sum(), losses.box.sum()])
            params, state = self._update(params, state, gradients)
        return np.asarray(rows)


def _as_computed(tree: Tree) -> Tree:
    """Floats in the precision of the computation (`double` reads another one here), on the device."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if np.issubdtype(x.dtype, np.floating) else x.dtype), tree)


def _nchw(array) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)
