"""The step: phases, finite guard, accumulation, moving average, and one device against eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import random_batch, tiny_config
from tood_jax.config import BackboneConfig
from tood_jax.config.files import load_config
from tood_jax.distributed.sharding import make_mesh, put_batch, replicated
from tood_jax.models.build import build_model
from tood_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tood_jax.training.state import init_state
from tood_jax.training.train_step import compile_train_step, warmup_steps

NUM_CLASSES = 4


class Setup:
    """A compiled step of the tiny model over some devices, and its first state."""

    def __init__(self, tmp_path, devices=1, accumulate=1, batch_size=8, precision="float32", **groups):
        config = tiny_config(
            tmp_path, tmp_path, accumulate_steps=accumulate, batch_size=batch_size, precision=precision
        )
        self.config = dataclasses.replace(config, **groups)
        self.model = build_model(self.config, NUM_CLASSES)
        self.schedule = learning_rate_schedule(self.config.optimizer, batch_size=8, steps_per_epoch=2, epochs=4)
        self.optimizer = make_optimizer(self.config)
        self.mesh = make_mesh(jax.devices()[:devices])
        self.step = compile_train_step(self.model, self.config, self.optimizer, self.schedule, 2, self.mesh)

    @functools.cached_property
    def _first_state(self):
        return jax.device_get(init_state(self.model, self.optimizer, seed=0, keep_ema=True))

    def state(self):
        return jax.device_put(self._first_state, replicated(self.mesh))

    def run(self, steps, batch):
        state, rows = self.state(), []
        for _ in range(steps):
            state, row = self.step(state, put_batch(batch, self.mesh))
            rows.append({k: float(v) for k, v in row.items()})
        return state, rows


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return Setup(tmp_path_factory.mktemp("one"))


def test_phase_follows_the_step(one):
    assert warmup_steps(one.config, 2) == 2
    state, rows = one.run(4, random_batch(8))
    assert [row["task_aligned"] for row in rows] == [0, 0, 1, 1]
    assert int(state.step) == 4
    assert all(row["finite"] == 1 for row in rows)
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss_cls"] + rows[0]["loss_box"], rel=1e-6)
    parts = sum(rows[0][f"loss_{part}_P{level}"] for part in ("cls", "box") for level in range(3, 8))
    assert parts == pytest.approx(rows[0]["loss"], rel=1e-5)


def test_a_batch_without_objects_trains(one):
    batch = random_batch(8)
    empty = batch._replace(gt_mask=np.zeros_like(batch.gt_mask))
    _, rows = one.run(3, empty)
    assert all(row["finite"] == 1 and row["loss_box"] == 0 for row in rows)


def test_a_non_finite_step_changes_nothing(one):
    before = one.state()
    kernel = before.params["head"]["cls_logits"]["kernel"]
    before.params["head"]["cls_logits"]["kernel"] = kernel.at[0, 0, 0, 0].set(jnp.nan)
    expected = jax.device_get(before)
    after, row = one.step(before, put_batch(random_batch(8), one.mesh))
    assert float(row["finite"]) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), expected)


def test_average_follows_the_weights(one):
    state, _ = one.run(2, random_batch(8))
    start, params, ema = jax.device_get((one.state().params, state.params, state.ema))
    between = jax.tree.map(lambda e, a, b: bool(((e - a) * (e - b) <= 1e-9).all()), ema, start, params)
    assert all(jax.tree.leaves(between))
    assert state.eval_params is state.ema


@pytest.mark.slow
def test_eight_devices_equal_one(one, tmp_path):
    """BatchNorm, assignment and normalisers are global: the same trajectory to 1e-5 in both phases."""
    batch = random_batch(8)
    state_1, rows_1 = one.run(6, batch)
    state_8, rows_8 = Setup(tmp_path, devices=8).run(6, batch)
    assert rows_1[-1]["task_aligned"] == 1
    for name in ("loss", "loss_cls", "loss_box"):
        np.testing.assert_allclose([r[name] for r in rows_8], [r[name] for r in rows_1], rtol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(state_1.params), jax.tree.leaves(state_8.params), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


@pytest.mark.slow
def test_a_step_in_parts_equals_the_whole_step(tmp_path):
    """With the network, on two devices, in both phases; tests/training/test_accumulation.py has every loss."""
    backbone = BackboneConfig(depth=18, width=8, norm="group", frozen_stages=-1)
    batch = random_batch(8)
    state, rows = Setup(tmp_path, backbone=backbone).run(3, batch)
    in_parts, rows_in_parts = Setup(tmp_path, accumulate=2, devices=2, backbone=backbone).run(3, batch)
    assert [row["task_aligned"] for row in rows] == [0, 0, 1]
    for row, expected in zip(rows_in_parts, rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for a, b in zip(jax.tree.leaves(in_parts.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


@pytest.mark.slow
def test_a_rival_has_its_parts_and_no_phases(tmp_path):
    """PAA, whose assigner sees losses, whose head has a quality branch: one device equals eight here too."""
    rival = load_config("configs/rivals/paa_r50_fpn_1x_coco.py")
    groups = {
        "head": dataclasses.replace(rival.head, channels=16, num_convs=2, norm_groups=4),
        "assigner": rival.assigner,
        "loss": rival.loss,
    }
    assert warmup_steps(rival, 100) == 0
    batch = random_batch(8)
    _, rows = Setup(tmp_path, **groups).run(4, batch)
    _, rows_8 = Setup(tmp_path, devices=8, **groups).run(4, batch)
    for row in rows:
        assert "task_aligned" not in row
        assert row["loss"] == pytest.approx(row["loss_cls"] + row["loss_box"] + row["loss_quality"], rel=1e-5)
        assert row["loss_quality"] > 0
    np.testing.assert_allclose([r["loss"] for r in rows_8], [r["loss"] for r in rows], rtol=1e-5)


def test_bfloat16_computes_and_float32_keeps(one, tmp_path):
    """Parameters and losses stay float32; the losses follow the float32 run within bfloat16's rounding."""
    batch = random_batch(8)
    state, rows = Setup(tmp_path, precision="bfloat16").run(3, batch)
    _, reference = one.run(3, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert all(row["finite"] == 1 for row in rows)
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in reference], rtol=0.05)


def test_an_uneven_batch_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"6 images can't be split evenly over 8 devices: choose train\.batch_size"):
        put_batch(random_batch(6), make_mesh(jax.devices()))


@pytest.mark.slow
def test_a_step_behind_a_bad_one_changes_nothing(one):
    """`go`, the `finite` of the step before, decides on the device; with 1 the step is the same to the bit."""
    chained = compile_train_step(one.model, one.config, one.optimizer, one.schedule, 2, one.mesh, chained=True)
    batch = put_batch(random_batch(8), one.mesh)
    before = jax.device_get(one.state())
    refused, row = chained(one.state(), batch, jnp.zeros(()))
    assert row["finite"] == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(refused), before)
    went, row = chained(one.state(), batch, jnp.ones(()))
    plain, _ = one.step(one.state(), batch)
    assert row["finite"] == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(went), jax.device_get(plain))
