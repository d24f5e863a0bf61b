"""Meshes of eight devices against one: losses, gradients (as the parameters after some steps) and detections."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.tiny import random_batch, tiny_config
from tood_jax.config import BackboneConfig, ConfigError, DetectConfig, ParallelConfig
from tood_jax.distributed.sharding import (
    batch_shardings,
    check_batch,
    check_canvases,
    make_mesh,
    put_batch,
    state_shardings,
)
from tood_jax.evaluation.predict import compile_detect_step
from tood_jax.models.build import build_model
from tood_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tood_jax.training.state import init_state
from tood_jax.training.train_step import compile_train_step, train_state_shardings

# The order of sums decides the sign of a pre-activation that is 0 but for rounding, and so its ReLU's gradient: on some
# processors one such value moves 4e-4 of the first kernel's gradient. In float64 the mesh equals one device to 2e-15
# (test_a_mesh_equals_one_device_in_float64). A partition that is wrong changes gradients by far more.
KINK = 1e-3
DTYPE = None  # compute type: the config's
STEPS = 4  # two of the warm-up, two of the task-aligned phase
BATCH = random_batch(8, times_high=8, seed=1)  # 512×64: the rows of P7 divide over four devices
BATCH.sizes[::2] = (300, 30)  # images that end within a device's rows


class Run:
    """Some steps of the tiny detector over a mesh, and what it then detects.

    Args:
        weights: (params, batch_stats) to detect with, instead of those that the steps led to.
    """

    def __init__(self, tmp_path, devices: int, space: int = 1, split: bool = False, weights=None, **groups):
        config = tiny_config(tmp_path, tmp_path, batch_size=8)
        parallel, detect = ParallelConfig(space, split), DetectConfig(score_threshold=0.001)
        config = dataclasses.replace(config, parallel=parallel, detect=detect, **groups)
        model, mesh = build_model(config, 4, dtype=DTYPE), make_mesh(jax.devices()[:devices], space)
        schedule = learning_rate_schedule(config.optimizer, batch_size=8, steps_per_epoch=2, epochs=4)
        optimizer = make_optimizer(config)
        step = compile_train_step(model, config, optimizer, schedule, 2, mesh)
        state = computed_in(DTYPE, init_state(model, optimizer, seed=0, keep_ema=True))
        state = jax.device_put(state, train_state_shardings(model, config, optimizer, mesh))
        batch, rows = put_batch(computed_in(DTYPE, BATCH), mesh), []
        for i in range(STEPS):
            state, row = step(state, batch)
            rows.append({name: float(value) for name, value in row.items()})
            if i == 0:
                # The momentum is the gradient and the weight decay, without the rounding of params + rate · gradient.
                self.momentum = {
                    jax.tree_util.keystr(path): np.asarray(leaf)
                    for path, leaf in jax.tree.leaves_with_path(state.opt_state)
                }
        self.state, self.rows, self.batch = state, rows, batch
        detect_step = compile_detect_step(model, config, mesh)
        self.weights = jax.device_get((state.params, state.batch_stats)) if weights is None else weights
        self.detections = jax.device_get(detect_step(*self.weights, batch)[0])

    def assert_equals(self, other: "Run") -> None:
        """To rounding, which grows from step to step: the order of the sums differs."""
        for name in ("loss", "loss_cls", "loss_box", "grad_norm"):
            ours, theirs = ([row[name] for row in run.rows] for run in (self, other))
            np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, err_msg=name)
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, err_msg=name)
        whole = np.sqrt(sum((leaf**2).sum() for leaf in other.momentum.values()))
        assert len(other.momentum) > 50
        for name, theirs in other.momentum.items():
            limit = KINK * np.linalg.norm(theirs) + 1e-6 * whole
            assert np.linalg.norm(self.momentum[name] - theirs) <= limit, name
        theirs = jax.tree.map(np.asarray, other.detections)
        assert (theirs.labels >= 0).sum() > 100
        ours = in_the_order_of(jax.tree.map(np.asarray, self.detections), theirs)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)  # pixels of 512


def computed_in(dtype, tree):
    """The tree with its floating arrays of this type; None leaves them."""
    return jax.tree.map(lambda x: x.astype(dtype) if dtype and x.dtype == np.float32 else x, tree)


def in_the_order_of(found, expected):
    """Each image's detections in the order of other ones, paired by label and place: rounding may swap two of nearly
    one score."""
    apart = np.abs(found.boxes[:, None] - expected.boxes[:, :, None]).max(axis=-1)  # [B, K expected, K found]
    apart += 1e4 * (found.labels[:, None] != expected.labels[:, :, None])
    real = expected.labels >= 0
    order = np.where(real, apart.argmin(axis=-1), np.arange(real.shape[1]))
    assert all(len(set(row)) == len(row) for row in order)  # each is taken once
    rows = [np.stack([x[row] for x, row in zip(part, order, strict=True)]) for part in found[:3]]
    return type(found)(*rows, *found[3:])


IN_DOUBLE = """
import jax
import numpy as np

