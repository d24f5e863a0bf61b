"""A run goes on over another number of devices, with the same global batch and the same losses (the real loop)."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from tests.runs import rows
from tests.tiny import tiny_config
from tood_jax.api import training
from tood_jax.config import ParallelConfig
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.distributed.signals import Reason
from tood_jax.training import loop

SIDE = 64
TOTAL = 8  # steps: 4 epochs of 2 steps of 8 images
WHOLE, SPLIT = ParallelConfig(), ParallelConfig(split_state=True)
OVER_HEIGHT = ParallelConfig(space=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    shapes = ShapesConfig(train_images=16, val_images=3, height=(SIDE, SIDE), width=(SIDE, SIDE), seed=3)
    write_shapes(folder, shapes)
    return folder


def run(data, workdir, devices, parallel, height, stop_at=None):
    """The run, or the part of it from where it stands to a step or two after `stop_at`."""
    config = tiny_config(
        data,
        workdir,
        epochs=4,
        batch_size=8,
        eval_batch_size=8,
        eval_every_epochs=0,
        log_every_steps=1,
        checkpoint_every_steps=1000,
    )
    config = dataclasses.replace(
        config,
        parallel=parallel,
        data=dataclasses.replace(config.data, buckets=((height, SIDE),)),
        # Rounding grows from step to step, the faster the larger the steps are.
        optimizer=dataclasses.replace(config.optimizer, learning_rate=0.001, ema_decay=0.9),
    )
    genuine = loop.log_window

    def stopping(config, plan, step, *rest):
        genuine(config, plan, step, *rest)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "log_window", stopping)
        return training.train(config, devices=jax.devices()[:devices])


def losses(workdir):
    return [(row["step"], row["loss"]) for row in rows(workdir) if row["kind"] == "train"]


def assert_goes_on(data, folder, parts, height=SIDE):
    """`parts` of (devices, parallel) take turns; together they equal one device that ran through."""
    outcome = run(data, folder / "one", 1, WHOLE, height)
    assert (outcome.stopped, outcome.step) == (Reason.NONE, TOTAL)
    reached = []
    for (devices, parallel), stop_at in zip(parts, [1, 3, 5, None], strict=True):
        outcome = run(data, folder / "many", devices, parallel, height, stop_at)
        assert outcome.stopped is (Reason.NONE if stop_at is None else Reason.PREEMPTION)
        assert len({shard.device for shard in outcome.state.step.addressable_shards}) == devices
        reached.append(outcome.step)
    assert reached == sorted(set(reached))
    assert reached[-1] == TOTAL
    (steps, ours), (expected, theirs) = (
        zip(*losses(folder / "many"), strict=True),
        zip(*losses(folder / "one"), strict=True),
    )
    assert steps == expected == tuple(range(1, TOTAL + 1))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert len(set(theirs)) == TOTAL


@pytest.mark.slow
def test_8_2_1_and_back(data, tmp_path):
    assert_goes_on(data, tmp_path, [(8, WHOLE), (2, WHOLE), (1, WHOLE), (8, WHOLE)])


@pytest.mark.slow
def test_8_2_1_and_back_with_the_state_split(data, tmp_path):
    assert_goes_on(data, tmp_path, [(8, SPLIT), (2, SPLIT), (1, SPLIT), (8, SPLIT)])


@pytest.mark.slow
def test_8_2_1_and_back_with_the_images_split(data, tmp_path):
    parts = [(8, OVER_HEIGHT), (2, OVER_HEIGHT), (1, WHOLE), (8, OVER_HEIGHT)]
    assert_goes_on(data, tmp_path, parts, height=256)
