"""A step in several parts equals the step of the whole batch: gradients, losses and summary of the targets.

A linear model takes the place of the network, which would take most of a minute to compile for each case.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import random_batch
from tood_jax.config import Config
from tood_jax.config.files import load_config
from tood_jax.distributed.sharding import batch_shardings, make_mesh, put_batch, replicated
from tood_jax.models.detector import make_box_coder
from tood_jax.training.state import TrainState
from tood_jax.training.train_step import step_gradients
from tood_jax.types import Predictions

IMAGES = 4  # the last one has no object
NUM_CLASSES = 4
PHASES = pytest.mark.parametrize("in_tal_phase", [False, True], ids=["warm_up", "task_aligned"])
SLOW = ("retinanet", "atss", "fovea", "ota", "simota")
RIVALS = ["fcos", "gfl", "paa", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


class LinearDetector(nn.Module):
    """Predictions of every location by a linear map of its mean colour; one running mean of all colours."""

    config: Config

    @nn.compact
    def __call__(self, images, train, sizes=None):
        coder = make_box_coder(self.config.head)
        running = self.variable("batch_stats", "mean", jnp.zeros, 3)
        running.value = 0.9 * running.value + 0.1 * images.mean(axis=(0, 1, 2))
        levels = []
        for stride in (8, 16, 32, 64, 128):
            window = (min(stride, images.shape[1]),) * 2
            colours = nn.avg_pool(images, window, window) * stride
            scores, logits, quality = (
                nn.Dense(coder.per_location * size, kernel_init=nn.initializers.normal(0.1))(colours)
                for size in (NUM_CLASSES, coder.num_logits, 1)
            )
            parts = (nn.sigmoid(scores - 2), coder.decode(logits), logits, quality)
            levels.append([x.reshape(len(x), -1, x.shape[-1] // coder.per_location) for x in parts])
        scores, boxes, logits, quality = (jnp.concatenate(x, axis=1) for x in zip(*levels, strict=True))
        has_quality = self.config.head.quality != "none"
        return Predictions(scores, boxes, logits, quality[..., 0] if has_quality else None)


class Step:
    """The function of (state, batch, phase) to (gradients, losses, summary, batch statistics) of a step in parts."""

    def __init__(self, name: str, parts: int, devices: int = 1):
        config = load_config(f"configs/{name}.py")
        train = dataclasses.replace(config.train, batch_size=IMAGES, accumulate_steps=parts)
        self.config = dataclasses.replace(config, train=train)
        self.model: Any = LinearDetector(config)
        self.mesh = make_mesh(jax.devices()[:devices])
        self._program = jax.jit(
            functools.partial(step_gradients, self.model, self.config, self.mesh),
            in_shardings=(replicated(self.mesh), batch_shardings(self.mesh), replicated(self.mesh)),
            out_shardings=replicated(self.mesh),
        )

    def state(self) -> TrainState:
        variables = self.model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), True)
        return TrainState(jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], (), {})

    def __call__(self, state, batch, in_tal_phase=True):
        return jax.device_get(self._program(state, put_batch(batch, self.mesh), jnp.asarray(in_tal_phase)))


@functools.cache
def step(name, parts, *, devices=1):
    return Step(name, parts, devices=devices)


def assert_equal_steps(found, expected):
    """Losses and summary to 1e-5, gradients to that share of the largest of each parameter."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found[1:], expected[1:])
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def assert_parts_equal_the_whole(name, parts, in_tal_phase=True, devices=1, change=lambda batch: batch):
    whole, batch = step(name, 1), change(random_batch(IMAGES))
    state = whole.state()
    *expected, _ = whole(state, batch, in_tal_phase)
    *found, _ = step(name, parts, devices=devices)(state, batch, in_tal_phase)
    assert expected[1].total > 0
    assert_equal_steps(found, expected)


def without_objects(batch):
    return batch._replace(gt_mask=np.zeros_like(batch.gt_mask))


def with_one_object(batch):
    return batch._replace(gt_mask=batch.gt_mask & (np.arange(batch.gt_mask.size) == 0).reshape(batch.gt_mask.shape))


@PHASES
@pytest.mark.parametrize(("parts", "devices"), [(4, 1), (2, 2)])
def test_parts_of_tood_equal_the_whole_batch(parts, devices, in_tal_phase):
    """One of the four parts has no object; on two devices each part has an image on either."""
    assert not random_batch(IMAGES).gt_mask[-1].any()
    assert_parts_equal_the_whole("tood_r50_fpn_1x_coco", parts, in_tal_phase, devices=devices)


@pytest.mark.parametrize("rival", RIVALS)
def test_parts_of_rivals_equal_the_whole_batch(rival):
    assert_parts_equal_the_whole(f"rivals/{rival}_r50_fpn_1x_coco", 4)


@PHASES
@pytest.mark.parametrize("change", [without_objects, with_one_object])
def test_the_minimum_of_a_divisor_applies_to_the_sum_over_the_parts(change, in_tal_phase):
    """Parts without positives, whose own divisors would be 1."""
    assert_parts_equal_the_whole("tood_r50_fpn_1x_coco", 4, in_tal_phase, change=change)


def test_batch_statistics_are_updated_once_by_each_part():
    """Two equal halves have the gradient of one, and update the running statistics as two steps do."""
    name, half = "tood_r50_fpn_1x_coco", random_batch(IMAGES // 2)
    whole = step(name, 1)
    state = whole.state()
    *expected, once = whole(state, half)
    *_, twice = whole(state._replace(batch_stats=once), half)
    interleaved = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), half)  # rows k, k + 2, … make up part k
    gradients, losses, _, statistics = step(name, 2, devices=2)(state, interleaved)
    assert_equal_steps((gradients, losses, statistics), (*expected[:2], twice))
    assert (np.abs(once["mean"]) > 0.01).any()