from tests import conftest  # eight devices

jax.config.update("jax_enable_x64", True)
from pathlib import Path

from tests.distributed import test_sharding

test_sharding.STEPS, test_sharding.DTYPE = 1, np.float64
one = test_sharding.Run(Path(), 1)
mesh = test_sharding.Run(Path(), 8, 2, False, one.weights)
whole = np.sqrt(sum((leaf**2).sum() for leaf in one.momentum.values()))
apart = [np.linalg.norm(mesh.momentum[name] - leaf) / whole for name, leaf in one.momentum.items()]
print(len(apart), one.momentum.popitem()[1].dtype, max(apart))
"""


@pytest.mark.slow
def test_a_mesh_equals_one_device_in_float64():
    """Without rounding there are no kinks: every gradient of images split over two devices, to 1e-12 of all of them."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", IN_DOUBLE], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    count, dtype, apart = done.stdout.split()[-3:]
    assert int(count) > 50
    assert dtype == "float64"
    assert float(apart) < 1e-12


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize(("space", "split"), [
    pytest.param(1, True, marks=pytest.mark.slow), (2, False), pytest.param(4, True, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_mesh_equals_one_device(one, tmp_path, space, split):
    """(8), (4×2) and (2×4), with the state whole or split: BatchNorm, GroupNorm, pooling, sampling, assignment, NMS."""
    run = Run(tmp_path, 8, space, split, one.weights)
    run.assert_equals(one)
    shard = run.batch.images.addressable_shards[0].data.shape
    assert shard == (space, 512 // space, 64, 3)  # 8 images over 8 / space
    kernels = [leaf for leaf in jax.tree.leaves(run.state.params) if leaf.size >= 2**12]
    assert len(kernels) > 5
    assert all(leaf.sharding.is_fully_replicated != split for leaf in kernels)


@pytest.mark.slow
def test_deformable_bottlenecks_and_t_head_over_the_height(tmp_path):
    """Sampling far across the borders between devices."""
    backbone = BackboneConfig(depth=50, width=8, norm="group", frozen_stages=-1, deformable_stages=(4,))
    one = Run(tmp_path, 1, backbone=backbone)
    Run(tmp_path, 4, 4, weights=one.weights, backbone=backbone).assert_equals(one)


def test_shapes_decide_what_is_split():
    mesh = make_mesh(jax.devices()[:8], 2)
    shapes = {"kernel": np.zeros((3, 3, 64, 64)), "odd": np.zeros((3, 3, 63, 63)), "scale": np.zeros(64)}
    found = state_shardings(shapes, mesh, split=True)
    assert tuple(found["kernel"].spec) == (None, None, None, "data")
    assert found["odd"].is_fully_replicated
    assert found["scale"].is_fully_replicated
    assert all(one.is_fully_replicated for one in jax.tree.leaves(state_shardings(shapes, mesh, split=False)))


def test_only_images_have_a_height():
    shardings = batch_shardings(make_mesh(jax.devices()[:8], 2))
    assert tuple(shardings.images.spec) == ("data", "space")
    assert {tuple(one.spec) for one in shardings if one is not shardings.images} == {("data",)}


@pytest.mark.parametrize(("height", "width", "problem"), [
    (800, 1344, "multiples of 128 · 2 = 256; in data.buckets write 1024x1344 for 800x1344"),
    (896, 64, "write 1024x64 for 896x64"),
])  # fmt: skip
def test_heights_that_split_unevenly_are_refused(height, width, problem):
    mesh = make_mesh(jax.devices()[:8], 2)
    with pytest.raises(ConfigError, match=problem):
        check_canvases([(1024, 64), (height, width)], mesh)
    check_canvases([(height, width)], make_mesh(jax.devices()[:8], 1))  # nothing to split


def test_batches_and_devices_that_do_not_fit_are_refused():
    mesh = make_mesh(jax.devices()[:8], 2)
    check_batch(8, mesh, accumulate=2)
    with pytest.raises(ConfigError, match="12 images can't be split evenly over 4 devices × 2 parts"):
        check_batch(12, mesh, accumulate=2)
    with pytest.raises(ConfigError, match=r"2 images .* Or let several devices share an image: parallel\.space"):
        check_batch(2, mesh)
    with pytest.raises(ConfigError, match=r"parallel\.space = 3 must divide the 8 devices"):
        make_mesh(jax.devices()[:8], 3)
