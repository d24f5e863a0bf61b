"""Every composition in configs/ (head × assigner × losses) on made-up predictions: finite, learning, empty, ignored."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import random_batch
from tood_jax.config import AssignerConfig, BackboneConfig, Config, HeadConfig, LossConfig, NeckConfig
from tood_jax.config.files import load_config
from tood_jax.criterion.assign import assign, batch_locations
from tood_jax.criterion.losses import detection_losses, loss_parts
from tood_jax.models.build import build_model
from tood_jax.models.detector import detections, make_box_coder
from tood_jax.types import Predictions

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "rivals").glob("*.py")) + sorted((ROOT / "configs" / "ablation").glob("*.py"))
C = 4


def predictions(config, batch, seed=0):
    """What a head of this config might say: raw numbers around its zero, decoded."""
    rng = np.random.default_rng(seed)
    coding, (height, width) = make_box_coder(config.head), batch.images.shape[1:3]
    maps = []
    for stride in (8, 16, 32, 64, 128):
        shape = (len(batch.images), -(-height // stride), -(-width // stride), coding.per_location * coding.num_logits)
        maps.append(np.float32(rng.uniform(0.2, 1.5, shape)))
    boxes = jax.jit(lambda maps: jnp.concatenate([coding.decode(x).reshape(len(x), -1, 4) for x in maps], axis=1))(maps)
    raw = np.concatenate([x.reshape(len(x), -1, coding.num_logits) for x in maps], axis=1)
    scores = np.float32(rng.uniform(0.001, 0.6, (*boxes.shape[:2], C)))
    quality = None if config.head.quality == "none" else np.float32(rng.standard_normal(boxes.shape[:2]))
    return jax.tree.map(jnp.asarray, Predictions(scores, boxes, raw, quality))


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.stem)
def case(request):
    config = load_config(str(request.param))

    @jax.jit
    def learn(pred, batch):
        def total(pred):
            losses = detection_losses(pred, batch, True, config)
            return losses.total, losses

        gradients, losses = jax.grad(total, has_aux=True)(pred)
        return losses, gradients

    batch = jax.tree.map(jnp.asarray, random_batch(3, side=128))
    return config, learn, predictions(config, batch), batch


def test_losses_are_finite_and_learn(case):
    config, learn, pred, batch = case
    losses, gradients = learn(pred, batch)
    parts = loss_parts(config)
    for name in losses._fields:
        part = np.asarray(getattr(losses, name))
        assert part.shape == (5,)
        assert np.isfinite(part).all()
        assert (part.sum() > 0) == (name in parts), f"{name} is {part}"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    if config.assigner.kind == "task_aligned":
        return  # better boxes have larger t̂, its targets: tests/criterion/test_tood.py has its learning
    better = jax.tree.map(
        lambda p, g: np.asarray(p - 1e-3 * g / (1e-6 + np.abs(g).max())), *jax.device_get((pred, gradients))
    )
    assert float(learn(better, batch)[0].total) < float(losses.total)


def test_without_objects_only_the_scores_learn(case):
    _, learn, pred, batch = case
    losses, gradients = learn(pred, batch._replace(gt_mask=jnp.zeros_like(batch.gt_mask)))
    assert float(losses.cls.sum()) > 0
    assert float(losses.box.sum() + losses.quality.sum() + losses.distribution.sum()) == 0
    for name, gradient in gradients._asdict().items():
        assert gradient is None or bool(np.any(np.asarray(gradient) != 0)) == (name == "scores"), name
        assert gradient is None or np.isfinite(gradient).all()


def test_cells_beyond_an_image_count_for_nothing(case):
    config, learn, pred, batch = case
    batch = batch._replace(sizes=jnp.asarray([[128, 128], [64, 128], [128, 128]], jnp.int32))
    _, gradients = learn(pred, batch)
    beyond = ~np.asarray(batch_locations(batch, config).valid[1])
    assert beyond.any()
    for gradient in jax.tree.leaves(gradients):
        assert not np.asarray(gradient)[1, beyond].any()


def test_padded_objects_change_nothing(case):
    _, learn, pred, batch = case
    more = batch._replace(
        gt_boxes=np.pad(batch.gt_boxes, ((0, 0), (0, 3), (0, 0)), constant_values=7.0),
        gt_labels=np.pad(batch.gt_labels, ((0, 0), (0, 3)), constant_values=1),
        gt_mask=np.pad(batch.gt_mask, ((0, 0), (0, 3))),
    )
    for a, b in zip(jax.tree.leaves(learn(pred, batch)), jax.tree.leaves(learn(pred, more)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_detections_have_their_shape(case):
    config, _, pred, batch = case
    found = jax.jit(lambda pred: detections(pred, batch, config))(pred)
    assert found.boxes.shape == (3, config.detect.max_detections, 4)
    assert all(np.isfinite(leaf).all() for leaf in found)
    assert (np.diff(found.scores, axis=1) <= 1e-6).all()
    if config.detect.clip_boxes:
        assert found.boxes.min() >= -1e-4
        assert found.boxes.max() <= 128 - config.detect.clip_margin + 1e-4  # a voted box is a mean, so it is rounded


def test_ignored_anchors_cost_nothing():
    """Between the two IoUs of max_iou an anchor is neither positive nor negative."""
    config = load_config(str(ROOT / "configs/rivals/retinanet_r50_fpn_1x_coco.py"))
    batch = jax.tree.map(jnp.asarray, random_batch(2, side=128))
    pred, locations = predictions(config, batch), batch_locations(batch, config)
    ignored = np.asarray(jax.jit(lambda: assign(pred, batch, locations, True, config).gt_index)()) == -2
    assert ignored.any()
    learn = jax.jit(jax.grad(lambda x: detection_losses(pred._replace(scores=x), batch, True, config).total))
    gradient = learn(pred.scores)
    assert not np.asarray(gradient)[ignored].any()
    assert np.asarray(gradient)[~ignored].all()


def small(config: Config) -> Config:
    """The same composition with a network of a few thousand parameters."""
    return dataclasses.replace(
        config,
        backbone=BackboneConfig(depth=18, width=8, norm="group", frozen_stages=-1),
        neck=dataclasses.replace(config.neck, channels=16, norm="group"),
        head=dataclasses.replace(config.head, channels=16, num_convs=2, norm_groups=4),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_r50_fpn_1x_coco", "fcos_t_head_r50_fpn_1x_coco", "gfl_r50_fpn_1x_coco"])
def test_the_whole_network_learns_its_batch(name):
    """Twenty plain gradient steps on one batch lower the loss; every parameter has a finite gradient."""
    config = small(load_config(str(ROOT / "configs/rivals" / f"{name}.py")))
    batch = jax.tree.map(jnp.asarray, random_batch(2, side=64))
    model = build_model(config, C)
    images = batch.images.astype(jnp.float32) / 64 - 2
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]

    @jax.jit
    def step(params):
        def total(params):
            return detection_losses(model.apply({"params": params}, images, train=True), batch, True, config).total

        loss, gradients = jax.value_and_grad(total)(params)
        norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
        return loss, jax.tree.map(lambda p, g: p - 0.02 * g / jnp.maximum(norm, 1), params, gradients), norm

    losses = []
    for _ in range(20):
        loss, params, norm = step(params)
        assert np.isfinite(norm)
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_defaults_are_tood():
    assert (HeadConfig().kind, AssignerConfig().kind, LossConfig().cls) == (
        "t_head",
        "task_aligned",
        "quality_focal",
    )
    assert NeckConfig().extra_levels == "on_output"
