"""Inputs of the parts of a training step beside convolutions; they depend on the sizes alone."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness.inputs import random_predictions
from benchmarks.peers.inputs import PeerInputs
from tood_jax.models.build import build_model
from tood_jax.models.detector import canvas_pyramid
from tood_jax.models.layers import GroupNormReLU, Norm
from tood_jax.ops.t_head.level_maps import LevelMaps
from tood_jax.training.optimizer import is_trained
from tood_jax.types import Predictions


class NormInputs(NamedTuple):
    """Input of one norm, and the cotangent of its output."""

    kind: str  # as in `layers.Norm`
    groups: int
    is_trained: bool  # a frozen norm has no gradient
    values: np.ndarray  # [B, H, W, C], in the network's type
    cotangent: np.ndarray


class AlignmentInputs(NamedTuple):
    """Inputs of the alignment of one level, [B, H, W, …] float32."""

    logits: np.ndarray  # C
    alignment: np.ndarray  # 1
    boxes: np.ndarray  # 4, xyxy in strides
    offsets: np.ndarray  # 8


def norm_inputs(inputs: PeerInputs) -> list[NormInputs]:
    """Return the inputs of all norms of the network, in the order of their names."""
    # Packed levels would call the norms of the head once for all levels.
    train = dataclasses.replace(inputs.config.train, precision="float32", pack_levels="never")
    config = dataclasses.replace(inputs.config, train=train)
    model = build_model(config, inputs.classes)

    def is_norm(module, method_name):
        return isinstance(module, Norm | GroupNormReLU)

    def captured(variables, images):
        _, collections = model.apply(variables, images, capture_intermediates=is_norm, mutable=["intermediates"])
        intermediates = collections["intermediates"]
        return jax.tree.map(lambda x: getattr(x, "data", x), intermediates, is_leaf=lambda x: isinstance(x, LevelMaps))

    images = jax.ShapeDtypeStruct(inputs.batch.images.shape, np.float32)
    shapes = jax.eval_shape(captured, inputs.variables, images)
    rng, dtype, found = np.random.default_rng(0), jnp.dtype(inputs.config.train.precision), []
    for path, leaf in jax.tree.leaves_with_path(shapes):
        kind = config.backbone.norm if path[0].key == "backbone" else "group"
        values, cotangent = rng.standard_normal((2, *leaf.shape), np.float32).astype(dtype)
        found.append(NormInputs(kind, config.head.norm_groups, is_trained(path, config), values, cotangent))
    return found


def alignment_inputs(inputs: PeerInputs) -> list[AlignmentInputs]:
    """Return the inputs of the five levels."""
    locations, pred = canvas_pyramid(inputs.batch), loss_predictions(inputs)
    rng, batch = np.random.default_rng(0), len(inputs.batch.images)

    def noise(shape, channels):
        return rng.standard_normal((batch, *shape, channels), np.float32)

    return [
        AlignmentInputs(
            noise(shape, inputs.classes),
            noise(shape, 1),
            pred.boxes[:, level].reshape(batch, *shape, 4),
            noise(shape, 8),
        )
        for shape, level in zip(locations.shapes, locations.level_slices, strict=True)
    ]


def loss_predictions(inputs: PeerInputs) -> Predictions:
    """Return the predictions that the losses are computed from."""
    return random_predictions(inputs.batch, inputs.classes, seed=0)
